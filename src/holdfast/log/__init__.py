"""The log: one ordered, replicated, single-writer sequence of records per segment; and the bus beside it.

Terms. A *record* is a payload (a sealed frame, opaque here) with a *sequence*, from 1, without gaps. A log has an
*incarnation*; a replaced log is another incarnation, and positions of the two do not compare. To *append* is to put a
record at a place, ``after + 1``; whoever finds another record there is *fenced*. To *trim* is to forget the oldest.
The *bus* carries beats and questions between agents: heard or lost.

What is stored. One JetStream stream ``HF_<segment>`` (file storage, 1 or 3 replicas); its records are published at
``hf.<segment>.log.<incarnation>`` and acknowledged below ``hf.<segment>.ack.<incarnation>``; the incarnation also
stands in the stream's metadata. On one machine's disk: ``server.conf``, and below ``store/`` what nats-server keeps.

Modules. ``port``: the two ports and what can go wrong. ``memory``, ``jetstream`` (with ``stream``, ``follow``) and
``bus`` (with ``listener``): the adapters, held to one contract. ``wire``, ``link``, ``connection``: the NATS protocol.
``server``, ``server_config``: the embedded nats-server. ``leader``: where the Raft leader sits. ``retention``: what may
be forgotten. ``trust``: the site's certificates.

Invariants.

- What ``append`` returned is on the disks of a quorum (``sync_interval: always``) and stays until trimmed or replaced.
- One record per place, whoever tries, however often: the servers compare the expected sequence.
- An append never reports a failure that later turns out to be a success without saying so (``LogUnavailable.sent``).
- A follower sees every record once, in order, or is told why not: Trimmed, LogReplaced, LogDamaged.
- A writer of a replaced incarnation can append nothing: its subject exists no more.
- A relay's certificate cannot publish to a log subject; without a certificate of the site nobody connects.

What it does not promise. That the replicas' contents are what was appended: frames are chained by digest and sealed,
and it is their reader who notices. Progress without two of three servers. Order or delivery on the bus.
"""
