"""An IMAP session of one account on this machine, without its password: ``doveadm exec imap -u USER``, as root.

The program is Dovecot's own ``imap``, which greets with PREAUTH (RFC 9051 7.1.4) and works under the account's uid,
with its quota, plugins and locks, beside whatever other sessions the account has. It needs the running server's userdb.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from holdfast.errors import HoldfastError, Unreachable
from holdfast.mail import imap_exchange as exchange
from holdfast.mail import imap_syntax as syntax
from holdfast.mail.imap_exchange import Answer
from holdfast.mail.imap_syntax import Value

ANSWER_SECONDS_MAX: Final = 300.0
"""A first FETCH over a large folder without a cache reads every message."""
LITERAL_BYTES_MAX: Final = 1 << 30
LINE_BYTES_MAX: Final = 16 << 20
"""A FETCH line without literals is short; a list of 100,000 UIDs is 800 KB."""
READ_BYTES: Final = 1 << 18
_LEAVE_SECONDS: Final = 5.0
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ImapRefused(HoldfastError):
    """The server said NO or BAD. *code*: its response code (``OVERQUOTA``), empty where there is none."""

    def __init__(self, message: str, code: str) -> None:
        hints = {
            "OVERQUOTA": "The account's quota is full: raise it for the time, then repeat.",
            "NOPERM": "The account has no right to that folder.",
        }
        super().__init__(message, hint=hints.get(code, ""))
        self.code = code


class ImapLost(Unreachable):
    """The session could not begin, or ended: what was under way may or may not have been done."""


class Namespace:
    """How the server calls folders: *prefix* before all but the INBOX, *separator* between levels."""

    def __init__(self, prefix: str, separator: str) -> None:
        self.prefix = prefix
        self.separator = separator

    def server_name(self, folder: str) -> str:
        """Of a folder with ``/`` between its levels. A level that holds the separator gets ``_`` for it."""
        levels = folder.split("/")
        if levels[0].upper() == "INBOX":
            levels[0] = "INBOX"
            if len(levels) == 1:
                return "INBOX"
        name = self.separator.join(level.replace(self.separator, "_") for level in levels)
        return name if name.startswith(self.prefix) else self.prefix + name


class ImapSession:
    """One account's session. Leave it with ``with``, or :meth:`close`."""

    def __init__(self, user: str, argv: Sequence[str], *, answer_seconds: float = ANSWER_SECONDS_MAX) -> None:
        """Raises ImapLost: no such user, no server, not root."""
        self.user = user
        self.selected = ""
        """The folder that is open."""
        self._between = False
        """No command is under way. Leaving in the middle of one, LOGOUT could become part of a message."""
        self._answer_seconds = answer_seconds
        self._exchange = exchange.Exchange()
        self._buffer = bytearray()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        environment = {"LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise ImapLost(f"{argv[0]} cannot be run: {error.strerror}", hint="Is Dovecot installed here?") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        greeting = self._response(self._deadline())[0]
        if not greeting.upper().startswith(b"* PREAUTH"):
            raise self._lost(greeting.decode("utf-8", "replace"))
        self._between = True

    def __enter__(self) -> ImapSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, text: str, *literals: bytes | str) -> Answer:
        """*text* and its literals; the answer once the server said OK. Raises ImapRefused, ImapLost."""
        deadline = self._deadline()
        self._between = False
        self._write(b"".join(self._exchange.begin(text, *literals)), deadline)
        while True:
            answer = self._exchange.take(self._response(deadline))
            if answer is None:
                continue
            if answer.status == "BYE":
                raise self._lost(answer.text)
            self._between = True
            if answer.status != "OK":
                code = next(iter(answer.codes), "")
                raise ImapRefused(f"{self.user}: {text.split(' ')[0]}: {answer.text}", code)
            return answer

    def namespace(self) -> Namespace:
        """The account's own (RFC 2342)."""
        for response in self.command("NAMESPACE").untagged:
            if exchange.word(response, 0) == "NAMESPACE" and isinstance(response[1], list) and response[1]:
                first = response[1][0]
                if isinstance(first, list) and isinstance(first[0], bytes) and isinstance(first[1], bytes):
                    return Namespace(syntax.folder_from_wire(first[0]), first[1].decode())
        return Namespace("", "/")

    def folders(self) -> list[str]:
        return exchange.listed(self.command('LIST "" "*"'), "LIST")

    def subscriptions(self) -> list[str]:
        return exchange.listed(self.command('LSUB "" "*"'), "LSUB")

    def examine(self, folder: str, *, to_write: bool = False) -> int:
        """Open it, to read only unless *to_write*; how many messages it has."""
        self.selected = ""
        answer = self.command(f"{'SELECT' if to_write else 'EXAMINE'} {syntax.folder_to_wire(folder)}")
        self.selected = folder
        for response in answer.untagged:
            if exchange.word(response, 1) == "EXISTS":
                return int(exchange.word(response, 0))
        return 0

    def fetch(self, uids: str, items: str) -> dict[int, dict[str, Value]]:
        return exchange.by_uid(self.command(f"UID FETCH {uids} {items}"))

    def on_folder(self, verb: str, folder: str) -> None:
        """CREATE, SUBSCRIBE."""
        self.command(f"{verb} {syntax.folder_to_wire(folder)}")

    def append(self, folder: str, messages: Sequence[tuple[bytes, tuple[str, ...], int]]) -> str:
        """APPEND of (content, flags, received in seconds since 1970), all or none (MULTIAPPEND, RFC 3502).

        UIDVALIDITY and UIDs, as APPENDUID tells them (RFC 4315); empty when it does not.
        """
        parts: list[bytes | str] = []
        for content, flags, received_s in messages:
            parts += [f' ({" ".join(flags)}) "{internal_date(received_s)}"', content]
        return self.command(f"APPEND {syntax.folder_to_wire(folder)}", *parts).codes.get("APPENDUID", "")

    def close(self) -> None:
        """Take leave; what was answered stays, whatever happens here."""
        try:
            if self._process.poll() is None:
                if not self._between:
                    raise ImapLost(f"{self.user}: left in the middle of a command")
                self._write(b"".join(self._exchange.begin("LOGOUT")), time.monotonic() + _LEAVE_SECONDS)
                self._process.wait(_LEAVE_SECONDS)
        except (ImapLost, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        finally:
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                if pipe is not None:
                    pipe.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._answer_seconds

    def _lost(self, what: str) -> ImapLost:
        """With what the program said last on standard error."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read(READ_BYTES).decode("utf-8", "replace").splitlines()]
        said = next((line for line in lines if line and "Info:" not in line), "")
        hint = "Does the account exist (`doveadm user`), and does Dovecot run? Run this as root."
        return ImapLost(f"{self.user}: no IMAP session: {said or what}", hint=hint, retry=True)

    def _response(self, deadline: float) -> list[bytes]:
        parts = [self._line(deadline)]
        while (size := syntax.literal_size(parts[-1])) is not None:
            if size > LITERAL_BYTES_MAX:
                raise self._lost(f"a literal of {size} bytes")
            while len(self._buffer) < size:
                self._read(deadline)
            parts.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
            parts.append(self._line(deadline))
        return parts

    def _line(self, deadline: float) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > LINE_BYTES_MAX:
                raise self._lost("a line without end")
            self._read(deadline)
        taken = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return taken.removesuffix(b"\r")

    def _read(self, deadline: float) -> None:
        if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise self._lost(f"no answer within {self._answer_seconds:.0f} s")
        got = os.read(self._out, READ_BYTES)
        if not got:
            raise self._lost("it ended")
        self._buffer += got

    def _write(self, data: bytes, deadline: float) -> None:
        """All of *data*; what the server says meanwhile is kept, so that neither waits for the other."""
        rest = memoryview(data)
        while rest:
            left = max(0.0, deadline - time.monotonic())
            readable, writable, _ = select.select([self._out], [self._in], [], left)
            if not readable and not writable:
                raise self._lost(f"it took nothing for {self._answer_seconds:.0f} s")
            if readable:
                self._read(deadline)
            if writable:
                try:
                    rest = rest[os.write(self._in, rest[:READ_BYTES]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise self._lost("it ended") from None


def session_command(user: str, config: str = "") -> list[str]:
    """*config*: Dovecot's main file, where it is not the usual one."""
    return ["doveadm", *(("-c", config) if config else ()), "exec", "imap", "-u", user]


def internal_date(seconds: int) -> str:
    """RFC 9051 9, date-time, in UTC."""
    when = time.gmtime(max(0, seconds))
    clock = f"{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02}"
    return f"{when.tm_mday:02}-{MONTHS[when.tm_mon - 1]}-{when.tm_year:04} {clock} +0000"
