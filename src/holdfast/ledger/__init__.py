"""The ledger: what became of each accepted message.

The gates note what happens to a message as *events*, one line of JSON each, in files of one hour in a protected tree::

    <state>/ledger/ledger-2026112221
    {"type":"accepted","at":1795374000123,"n":41,"machine":"main","delivery":"4f3c...","queue":"4Zq...", ...}
    {"type":"delivered","at":1795374000160,"n":42,"machine":"main","delivery":"4f3c...","to":["alice@example.org"]}
    {"type":"safe","at":1795374000171,"n":43,"machine":"main","upto":42,"log":"6e0f...","record":8120}
    {"type":"settled","at":1795374001002,"n":44,"machine":"main","delivery":"4f3c...","queue":"4Zq..."}

``accepted``   Postfix's milter saw the end of a message: from where, for whom, its digest and size. The line is in the
               log before the sender hears 250. With ``after``, the message was accepted before, by that machine, and
               is queued here again, because that machine was replaced
``refused``    it was not accepted after all: the sender heard 451
``delivered``  the mail store has it, for these recipients
``rejected``   the mail store did not take it, for these recipients; unless the queue repeats it, it goes back
``settled``    the queue file is gone: everything was delivered, handed on, or returned
``restarted``  Postfix was started anew while the message was in its queue: what it had sent just before, it may have
               sent again
``safe``       this machine's events up to number ``upto`` are in the log, as record ``record`` of the log ``log``
``began``      the gates began on this machine

``events``     the lines; pure
``book``       the files: append, roll, bound, read, erase
``states``     which state a recipient's message is in: a table with reasons; pure
``report``     what became of all of them, compared with what is really there; pure; its sums add up, or it is an error
``views``      messages and states as tables, CSV and JSON; pure

**Terms.** *Delivery id*: see the gates' page; it is one message, however often it is queued or delivered. *Number*
(``n``): counts one machine's events. *Delivered* is a fact of the mail store; *durable* says that the log has
confirmed it: two machines have it.

**What it costs.** No wait: lines are gathered in memory and written with one write(2) when the next barrier begins,
which carries them with what they tell of. What needs no barrier is written within half a second. A message with one
recipient makes about 700 bytes.

**What holds.**

* Whoever was told 250 by a machine with the milter is in the ledger of the machine that serves next: the line, the
  shadow and the answer wait for the same barrier.
* Events of one machine come in the order in which they happened, and the tree is captured in the order of time: a copy
  never has ``delivered`` without the delivered message.
* A line that cannot be written (full disk) is no line: the message is answered 451.
* It is bounded by age and by bytes: the oldest hour goes first.

**What it does not hold.** Mail that leaves for another site ends here as *left*: whether that site took it, or it went
back to its sender, is in Postfix's log. What is accepted while the milter is off is not in it. Subjects are kept only
where the site asks for it. ``erase`` takes a person's address out of the files here and, by the log, of the standby's;
snapshots in a vault keep what they have until they are pruned.
"""
