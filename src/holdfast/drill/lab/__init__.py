"""The lab: machines made of Linux namespaces, on which the real mail software and the real agent run and really die.

What it is
    A *lab* is a set of *machines* on one network. Each machine has its own hostname, addresses, process tree and its
    own ``/etc``, ``/var``, ``/root``, ``/home``, ``/srv`` (on a disk image of its own) and ``/run``, ``/tmp``,
    ``/dev/shm`` (in memory); the programs under ``/usr`` and ``/opt`` are the host's, read-only. Several labs run at
    once.

Terms
    ========== ==================================================================================================
    holder     one process per lab: init of the process namespace that all machines live in, and owner of the switch and
               of the disks' mounts. When it dies the kernel takes the whole lab with it
    switch     a bridge in the holder's network namespace; one port (veth) per machine. The host is not plugged in
    init       process 1 of a machine: reaps, runs commands sent to it, and supervises the machine's *units*
    unit       a program kept running (``supervisor.py``): the lab's equivalent of a systemd service
    disk       an ext4 image in a sparse file, loop-mounted: fanotify marks on it hear nobody else; it can lose power
    shared     a folder of the lab, ``/media/shared`` on every machine: where a vault outlives all disks
    power cut  port off, every process killed, and what the disk had not yet synced is dropped (``FS_IOC_SHUTDOWN``)
    cut        a rule on the switch that drops frames of one machine towards another
    backend    how machines are made: ``namespaces``, or ``processes`` where those are not permitted
    ========== ==================================================================================================

What it stores
    ``/run/holdfast-lab/<lab>/lab.json`` (``spec.LabState``: everything needed to find and end the lab), mount points
    beside it; disk images in the folder given, else in ``/dev/shm/holdfast-lab/<lab>/`` where memory is plenty, else
    in ``/var/tmp/holdfast-lab/<lab>/`` (why: ``store.disks_folder``), those of single machines elsewhere where that was
    asked for (``LabSpec.disks_of``). Nothing else; ``down`` removes all.

Invariants
    - ``down`` works on whatever is left of a lab, however it was left, and may be repeated.
    - State is written before the first thing that would have to be cleaned up exists.
    - A machine keeps its name, hardware address, addresses and cuts over any number of kills and starts.
    - No process of a machine survives its init (kernel's promise, pid_namespaces(7)).

What it does not promise
    Not a security boundary: processes are root with all rights over the shared kernel. One clock and one kernel for all
    machines. A frozen machine's kernel still answers ARP and completes TCP handshakes. No delay or loss on links (use a
    proxy). A power cut loses what was not synced, but never tears a sector or lies about a flush as a bad disk might.
"""
