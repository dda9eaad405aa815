"""Postfix's own processes as Debian's ``master.cf`` has them; what listens for mail stands before them. master(5)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

COLUMNS: Final = "# service type  private unpriv  chroot  wakeup  maxproc command + args\n"
_PROCESSES: Final = """\
pickup    unix  n       -       y       60      1       pickup
cleanup   unix  n       -       y       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
tlsmgr    unix  -       -       y       1000?   1       tlsmgr
rewrite   unix  -       -       y       -       -       trivial-rewrite
bounce    unix  -       -       y       -       0       bounce
defer     unix  -       -       y       -       0       bounce
trace     unix  -       -       y       -       0       bounce
verify    unix  -       -       y       -       1       verify
flush     unix  n       -       y       1000?   0       flush
proxymap  unix  -       -       n       -       -       proxymap
proxywrite unix -       -       n       -       1       proxymap
smtp      unix  -       -       y       -       -       smtp
relay     unix  -       -       y       -       -       smtp
        -o syslog_name=postfix/$service_name
showq     unix  n       -       y       -       -       showq
error     unix  -       -       y       -       -       error
retry     unix  -       -       y       -       -       error
discard   unix  -       -       y       -       -       discard
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       y       -       -       lmtp
anvil     unix  -       -       y       -       1       anvil
scache    unix  -       -       y       -       1       scache
postlog   unix-dgram n  -       n       -       1       postlogd
"""
_CHROOTED: Final = re.compile(r"(?m)^((?:\S+\s+){4})y")


def processes(
    *, without: Collection[str] = (), options: Mapping[str, Mapping[str, str]] | None = None, chroot: bool = True
) -> str:
    """The lines of all but the services named in *without*. *options*: service to parameters with values (``-o``).
    *chroot*: as Debian has it; else nothing runs in the queue's folder.
    """
    options = options or {}
    text = _PROCESSES if chroot else _CHROOTED.sub(r"\1n", _PROCESSES)
    services = re.split(r"(?m)^(?=\S)", text)[1:]  # a line that begins with a blank goes on with the one before
    assert {*without, *options} <= {service.split()[0] for service in services}
    return "".join(
        service + "".join(f"        -o {name}={value}\n" for name, value in options.get(service.split()[0], {}).items())
        for service in services
        if service.split()[0] not in without
    )
