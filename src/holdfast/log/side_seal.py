"""What goes through a side stream, sealed: the log's servers keep it, and cannot read or invent it.

A sealed payload: ``HFS1``, a salt (16 bytes, one for each process that seals), a nonce (12 bytes: a counter), then
AES-256-GCM. Key: HKDF-SHA256 of the relay key, the salt, and ``holdfast side`` with the stream's name. Additional data:
the subject; so a message cannot be moved to another one. It says nothing about messages left out or repeated.

The relay key is on every machine of the site, relays included; the segment's key, which opens the log, is not on a
relay.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast.errors import HoldfastError
from holdfast.log.side import BEFORE_FIRST, Place, SideMessage, SideState, SideStream

MAGIC: Final = b"HFS1"
KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
HEAD_BYTES: Final = len(MAGIC) + SALT_BYTES + NONCE_BYTES
SALTS_KEPT: Final = 64
"""Keys of other machines' processes that are kept at hand: two a machine and restart."""


class SealBroken(HoldfastError):
    """A payload that was not sealed with this key for this subject."""


class RelayKey:
    """The secret that seals side streams."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise HoldfastError(f"a relay key has {KEY_BYTES} bytes, this one {len(secret)}", hint="Join again.")
        self.secret = secret

    @classmethod
    def generate(cls) -> RelayKey:
        return cls(os.urandom(KEY_BYTES))

    def sealed(self, stream: SideStream, name: str) -> SealedSide:
        """*stream*, whose name is *name*, through this key."""
        return SealedSide(stream, self, name)


class SealedSide:
    """A :class:`holdfast.log.side.SideStream` around another."""

    def __init__(self, stream: SideStream, key: RelayKey, name: str) -> None:
        self._stream = stream
        self._key, self._info = key, b"holdfast side " + name.encode()
        self._salt = os.urandom(SALT_BYTES)
        self._counter = 0
        self._cipher = lru_cache(maxsize=SALTS_KEPT)(self._derive)

    def _derive(self, salt: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=salt, info=self._info).derive(self._key.secret))

    def seal(self, subject: str, payload: bytes) -> bytes:
        self._counter += 1
        nonce = self._counter.to_bytes(NONCE_BYTES, "big")
        return MAGIC + self._salt + nonce + self._cipher(self._salt).encrypt(nonce, payload, subject.encode())

    def open(self, message: SideMessage) -> SideMessage:
        """Raises SealBroken."""
        sealed = message.payload
        salt, nonce = sealed[len(MAGIC) : len(MAGIC) + SALT_BYTES], sealed[len(MAGIC) + SALT_BYTES : HEAD_BYTES]
        try:
            if sealed[: len(MAGIC)] != MAGIC or len(sealed) < HEAD_BYTES:
                raise InvalidTag
            plain = self._cipher(salt).decrypt(nonce, sealed[HEAD_BYTES:], message.subject.encode())
        except InvalidTag:
            raise SealBroken(
                f"message {message.place} ({message.subject}) is not sealed with this site's relay key",
                hint="Has a machine an old relay.key? Join it again.",
            ) from None
        return message._replace(payload=plain)

    async def publish(self, subject: str, payload: bytes, *, once: str = "") -> Place:
        return await self._stream.publish(subject, self.seal(subject, payload), once=once)

    async def read(self, pattern: str = ">", *, after: Place = BEFORE_FIRST) -> AsyncIterator[SideMessage]:
        """One that does not open is left out; at the end, SealBroken is raised for the first of them."""
        broken: SealBroken | None = None
        async for message in self._stream.read(pattern, after=after):
            try:
                opened = self.open(message)
            except SealBroken as error:
                broken = broken or error
                continue
            yield opened
        if broken is not None:
            raise broken

    async def last(self, subject: str) -> SideMessage | None:
        found = await self._stream.last(subject)
        return None if found is None else self.open(found)

    async def purge(self, pattern: str) -> int:
        return await self._stream.purge(pattern)

    async def state(self) -> SideState:
        return await self._stream.state()
