"""What a client of IMAP or ManageSieve sends: lines, and between them literals of an announced length. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast.gate.stream import ProtocolBroken


class FromClient:
    """Bytes that wait to be read. Which line announces a literal, the one who reads the lines knows."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._waiting = b""
        self.literal = 0
        """Bytes still to come of a literal: to be set when a line has announced one."""

    def feed(self, data: bytes) -> None:
        self._waiting += data

    def pieces(self, wanted: Callable[[], bool]) -> Iterator[tuple[bytes, bool]]:
        """Whole lines (True) and parts of literals (False), in order, for as long as they are *wanted*.

        To be taken to its end. Raises ProtocolBroken when a line is too long.
        """
        at, data = 0, self._waiting
        while at < len(data) and wanted():
            if self.literal:
                end = min(at + self.literal, len(data))
                self.literal -= end - at
                yield data[at:end], False
            else:
                end = data.find(b"\n", at) + 1
                if (end or len(data)) - at > self._line_bytes_max:
                    raise ProtocolBroken(f"a command line of more than {self._line_bytes_max} bytes")
                if not end:
                    break
                yield data[at:end], True
            at = end
        self._waiting = data[at:]
