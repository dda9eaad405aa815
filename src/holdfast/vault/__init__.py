"""The vault: snapshots of trees in a store that need not be trusted. docs/formats/vault.md is its page.

``port``        what a store must do; ``backends`` are the adapters, ``location`` how people write where they are
``patient``, ``pace``, ``estimate``        tried again, slowed down, counted; ``abilities`` what an account may do
``keys``        who may write, who may read
``objects``     packs, index, snapshots as bytes
``catalog``     which content lies where: a copy of the index, in SQLite
``repository``  a vault made, opened, read
``writer``      contents into packs
``record``      snapshots and directories
``archive``     the log's records between snapshots
``instant``, ``overlay``                   a snapshot and the records after it, read like a snapshot
``touched``, ``logfed``                    a snapshot from what the log knows, without a walk
``scan``, ``known``, ``backup``            a walk becomes a snapshot; what did not change is not read
``restore``, ``verify``, ``difference``    what to do with snapshots; ``ahead``, ``second``: so that a restore is quick
``turns``, ``repair``                      everything verified within so many days; what was lost, written again
``copy``        the same vault at a second place
``keep``, ``window``, ``mark``, ``prune``  which go, and what goes with them
``keeping``, ``remainder``, ``brake``      what stays nevertheless: pins, legal holds; an unusual loss stops a prune

A snapshot made by a scan is not an instant: each file is whole, the files beside each other may differ by the time the
scan took. One made from the log's records and the tree index is.
"""
