"""What agents ask each other to do: hand over, resume, tell their trees, wait for a barrier.

Requests and answers travel over the log's bus and are sealed with the segment's key (AES-256-GCM, key by HKDF-SHA256
with info ``holdfast ask``; additional data: direction, asked machine, verb, and for an answer the request's nonce), so
neither a relay nor the log's servers can read, invent or change them.

A verb that changes something is only obeyed with a challenge: a token the asked machine gave out moments ago and takes
once. So a recorded request sent again does nothing.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast.changes.frame import KEY_BYTES, SegmentKey
from holdfast.changes.names import MachineName, SegmentName
from holdfast.errors import HoldfastError, Refused
from holdfast.log.port import Bus

NONCE_BYTES: Final = 12
CHALLENGES_MAX: Final = 64
"""Tokens given out and not used; older ones lapse."""
ANSWER_SECONDS: Final = 10.0
Answers = dict[str, Any]
Verb = Callable[[Answers], Awaitable[Answers]]


class AskFailed(HoldfastError):
    """The asked machine could not or would not."""


class Asks:
    """Asks other machines, and answers them."""

    def __init__(self, bus: Bus, segment: SegmentName, me: MachineName, key: SegmentKey) -> None:
        self._bus = bus
        self._segment = segment
        self._me = me
        self._cipher = AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=b"holdfast ask").derive(key.secret))
        self._verbs: dict[str, tuple[Verb, bool]] = {}
        self._challenges: OrderedDict[str, None] = OrderedDict()

    def _subject(self, machine: str) -> str:
        return f"hf.{self._segment}.ask.{machine}"

    def answer(self, verb: str, run: Verb, *, changes: bool) -> None:
        """Register what this machine does when asked *verb*; *changes* demands a challenge."""
        self._verbs[verb] = (run, changes)

    async def serve(self) -> None:
        """Begin to answer."""
        await self._bus.serve(self._subject(self._me), self._handle)

    async def ask(self, machine: str, verb: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Answers:
        """The answer of *machine*. Raises AskFailed, Unreachable."""
        return await self._send(machine, {"verb": verb, **arguments}, seconds)

    async def order(self, machine: str, verb: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Answers:
        """The same for a verb that changes something. Raises AskFailed, Unreachable."""
        challenge = (await self._send(machine, {"verb": "challenge"}, ANSWER_SECONDS))["challenge"]
        return await self._send(machine, {"verb": verb, "challenge": challenge, **arguments}, seconds)

    async def _send(self, machine: str, request: Answers, seconds: float) -> Answers:
        nonce = os.urandom(NONCE_BYTES)
        about = self._about(b"ask", machine, b"")
        sealed = nonce + self._cipher.encrypt(nonce, msgspec.json.encode(request), about)
        answer = await self._bus.request(self._subject(machine), sealed, timeout_seconds=seconds)
        reply = self._open(answer, self._about(b"answer", machine, nonce))
        if "error" in reply:
            raise AskFailed(f"{machine}: {reply['error']}", hint=reply.get("hint", ""), retry=reply.get("retry", False))
        return reply

    async def _handle(self, subject: str, payload: bytes) -> bytes:
        request = self._open(payload, self._about(b"ask", self._me, b""))
        try:
            reply = await self._obey(request)
        except HoldfastError as error:
            reply = {"error": error.message, "hint": error.hint, "retry": error.retry}
        nonce = os.urandom(NONCE_BYTES)
        about = self._about(b"answer", self._me, payload[:NONCE_BYTES])
        return nonce + self._cipher.encrypt(nonce, msgspec.json.encode(reply), about)

    async def _obey(self, request: Answers) -> Answers:
        verb = request.pop("verb", "")
        if verb == "challenge":
            token = os.urandom(16).hex()
            self._challenges[token] = None
            while len(self._challenges) > CHALLENGES_MAX:
                self._challenges.popitem(last=False)
            return {"challenge": token}
        if verb not in self._verbs:
            raise AskFailed(f"it does not know {verb!r}", hint="Run the same Holdfast on every machine.")
        run, changes = self._verbs[verb]
        if changes:
            token = request.pop("challenge", "")
            if token not in self._challenges:
                raise Refused(f"{verb} came with a challenge that is not (or no longer) valid")
            del self._challenges[token]
        return await run(request)

    def _open(self, sealed: bytes, about: bytes) -> Answers:
        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
            return msgspec.json.decode(plain, type=dict[str, Any])
        except (InvalidTag, ValueError, msgspec.DecodeError):
            raise AskFailed(
                "a message between agents is damaged or forged",
                hint="Do both machines run the same Holdfast and hold the same segment key?",
            ) from None

    @staticmethod
    def _about(direction: bytes, machine: str, nonce: bytes) -> bytes:
        return b"|".join((direction, machine.encode(), nonce))
