"""Who may write and who may read: the writer key, readers' identities, and the keys made from them.

The rules are in docs/formats/vault.md, "Keys".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import msgspec
import pyrage
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from holdfast.changes.digest import DIGEST_BYTES
from holdfast.vault.faults import WrongKey

KEY_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
VAULT_ID_BYTES: Final = 16


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


class WriterKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine that backs up holds: a file of its own (JSON), readable by root only."""

    vault: str
    """The vault's id, hexadecimal."""
    secret: str
    """32 bytes, hexadecimal."""
    recipients: tuple[str, ...]
    """Who will be able to read what this machine writes: age recipients."""

    def __repr__(self) -> str:
        """Without the secret: it ends up in messages and logs."""
        return f"WriterKey({self.vault}, for {len(self.recipients)} recipients)"

    def to_bytes(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> WriterKey:
        """Raises WrongKey when *data* is no such file."""
        try:
            key = msgspec.json.decode(data, type=cls)
            lengths = len(bytes.fromhex(key.vault)), len(bytes.fromhex(key.secret))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise WrongKey(f"this is no writer key ({error})", hint="Give the file `vault init` made.") from None
        if lengths != (VAULT_ID_BYTES, KEY_BYTES):
            raise WrongKey("this writer key was cut", hint="Give the file `vault init` made.")
        checked_recipients(key.recipients)
        return key


def checked_recipients(recipients: tuple[str, ...]) -> list[pyrage.x25519.Recipient]:
    """Raises WrongKey when there are none, or one is no age X25519 recipient."""
    if not recipients:
        raise WrongKey("no recipient: nobody could read the vault", hint="Give at least one age recipient (age1...).")
    try:
        return [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
    except pyrage.RecipientError as error:
        raise WrongKey(f"not an age recipient: {error}", hint="It looks like age1..., made by age-keygen.") from None


class Wrapper:
    """Wraps keys for the recipients."""

    def __init__(self, recipients: tuple[str, ...]) -> None:
        self._recipients = checked_recipients(recipients)

    def wrap(self, key: bytes) -> bytes:
        wrapped: bytes = pyrage.encrypt(key, self._recipients)
        return wrapped


class Readers:
    """The identities somebody holds; none is fine for who only writes."""

    def __init__(self, identities: tuple[str, ...] = ()) -> None:
        self.texts = identities
        self._grants: Callable[[], dict[bytes, bytes]] | None = None
        self._granted: dict[bytes, bytes] | None = None
        try:
            self._identities = [pyrage.x25519.Identity.from_str(identity) for identity in identities]
        except pyrage.IdentityError as error:
            raise WrongKey(f"not an age identity: {error}", hint="It begins with AGE-SECRET-KEY-1.") from None

    def __bool__(self) -> bool:
        return bool(self._identities)

    def also(self, grants: Callable[[], dict[bytes, bytes]]) -> None:
        """Where to look for keys that are not wrapped for these identities; asked once, when one is met."""
        self._grants = grants

    def unwrap(self, wrapped: bytes, what: str) -> bytes:
        """The key in *wrapped*, or granted later; *what* is for the error. Raises WrongKey."""
        try:
            return self.unwrap_directly(wrapped, what)
        except WrongKey:
            if not self._identities or self._grants is None:
                raise
            if self._granted is None:
                self._granted = self._grants()
            key = self._granted.get(fingerprint(wrapped))
            if key is None:
                raise
            return key

    def unwrap_directly(self, wrapped: bytes, what: str) -> bytes:
        """As :meth:`unwrap`, without grants."""
        if not self._identities:
            hint = "Give the identity file (AGE-SECRET-KEY-1...) of one of the vault's readers."
            raise WrongKey(f"{what} cannot be opened: no reader's key was given", hint=hint)
        try:
            key: bytes = pyrage.decrypt(wrapped, self._identities)
        except pyrage.DecryptError:
            hint = "Give another identity; the recipients are named in the writers' key files."
            raise WrongKey(f"{what} is not sealed for the given key, or is damaged", hint=hint) from None
        return key


class Secrets:
    """What follows from the writer key."""

    def __init__(self, vault: bytes, secret: bytes) -> None:
        self.vault = vault
        self.secret = secret
        self._id_key = derive(secret, vault, b"holdfast vault ids")
        self.index_cipher = AESGCM(derive(secret, vault, b"holdfast vault index"))
        self._seal_salt = derive(secret, vault, b"holdfast vault seal")
        self.check = derive(secret, vault, b"holdfast vault check")

    def content_id(self, content: bytes) -> bytes:
        return blake3(content, key=self._id_key).digest(length=DIGEST_BYTES)

    def block_cipher(self, object_key: bytes) -> AESGCM:
        """The cipher of one pack's or snapshot's blocks."""
        return AESGCM(derive(object_key, self._seal_salt, b"holdfast vault block"))


def fingerprint(wrapped: bytes) -> bytes:
    """Of a wrapped key: by it a grant says which object its key is for."""
    return blake3(wrapped).digest(length=FINGERPRINT_BYTES)


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)
