"""One line of progress on standard error: bytes, files, speed, time left. On no terminal: a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from holdfast.console.words import bytes_text, clock_text
from holdfast.vault.estimate import Estimate
from holdfast.vault.patient import Transfer

TERMINAL_SECONDS: Final = 0.2
PLAIN_SECONDS: Final = 60.0
"""In a journal: often enough to see that it lives."""
WIDTH: Final = 79


class Progress:
    """*total_bytes* 0: not known (yet); set it when it is. ``sent_bytes``: what the store got so far. ``trouble``: a
    sentence that takes the line's place while it is not empty. Leaving it wipes the line."""

    def __init__(
        self,
        what: str,
        total_bytes: int = 0,
        *,
        quiet: bool = False,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_bytes = total_bytes
        self.trouble = ""
        self.sent_bytes = 0
        self._what = what
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._quiet = quiet
        self._clock = clock
        self._began = clock()
        self._next = self._began + (0.0 if self._terminal else PLAIN_SECONDS)
        self._shown = False
        self._last = 0, 0
        self._estimate = Estimate(total_bytes, self._began)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Wipe the line, before something else is printed."""
        if self._terminal and self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._shown = False

    @property
    def shown(self) -> bool:
        """Whether somebody looks: then a total is worth some work."""
        return self._terminal and not self._quiet

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    def at(self, done_bytes: int, files: int = 0) -> None:
        """Call it as often as you like."""
        now = self._clock()
        self._last = done_bytes, files
        if self._quiet or now < self._next:
            return
        self._next = now + (TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS)
        line = self.line(done_bytes, files)
        self._out.write(f"\r\x1b[K{line[:WIDTH]}" if self._terminal else f"{line}\n")
        self._out.flush()
        self._shown = True

    def transfer(self, moved: Transfer) -> None:
        """For the store: what went over, and that it waits for a second try."""
        self.sent_bytes = moved.put_bytes
        if moved.trouble and moved.trouble != self.trouble:
            self._next = 0.0
        self.trouble = moved.trouble
        if moved.trouble or moved.put_bytes:
            self.at(*self._last)

    def line(self, done_bytes: int, files: int) -> str:
        if self.trouble:
            return f"{self._what}  trying again: {self.trouble}"
        self._estimate.total = self.total_bytes
        self._estimate.update(done_bytes, self._clock())
        parts = [self._what]
        if files:
            parts.append(f"{files:,} files")
        of = f" of {bytes_text(self.total_bytes)}" if self.total_bytes > done_bytes else ""
        parts.append(f"{bytes_text(done_bytes)}{of}")
        if of and self._estimate.per_second > 0:
            parts.append(f"{bytes_text(self._estimate.per_second)}/s")
        if self.sent_bytes:
            parts.append(f"{bytes_text(self.sent_bytes)} sent")
        left = self._estimate.left_seconds() if of else None
        if left is not None:
            parts.append(f"{clock_text(left)} left")
        return "  ".join(parts)
