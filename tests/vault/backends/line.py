"""A bad line: a TCP proxy that cuts, swallows, stalls or answers in the server's place."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

PIECE_BYTES: Final = 4096
_BODY: Final = b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
SLOW_DOWN: Final = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY


@dataclass
class Fault:
    """What happens once *after_up_bytes* more bytes went to the server: ``cut`` (both ends), ``swallow`` (the answer to
    what went, then cut), ``stall`` (nothing passes any more), ``answer`` (with *text*, then cut)."""

    kind: str
    after_up_bytes: int = 0
    text: bytes = b""


class BadLine:
    """Listens on ``port`` and passes on to *target*. Faults come one after the other, each once."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._up_bytes = 0
        self._sockets: set[socket.socket] = set()
        self.struck = 0
        self.down_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, *faults: Fault) -> None:
        """From new connections on: those that stand are cut."""
        with self._lock:
            self._faults, self._up_bytes = list(faults), 0
        self.cut()

    def cut(self) -> None:
        for some in list(self._sockets):
            with suppress(OSError):
                some.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            for some in (client, server):
                some.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            state = _Pair(client, server)
            threading.Thread(target=self._up, args=(state,), daemon=True).start()
            threading.Thread(target=self._down, args=(state,), daemon=True).start()

    def _up(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(PIECE_BYTES):
                fault, passed = self._due(data)
                pair.server.sendall(data[:passed])
                if fault is not None:
                    self._strike(fault, pair)
                    if fault.kind in ("cut", "answer"):
                        break
                    if fault.kind == "swallow":
                        pair.server.sendall(data[passed:])
        self._end(pair)

    def _due(self, data: bytes) -> tuple[Fault | None, int]:
        with self._lock:
            if not self._faults:
                return None, len(data)
            before = self._up_bytes
            self._up_bytes += len(data)
            if self._up_bytes <= self._faults[0].after_up_bytes:
                return None, len(data)
            fault = self._faults.pop(0)
            self._up_bytes = 0
            self.struck += 1
            return fault, max(fault.after_up_bytes - before, 0)

    def _strike(self, fault: Fault, pair: _Pair) -> None:
        if fault.kind == "answer":
            with suppress(OSError):
                pair.client.sendall(fault.text)
        pair.mode = fault.kind

    def _down(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(PIECE_BYTES):
                if pair.mode == "swallow":
                    break
                if pair.mode == "stall":
                    continue
                self.down_bytes += len(data)
                pair.client.sendall(data)
        if pair.mode != "stall":
            self._end(pair)

    def _end(self, pair: _Pair) -> None:
        for some in (pair.client, pair.server):
            with suppress(OSError):
                some.shutdown(socket.SHUT_RDWR)
            some.close()
        with self._lock:
            self._sockets -= {pair.client, pair.server}


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.mode = ""
