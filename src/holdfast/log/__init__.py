"""The log: one ordered, replicated, single-writer sequence of records per segment; and the bus beside it.

Terms. A *record* is a payload (a sealed frame, opaque here) with a *sequence*, from 1, without gaps. A log has an
*incarnation*; a replaced log is another incarnation, and positions of the two do not compare. To *append* is to put a
record at a place, ``after + 1``; whoever finds another record there is *fenced*. To *trim* is to forget the oldest.
The *bus* carries beats and questions between agents: heard or lost.

A *side stream* is beside the log: many writers, no order between them, the same safety (``side``).

What is stored. One JetStream stream ``HF_<segment>`` (file storage, 1 or 3 replicas); its records are published at
``hf.<segment>.log.<incarnation>`` and acknowledged below ``hf.<segment>.ack.<incarnation>``; the incarnation also
stands in the stream's metadata. A side stream is ``HF_<segment>_<name>``, its messages are published below
``hf.<segment>.side.<name>``. On one machine's disk: ``server.conf``, and below ``store/`` what nats-server keeps.

Modules. ``port``: the two ports and what can go wrong. ``memory``, ``jetstream`` (with ``stream``, ``follow``) and
``bus`` (with ``listener``): the adapters, held to one contract. ``wire``, ``link``, ``connection``: the NATS protocol.
``side``: the port of side streams; ``side_memory``, ``side_stream``: its adapters, held to one contract; ``side_seal``:
around either of them. ``api``: what a stream's servers are asked.
``server``, ``server_config``: the embedded nats-server; ``anew``: all of them begun again. ``leader``: where the Raft
leader sits. ``retention``: what may be forgotten. ``trust``: the site's certificates.

Invariants.

- What ``append`` returned is on the disks of a quorum (``sync_interval: always``) and stays until trimmed or replaced.
- One record per place, whoever tries, however often: the servers compare the expected sequence.
- An append never reports a failure that later turns out to be a success without saying so (``LogUnavailable.sent``).
- A follower sees every record once, in order, or is told why not: Trimmed, LogReplaced, LogDamaged.
- A writer of a replaced incarnation can append nothing: its subject exists no more.
- What a side stream's ``publish`` returned is on the disks of a quorum until purged, or until the
  stream's limits forget it.
- A relay's certificate cannot publish to a log subject, nor purge more than shadows; without a certificate of
  the site nobody connects.

What it does not promise. That the replicas' contents are what was appended: frames are chained by digest and sealed,
and it is their reader who notices. Progress without two of three servers. Order or delivery on the bus.
"""
