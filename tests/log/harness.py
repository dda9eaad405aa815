"""Real log servers on loopback addresses, with TLS: started, killed, started again; and a proxy that cuts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from holdfast.changes.names import MachineName, SegmentName
from holdfast.errors import HoldfastError
from holdfast.log import jetstream
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.server import LogServer
from holdfast.log.server_config import Peer, ServerSettings
from holdfast.log.trust import Authority, Role, TlsFiles

DEADLINE_SECONDS = 30.0
SIDE_SEGMENTS = tuple(SegmentName(f"side{number}") for number in range(40))
"""Segments whose side streams a relay may use: it must be known when the servers start."""
T = TypeVar("T")
NAMES = (MachineName("main"), MachineName("backup"), MachineName("relay"))


def free_port(address: str) -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


async def eventually(what: str, ask: Callable[[], Awaitable[T | None]], seconds: float = DEADLINE_SECONDS) -> T:
    """Ask until the answer is not None (nor False). An error of ours counts as "not yet"."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    last: object = None
    while loop.time() < deadline:
        try:
            answer = await ask()
        except HoldfastError as error:
            last = error
        else:
            last = answer
            if answer is not None and answer is not False:
                return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in {seconds} s: {what}; last: {last}")


class Servers:
    """One or three machines with a server each."""

    def __init__(self, folder: Path, names: tuple[MachineName, ...]) -> None:
        self.names = names
        self.authority = Authority.create("site", folder / "ca")
        self.tls: dict[MachineName, TlsFiles] = {}
        self.servers: dict[MachineName, LogServer] = {}
        self._connections: list[Connection] = []
        number = secrets.randbelow(200) + 20
        addresses = {name: f"127.0.{number}.{place + 1}" for place, name in enumerate(names)}
        ports = {name: (free_port(address), free_port(address)) for name, address in addresses.items()}
        for name in names:
            role = Role.RELAY if name == "relay" else Role.MAIL
            self.tls[name] = self.authority.issue(name, [addresses[name]], role=role).write(folder / name / "tls")
            settings = ServerSettings(
                machine=name,
                site="site",
                folder=folder / name,
                tls=self.tls[name],
                address=addresses[name],
                client_port=ports[name][0],
                route_port=ports[name][1],
                peers=tuple(Peer(addresses[peer], ports[peer][1]) for peer in names if peer != name),
                segments=SIDE_SEGMENTS,
                store_bytes_max=8 * 1024**3,
            )
            self.servers[name] = LogServer(settings)

    async def start(self) -> None:
        await asyncio.gather(*(server.start() for server in self.servers.values()))

    async def stop(self) -> None:
        for connection in self._connections:
            await connection.close()
        await asyncio.gather(*(server.stop() for server in self.servers.values()))

    def settings(self, name: MachineName, *, only_own: bool = False) -> LogConnection:
        urls = [self.servers[name].url]
        if not only_own:
            urls += [self.servers[other].url for other in self.names if other != name]
        return LogConnection(tuple(urls), self.tls[name], name=name)

    async def connect(self, name: MachineName, *, only_own: bool = False) -> Connection:
        connection = await Connection.open(self.settings(name, only_own=only_own))
        self._connections.append(connection)
        return connection

    def kill(self, *names: MachineName) -> None:
        """kill -9; the supervisor starts them again."""
        for name in names or self.names:
            pid = self.servers[name].pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)

    async def healthy(self, log: jetstream.JetStreamLog) -> None:
        """Until every replica is current again."""

        async def ask() -> bool:
            info = await log.info()
            return len(info.replicas) == len(self.names) - 1 and all(
                replica.current and not replica.offline for replica in info.replicas
            )

        await eventually("all replicas current", ask)


def new_segment() -> SegmentName:
    return SegmentName(f"s{secrets.token_hex(4)}")


class CuttingProxy:
    """A TCP proxy in front of one server that can swallow what the server answers, and cut."""

    def __init__(self, target: str, port: int) -> None:
        self._target = (target, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallow_answers = False
        self.swallowed = asyncio.Event()

    @property
    def url(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"tls://{host}:{port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._target[0], 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers |= {writer, far_writer}
            await asyncio.gather(self._pump(reader, far_writer, False), self._pump(far_reader, writer, True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        while data := await reader.read(65536):
            if answers and self.swallow_answers:
                self.swallowed.set()
                continue
            writer.write(data)
        writer.close()


async def take(records: AsyncIterator[T], count: int, seconds: float = DEADLINE_SECONDS) -> list[T]:
    """The first *count* of an endless stream."""
    taken: list[T] = []
    async with asyncio.timeout(seconds):
        async for record in records:
            taken.append(record)
            if len(taken) == count:
                break
    return taken
