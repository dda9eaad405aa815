"""The process that a lab is: ``python -m holdfast.drill.lab.holder NAME`` prints its pid, and stays when told to.

Told by a line on standard input, after the pid has been written down: a holder nobody knows of ends by itself.

It makes a process, mount and network namespace, becomes process 1 there, and does nothing but reap. Machines are made
inside its process namespace, so its death is the death of every process of the lab (pid_namespaces(7)), and with them
go mounts, loop devices and network. The mounts of the host are followed (slave), never changed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from holdfast.drill.lab import linux


def main(lab: str) -> None:
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        return
    linux.process_name(f"lab-{lab}")
    linux.mount("", "/", flags=linux.MS_REC | linux.MS_SLAVE)
    for which in ("all", "default"):  # the switch carries frames; it has no addresses of its own
        Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    if not sys.stdin.readline():
        return
    os.chdir("/")
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
