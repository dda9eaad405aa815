"""Checkers: pure functions from recorded facts to named findings, one module for each promise of the design page.

*Terms.* **Facts** (`facts`) are what a drill recorded: a workload's journal, the state of mailboxes, what the log
accepted, what probes met. **Findings** (`findings`) are differences with an address (account, folder, UID), a name out
of a closed list (`What`) and both sides. `expected` turns a journal into what must be there, `reconcile` compares that
with what is: its verdict feeds the promises.

| promise | module | judges |
|---|---|---|
| 1 nothing lost | `nothing_lost` | lost messages, by how far the promise reached |
| 2 one writer | `one_writer` | the log's records; who answered clients |
| 3 prefix | `prefix` | two listings of a tree |
| 4 exact | `exact_state` | two states of mailboxes; what a QRESYNC client was told |
| 5 in time | `in_time` | probes |
| 6 exactly once | `exactly_once` | doubles |
| 7 truthful | `truthful` | what is lost against what was named |

*Invariants.* No checker reads a file, a clock or a socket; the same facts give the same findings. An empty list means
that the promise held, for these facts. A checker never forgives by itself: what is allowed is an argument.

*Not promised.* Completeness beyond the facts: a message that was never in the journal is not missed.
"""
