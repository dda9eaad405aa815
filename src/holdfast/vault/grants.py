"""Grants: the keys of what a vault holds already, for readers who came later.

A pack, a snapshot, an object of frames is sealed for who was a reader when it was written. A grant is an object of the
vault with the keys of all of them, by what their wrapped key looks like (``fingerprint``): an age file for the new
readers, sealed with the index key besides, so that only who holds the writer key can make one that is believed.

A grant costs 48 bytes for each object. It is looked for only by an identity that meets something not sealed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from holdfast.vault.faults import VaultDamaged, WrongKey
from holdfast.vault.keys import FINGERPRINT_BYTES, KEY_BYTES, Readers, Wrapper, fingerprint
from holdfast.vault.objects import GRANTS_PREFIX, HEADER_BYTES_MAX, Codec
from holdfast.vault.port import Backend, ObjectMissing

if TYPE_CHECKING:
    from holdfast.vault.repository import Vault

KEYS_PER_GRANT: Final = 200_000
"""About 10 MB: one object, one message."""


class Grant(Struct, frozen=True):
    """*wrapped*: an age file of fingerprints and keys, one pair behind the other."""

    wrapped: bytes


def grant_everything(
    vault: Vault, recipients: tuple[str, ...], progress: Callable[[int, int], None] | None = None
) -> int:
    """Give *recipients* the keys of everything *vault* holds now; how many. *progress*: (done, of).

    Interrupted or repeated it does no harm. Raises WrongKey (this identity cannot open something itself: nothing is
    granted), VaultDamaged, and what the backend raises.
    """
    wrapper = Wrapper(recipients)
    names = [*_sealed_objects(vault)]
    pairs: list[bytes] = []
    done = 0
    for number, name in enumerate(names, 1):
        if (pair := _pair(vault, name)) is not None:
            pairs.append(pair)
            done += 1
        if progress is not None:
            progress(number, len(names))
    for at in range(0, len(pairs), KEYS_PER_GRANT):
        made = vault.codec.grant(Grant(wrapper.wrap(b"".join(pairs[at : at + KEYS_PER_GRANT]))))
        vault.backend.put(made.name, made.data)
    return done


def _sealed_objects(vault: Vault) -> Iterator[str]:
    for prefix in ("packs/", "snapshots/", "held/", "frames/"):
        yield from sorted(found.name for found in vault.backend.list(prefix))


def _pair(vault: Vault, name: str) -> bytes | None:
    """Fingerprint and key of one object; None when a prune took it meanwhile."""
    try:
        header = vault.backend.get(name, 0, HEADER_BYTES_MAX)
    except ObjectMissing:
        return None
    _, wrapped, _ = vault.codec.wrapped_key(header, name)
    return fingerprint(wrapped) + vault.readers.unwrap(wrapped, name)


def load_grants(backend: Backend, codec: Codec, readers: Readers) -> dict[bytes, bytes]:
    """Fingerprints and keys of all grants for *readers*. A damaged grant is passed over: what it gave stays closed."""
    keys: dict[bytes, bytes] = {}
    for found in list(backend.list(GRANTS_PREFIX)):
        try:
            grant = codec.open_grant(backend.get(found.name), Grant, found.name)
            plain = readers.unwrap_directly(grant.wrapped, found.name)
        except (WrongKey, VaultDamaged, ObjectMissing, msgspec.DecodeError):
            continue
        size = FINGERPRINT_BYTES + KEY_BYTES
        for at in range(0, len(plain), size):
            pair = plain[at : at + size]
            keys[pair[:FINGERPRINT_BYTES]] = pair[FINGERPRINT_BYTES:]
    return keys
