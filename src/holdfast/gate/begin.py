"""How the gates' process is told what to do: one message over its standard input, which is a socket, and with it the
listening sockets. Until then it has only loaded its programs, which takes most of a second on a busy machine: a standby
has one ready."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from holdfast.gate.options import GateOptions

BYTES_MAX: Final = 64 * 1024
_FIELDS: Final = tuple(name for name in GateOptions.__struct_fields__ if name.endswith("_fd"))


def channel() -> tuple[socket.socket, socket.socket]:
    """The agent's end, and the one for the process's standard input."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def tell(here: socket.socket, options: GateOptions, listening: Mapping[str, socket.socket]) -> None:
    """*listening*: by the name of the option. Raises OSError (the process is gone)."""
    places = {name: place for place, name in enumerate(listening, start=1)}
    data = msgspec.json.encode(msgspec.structs.replace(options, **places))
    socket.send_fds(here, [data], [opened.fileno() for opened in listening.values()])


def hear() -> GateOptions | None:
    """Wait for it. None: whoever started this process has ended without a word."""
    with socket.socket(fileno=os.dup(0)) as there:
        data, numbers, _, _ = socket.recv_fds(there, BYTES_MAX, len(_FIELDS))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if not data:
        return None
    options = msgspec.json.decode(data, type=GateOptions)
    told = {name: numbers[place - 1] for name in _FIELDS if (place := getattr(options, name))}
    return msgspec.structs.replace(options, **told)
