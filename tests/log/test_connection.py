"""A connection dials again, wherever in its beginning the server goes away."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.changes.names import MachineName
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.trust import Authority, TlsFiles

INFO = b'INFO {"server_name":"main","tls_required":true}\r\n'
DIALS = 4
SECONDS_MAX = 20.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("trust")
    return Authority.create("site", folder / "ca").issue(MachineName("main"), ["127.0.0.1"]).write(folder / "main")


@pytest.mark.parametrize("before", ["INFO", "the client's hello", "an answer to it"])
def test_a_server_that_dies_at_the_greeting_is_dialled_again_and_again(files: TlsFiles, before: str) -> None:
    """As one does that is killed, and started, and killed."""

    async def play() -> None:
        dials: asyncio.Queue[None] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            dials.put_nowait(None)
            if before != "INFO":
                writer.write(INFO)
            if before == "an answer to it":
                await reader.read(4096)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = Connection.begin(LogConnection((f"tls://127.0.0.1:{port}",), files))
        try:
            async with asyncio.timeout(SECONDS_MAX):
                for _ in range(DIALS):
                    await dials.get()
        finally:
            await connection.close()
            server.close()

    asyncio.run(play())
