"""The gates' own way to the log's side streams: one connection, made when a server answers, and the relay key."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from holdfast.changes.names import SegmentName
from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.gate.options import LogOptions
from holdfast.log.connection import Connection, LogConnection
from holdfast.log.side import SideShape, SideStream
from holdfast.log.side_seal import RelayKey
from holdfast.log.side_stream import JetStreamSide, ensure_side_stream
from holdfast.log.trust import TlsFiles

AGAIN_SECONDS: Final = 5.0
_log = logging.getLogger("holdfast.gate")


class SideStreams:
    """Of one event loop."""

    def __init__(self, options: LogOptions, name: str) -> None:
        """Connects in the background. Raises ConfigurationError (no relay key)."""
        self._options = options
        try:
            self._key = RelayKey(bytes.fromhex(Path(options.relay_key).read_text().strip()))
        except (OSError, ValueError) as error:
            hint = "`holdfast trust renew` where `holdfast init` ran, then `holdfast join` with its bundle here."
            raise ConfigurationError(f"{options.relay_key} cannot be read: {error}", hint=hint) from None
        self._connection = Connection.begin(
            LogConnection(options.urls, TlsFiles.inside(Path(options.tls)), name=f"{name} gates")
        )

    def stream(self, name: str) -> SideStream:
        """It need not be there yet."""
        segment = SegmentName(self._options.segment)
        return self._key.sealed(JetStreamSide(self._connection, segment, name), name)

    async def ensure(self, shape: SideShape) -> None:
        """Make it, or change it to *shape*. Raises LogUnavailable, LogFull, ApiError."""
        segment = SegmentName(self._options.segment)
        await ensure_side_stream(self._connection, segment, shape, replicas=self._options.replicas)

    async def ensure_in_time(self, shape: SideShape) -> None:
        """The same, for as long as it takes."""
        while True:
            try:
                await self.ensure(shape)
            except HoldfastError as error:
                _log.warning("the stream %s is not there yet: %s", shape.name, error)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    async def close(self) -> None:
        await self._connection.close()
