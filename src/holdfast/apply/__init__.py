"""Changes into a tree: what a standby, a restore and a moved account have in common.

``syscalls``  the system calls Python does not offer
``place``     safe steps in the filesystem below one root: nothing is reached through a symlink
``content``   bytes and metadata of one thing
"""
