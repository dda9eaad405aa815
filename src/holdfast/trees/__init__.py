"""Protected trees: which directories, and what the log knows of them.

``spec``    a tree's name, root, and what is left out
``stat``    what the filesystem tells of one thing: kind, owner, times, handle, xattrs
``index``   the tree index: for every protected path what the log says stands there, kept in SQLite
``replay``  what a change means for the index: for a reader of the log, and for a writer that reads its own records

The tree index is the same on both sides. The primary's watcher compares the filesystem with it and logs the difference;
a standby's applier keeps it as it applies. So a standby that is promoted has at once what a watcher needs: no scan
stands between a takeover and protection.

Invariants
----------
* The committed index equals the trees as they stand in the log at the committed position: index changes of a batch and
  the position are one SQLite transaction.
* A node is a file's identity (inode), not its path. A directory has one name; a file has one or more (hard links).
* ``handle`` is the file's handle on this machine's filesystem, NULL while unknown (replayed, not yet seen by a scan).
  It never travels: another machine's index has other handles for the same nodes.
* Memory is bounded by SQLite's page cache and two small caches of directories, whatever the number of files.
"""
