"""A recorded mail workload: clients that write down what they asked and what was acknowledged.

*Terms.* A **plan** (`plan`) says which server, which accounts, how much, and a seed: every choice comes from the seed,
so a load can be run again. The **journal** (`journal`) is an append-only file of JSON lines: each **attempt** before it
is sent, each **outcome** after; see `holdfast.drill.checkers.facts` for the records. An outcome is *acknowledged*,
*refused*, *not done* (could not be asked) or *unknown* (asked, no answer): nothing else is claimed.
The **prober** (`prober`) measures outages. The **witness** (`witness`) reads what is there. What the two together mean
is for `holdfast.drill.checkers` to say.

*Clients.* `deliver` (SMTP), `mailbox` (IMAP and ManageSieve), `groupware` (CalDAV, CardDAV), each in threads, each
going on against the same address after a failure. Their protocols are small clients of our own (`smtp`, `imap`,
`sieve`, `dav` on `net`), because the standard ones do not say whether a request had left when the connection broke.
`lmtp` is another thing: a load generator for benchmarks, that costs as little as it can and writes no journal.

*Invariants.* An attempt is in the kernel's hands before its first byte is sent. Outcomes are never invented: an attempt
without outcome (the workload was killed) counts as unknown. One client owns an account's mailbox: its operations stand
in the journal in the order in which they were made; what an unknown outcome touched is not used again.

*Not promised.* That two runs of a seed interleave alike: threads and servers decide that. That what is sent looks like
any particular site's mail: sizes follow a log-normal law, contents are nonsense.

Runs as a process of its own, inside a lab's machine: ``python -m holdfast.drill.workload --plan P --journal J``,
``python -m holdfast.drill.workload.witness --plan P --out STATE``, ``python -m holdfast.drill.workload.lmtp --help``.
"""
