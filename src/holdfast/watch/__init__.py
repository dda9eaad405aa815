"""Trees to changes: hears where something happened, looks, and says what differs from what the log has.

::

    fanotify or inotify -> dirty set -> hints -> looks at places -> steps -> changes -> parts
                                          scan -^                     |
                                                tree index (what the log has)

``watcher``   the watcher: start and stop, batches, barriers, scans, status; what the rest of the agent uses
``hints``     where something happened; the dirty set; the port of an event source
``fanotify``  events of whole filesystems     ``inotify``  events of single directories, where that is not permitted
``reconcile`` a batch: in which order things are read
``scene``     what the following share: index, disk, what is still to be looked at
``looks``     places compared with the index   ``names``  what follows for names, in an order that works
``limbo``     what was missed but is alive     ``files``, ``content``  contents and their differences
``tails``     ends of growing files, remembered: how little of them is read again
``folders``   metadata of directories          ``scan``   every directory compared with its rows
``disk``      the filesystem by identity       ``parts``  batches cut to the size of frames
``limits``    every limit, with its reason
``source``    the answering side of the exchange between machines

Terms
-----
batch   what one :meth:`~holdfast.watch.watcher.Watcher.collect` hands over, in parts; its end is a *whole instant*
place   a name in a directory: node id of the directory, and the name
hint    an event, read as "look there"; what it says happened is not believed
limbo   names that are not where the log has them, of things that are alive somewhere
cookie  who asks for a barrier gets one; it is passed when everything done before is in the parts handed over
settle  of a directory: nothing happened in it for two seconds, so its modification time may be told

Invariants
----------
* The index, as this package changes it, is what the log will have once all parts handed over are in it. It runs ahead;
  the caller commits when nothing is on its way. After a rollback :meth:`~holdfast.watch.watcher.Watcher.forget` and a
  scan follow.
* Every change fits the index at its place in the order: a reader that applies changes one by one needs nothing else.
* At a whole instant nothing that was captured is absent unless it was removed or left the trees, however fast it is
  moved about.
* What is said of a content is consistent in itself: size, digests and bytes belong together.
* What cannot be read is named in the status and tried again; the log keeps what it has of it. Nothing is removed from
  the log because a disk fails, a filesystem is not mounted, or another one is mounted on top.
* The kernel's queue is emptied whatever the consumer does. Lost events are noticed, and end in a scan.
* Memory is bounded by ``limits`` and by the names of the largest directory, not by the number of files.

Barriers need no file to be touched: fanotify and inotify queue an event before the system call that caused it returns,
so emptying the queue after a barrier was asked for takes everything that was done before.

What it does not promise
------------------------
Writes through a memory map raise no event: the scrub finds them. A file that matches ``append`` is taken to change near
its end only; what is changed elsewhere is found when its first block changes too, by a scan, or by the scrub. One that
matches ``read_first`` too is taken to grow by small records, one after another (``tails``). A scan takes equal inode,
size, mtime and ctime for equal content. Without file handles (overlayfs) a rename of folders into each other may be
logged as removal and making; with handles it is renames. A file whose last modifications before a crash of the agent
left its size and its time (to the nanosecond) as they were is found by the scrub, unless it is of those that are
rewritten in place (``append``, ``read_first``): these are always read again.

Where the time goes (``bench/capture.py``): one delivery to a Maildir is nine places to look at, three changes and about
110 us of processor (nearly twice that beside a busy Dovecot, caches cold), of which a fifth is events, a quarter names
and new files; packing the frame takes another 7 us.
An unchanged file costs a scan 6 us, a new one 80 us, and 225 bytes of index on disk (``bench/scan.py``).
"""
