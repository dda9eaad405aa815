"""How to speak with a machine's init: JSON packets over a SOCK_SEQPACKET socket in the machine's ``/run``.

One connection is one request. A command sent to init runs as init's child, so it lies in the machine's namespaces and
control group, is frozen and killed with it, and a frozen machine does not answer: as it would be with a real one.
Descriptors 0, 1 and 2 of the command travel with the request (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.supervisor import Unit, UnitStatus

SOCKET: Final = "run/holdfast-lab.sock"
"""Below the machine's root."""
PACKET_BYTES_MAX: Final = 128 << 10
"""Below net.core.wmem_default (208 KiB): a packet that is larger would be refused by the kernel."""
REPLY_SECONDS_MAX: Final = 10.0
"""Init answers within milliseconds; later than this it is frozen or gone."""


class Run(msgspec.Struct, tag="run", kw_only=True):
    """Run a command. ``attached``: it is killed when this connection closes. ``env`` is added to the machine's."""

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = "/"
    user: str | None = None
    attached: bool = False


class Signal(msgspec.Struct, tag="signal"):
    """To the process group of the command this connection has started."""

    number: int


class UnitCall(msgspec.Struct, tag="unit", kw_only=True):
    """Do something with a unit: ``add`` takes ``unit``, the others ``name``; ``status`` neither."""

    verb: Literal["add", "remove", "start", "stop", "status"]
    name: str = ""
    unit: Unit | None = None


class Started(msgspec.Struct, tag="started"):
    pid: int
    """In the machine's own numbering."""


class Exited(msgspec.Struct, tag="exited"):
    code: int
    """As subprocess has it: -9 is killed by SIGKILL."""


class Refusal(msgspec.Struct, tag="refusal"):
    reason: str


class Units(msgspec.Struct, tag="units"):
    units: list[UnitStatus]


Request: TypeAlias = Run | Signal | UnitCall
Reply: TypeAlias = Started | Exited | Refusal | Units

_requests: Final = msgspec.json.Decoder(Request)
_replies: Final = msgspec.json.Decoder(Reply)


def decode_request(packet: bytes) -> Request:
    """Raises msgspec.DecodeError (ValidationError included)."""
    request: Request = _requests.decode(packet)
    return request


def encode(message: Request | Reply) -> bytes:
    return msgspec.json.encode(message)


class Connection:
    """A caller's end. ``who`` is for error messages."""

    def __init__(self, path: Path, who: str) -> None:
        self.who = who
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(REPLY_SECONDS_MAX)
        try:
            self.socket.connect(os.fspath(path))
        except OSError as error:
            self.socket.close()
            raise LabError(
                f"{who} does not answer ({error})", hint="Is it running? See 'holdfast lab status'."
            ) from error

    def close(self) -> None:
        self.socket.close()

    def send(self, request: Request, descriptors: tuple[int, ...] = ()) -> None:
        """Raises LabError."""
        packet = encode(request)
        if len(packet) > PACKET_BYTES_MAX:
            raise LabError(
                f"the command for {self.who} takes {len(packet)} bytes", hint="Pass long input by file or stdin."
            )
        try:
            socket.send_fds(self.socket, [packet], list(descriptors))
        except OSError as error:
            raise LabError(f"{self.who} does not answer ({error})") from error

    def receive(self, timeout: float | None) -> Reply:
        """The next reply. Raises TimeoutError, LabError (the machine died, or refused)."""
        self.socket.settimeout(timeout)
        try:
            packet = self.socket.recv(PACKET_BYTES_MAX)
        except (TimeoutError, BlockingIOError) as error:
            raise TimeoutError(f"{self.who} has not replied within {timeout} s") from error
        except OSError as error:
            raise LabError(f"{self.who} died ({error})") from error
        if not packet:
            raise LabError(f"{self.who} died", hint="It was killed or stopped while the command ran.")
        reply: Reply = _replies.decode(packet)
        if isinstance(reply, Refusal):
            raise LabError(f"{self.who}: {reply.reason}")
        return reply


class RemoteProcess:
    """A command running in a machine."""

    def __init__(self, connection: Connection, argv: tuple[str, ...], pid: int) -> None:
        self.argv = argv
        self.pid = pid
        """In the machine's own numbering."""
        self.code: int | None = None
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        """Exit code as subprocess has it. Raises TimeoutError, LabError (the machine died)."""
        if self.code is None:
            reply = self._connection.receive(timeout)
            assert isinstance(reply, Exited), reply
            self.code = reply.code
            self._connection.close()
        return self.code

    def poll(self) -> int | None:
        """Exit code, or None while it runs. Raises LabError (the machine died)."""
        try:
            return self.wait(timeout=0)
        except TimeoutError:
            return None

    def signal(self, number: int) -> None:
        """To its process group; nothing happens when it has ended. Raises LabError."""
        if self.code is None:
            self._connection.send(Signal(number))

    def detach(self) -> None:
        """Stop listening for its end; an attached command is killed by this."""
        self._connection.close()


def start(path: Path, who: str, request: Run, descriptors: tuple[int, int, int]) -> RemoteProcess:
    """Have the init behind socket *path* run a command with *descriptors* as its 0, 1 and 2. Raises LabError."""
    connection = Connection(path, who)
    try:
        connection.send(request, descriptors)
        reply = _reply(connection)
        assert isinstance(reply, Started), reply
    except LabError:
        connection.close()
        raise
    return RemoteProcess(connection, request.argv, reply.pid)


def call_units(path: Path, who: str, request: UnitCall) -> list[UnitStatus]:
    """The units after *request* was done. Raises LabError."""
    connection = Connection(path, who)
    try:
        connection.send(request)
        reply = _reply(connection)
        assert isinstance(reply, Units), reply
        return reply.units
    finally:
        connection.close()


def _reply(connection: Connection) -> Reply:
    try:
        return connection.receive(REPLY_SECONDS_MAX)
    except TimeoutError as error:
        raise LabError(
            f"{connection.who} does not answer", hint="Is it frozen? 'holdfast lab thaw' wakes it."
        ) from error
