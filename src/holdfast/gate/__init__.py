"""Gates: what is acknowledged through one is in the log, on two machines at least, before the acknowledgement leaves.

A gate stands between two programs that speak a mail protocol, passes their bytes, and holds back the answers that
promise something until the barrier has passed: everything done up to now is in the log.

::

    Postfix --LMTP--> LMTP gate --LMTP--> Dovecot
                        |  250 of Dovecot: held
                        +--- barrier (the agent's socket) ---> passed: the 250 goes on
                                                               failed: 451, Postfix keeps the message

``stream``      lines and message contents in a byte stream: strict about CR and LF; pure
``lmtp``        one LMTP session between client and server: what goes where, what is held; pure (no sockets, no clock)
``deliveries``  which message reached which recipient: the journal that makes a retry harmless
``barrier``     many waiters, one barrier at a time, through the agent's socket
``serve``       sockets around it: one process, many sessions
``store``       what Dovecot is asked

The shadow milter stands beside Postfix: a message is accepted when a copy of it is in the log.

``milter``      one milter session; pure
``shadows``     the copies: what a store of them does
``queue``       Postfix's queue: which messages are in it, put one in, throw one out
``accept``      sockets around it: accepting, settling, adopting what another machine had accepted

Both tell the ledger (`holdfast.ledger`) what happens to each message.

``noting``      what they tell, and that it is written with the barrier that carries what it tells of
``ledger_stream``  the way of a relay's lines to the primary
``keeper``      the ledger beside them: figures for the agent, a report after a takeover
``survey``      what is really there: mailboxes, queue, shadows
``reporting``   the report, in a process of its own

Gates for what users do themselves: bytes pass, the success of a change is held (docs/concepts/imap-gate.md).

``imap``        one IMAP session; pure
``sieve``       one ManageSieve session; pure
``from_client``  lines and literals of both protocols
``passing``     sockets around both
``dav``         an HTTP proxy before Radicale

``read_only``   where the site wants it, all of them refuse what would change something while the log takes nothing

A relay takes mail in for a primary that is down (docs/systems/relay.md).

``shadow_files``, ``shadow_stream``   the two stores of shadows: a protected tree; a side stream of the log
``relay``       what this process does on a relay: milter, policy, tables, handing on
``relays``      what it does on the primary for relays: their streams and list, and what a dead one had accepted
``recipients``, ``recipients_found``, ``tables``   the list of recipients: what it is, where from, what for
``straight``, ``straight_found``      past the primary's Postfix into its gate, and for whom that is the same
``observers``, ``policy``   whether the primary is down by more than our own ears; Postfix asks
``held``, ``pace``, ``drain``   what waits, and handing it on at the primary's pace
``agent``, ``side``, ``control``, ``relay_process``   asking the agent, the way to side streams, the door, the wiring
``door``, ``tasks``   answers at doors for commands (the agent's too); work that must not end unseen

``options``, ``begin``   what the agent tells the process that runs all of them, and how

**The LMTP gate's promise.** A delivery answered with 2xx is in the log on two machines, and so is the note that it was
delivered. A message comes to a recipient once, however often the client repeats it:

* Every message has a *delivery id*: the header ``Holdfast-Delivery`` that the first Postfix of the site wrote into it;
  without that header the digest of its whole header, which holds that Postfix's own ``Received`` line (queue id, time)
  and is the same in every retry out of that queue.
* Before anything is delivered, the journal says which id is meant for whom (*intent*); after the server's answer, who
  has it (*done*). The journal lies in a protected tree, so a standby has it with the mailboxes it belongs to.
* A recipient whose id is *done* is answered 250 without a second delivery; the barrier is waited for again. A
  recipient with an intent and no outcome (the machine died in between) is looked up in the mail store.

**What it does not promise.** It adds the log's latency to each delivery, and no throughput is lost by it as long as the
client keeps several connections open: Postfix does. Nothing is stored in the gate: killed at any moment, the client
has no answer and delivers again. It refuses what cannot pass unchanged through two readers: a bare LF in a content
(554), because Dovecot takes LF alone for the end of a line and the two would disagree about where a message ends.
"""
