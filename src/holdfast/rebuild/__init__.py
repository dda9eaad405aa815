"""A machine rebuilt from the vault: from a bare system to running mail, in one command.

Terms
    *survey*: what of an instant is put where: configuration, units, users. *unit*: what comes into place by one rename,
    usually an account. *ordered*: mail flows first, then accounts come back one by one, the last active first.
    *wall*: an empty directory nobody may enter, at the place of an account that is not back yet. *book*: what a rebuild
    has done, on the machine's disk, so that an interrupted one goes on.

Parts
    ``survey``    the instant looked through: units with their sizes and last activity; pure but for reading the vault
    ``software``  packages: what is missing, at which versions, installed by apt
    ``users``     users and groups that files and programs need
    ``settle``    configuration put into ``/etc``, file by file; what was there before is kept aside
    ``place``     units restored beside their place and renamed into it; walls
    ``doors``     who is not back yet cannot log in, and mail for them waits
    ``plan``      what will be done, and what speaks against it: a value, shown before anything happens
    ``book``      the state that outlives an interruption, and where the time went
    ``machine``   the steps, in order
    ``joining``   afterwards: whether the agent came to its role, and when the log is ordered anew for that

What it stores
    ``/var/lib/holdfast/rebuild/``: the book, the configuration as restored, what was replaced (``aside/``). A tree's
    ``.holdfast/rebuild`` while units are restored there.

Invariants
    Nothing that stands on the machine is overwritten without being kept aside. Nobody sees half an account: until the
    rename its place is a wall, so that no program makes a fresh mailbox there; mail for it is answered with a temporary
    failure and waits in Postfix's queue; a login is answered ``[UNAVAILABLE]``. What is in place was on disk before.

What it does not promise
    Data in database servers: dumps are put back as files, loading them is the administrator's. The mail queue of the
    dead machine is not put back: its messages may have been delivered. Hard links between accounts become files of
    their own. Where Dovecot's configuration does not tell accounts' places there is no ordered mode.
"""
