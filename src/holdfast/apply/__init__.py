"""Changes into a tree: what a standby, a restore and a moved account have in common.

``applier``     frames, one after another, into trees and index; positions; recovery; the clean stop
``steps``       one change in the filesystem, and the rules for what is found in its way
``place``       safe steps below one root: nothing is reached through a symlink
``content``     bytes and metadata of one thing
``compare``     how a thing differs from its node in the index
``recovery``    after an unclean stop: back to the names of the committed index
``aside``       what must not be deleted and is in the way
``divergence``  what is said when tree, index and log do not fit together
``syscalls``    the system calls Python does not offer
``seed``        trees and index brought to the primary's listing (with ``seed_*`` and ``peer``): a page of its own

Terms
-----
*Applied* is the last frame whose changes are in the trees (perhaps only in the page cache); *durable* the last one for
which trees and index are on disk; a *whole* position is one whose frame ended its batch: the trees stand as they stood
on the primary at one instant. *Aside* is where things go that nobody told us to delete.

What is stored where
--------------------
* The tree index (:mod:`holdfast.trees.index`), with the durable position in the same transaction; beside it
  ``<index>.clean`` from a clean stop to the next start.
* ``<root>/.holdfast/``: ``staging``, new files until they get their name; ``undo``, recovery's moves; ``aside/<when>``,
  things moved aside. ``/var/lib/holdfast/aside/<when>`` has a link to each and the ``manifest``.

Order of writing
----------------
Within a run nothing is synced file by file. A durable point is: syncfs(2) of every filesystem used, *then* the commit
of the index. It *must* be in this order: an index ahead of its trees would take for durable what a power cut has lost.

Invariants
----------
* Trees and index at a whole position equal the primary's at that position: names, identities (hard links), bytes,
  modes, owners, times, attributes. (Times of directories follow when one has been quiet; they are not compared.)
* After any stop, :meth:`Applier.recover` and the log from the durable position bring that about again.
* Applying a frame twice is applying it once. A frame that met a full disk goes on where it was.
* A frame that is not the successor of the last one, is of an older epoch, or holds a change that is not sound, changes
  nothing.
* Nothing the log does not know is destroyed: it is moved aside and listed. Only what a pattern excludes is deleted,
  with its directory.
* Nothing outside the roots is written or read, whatever symlinks stand in them.

What is not promised
--------------------
* Between a recovery and the end of the replay, contents may be newer than the position says.
* Somebody who writes in a standby's trees is noticed where the log touches the same names, and by ``verify``; not at
  once. What such a hand wrote *into* a file the log knows is lost when the log patches or removes that file.
* A tree on several filesystems: each mount is a tree of its own.
* An owner that does not exist here is stored as root, and named in :attr:`holdfast.trees.stat.Owners.unknown`.

Handles of files are read as each is made (about 2 us of 150 us a message): so a standby that is promoted watches at
once, without a scan.
"""
