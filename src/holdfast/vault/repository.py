"""An open vault: made, opened, its snapshots listed, its contents read.

Reading goes block by block: what lies beside the content asked for is kept, because the next one asked for usually is
there too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.errors import Refused
from holdfast.vault.blocks import SHARED_BYTES_MAX, BlockCache
from holdfast.vault.catalog import BlockPlace, Catalog, Place
from holdfast.vault.faults import SnapshotUnknown, VaultDamaged, VaultMissing, VaultNewer, WrongKey
from holdfast.vault.grants import load_grants
from holdfast.vault.keys import VAULT_ID_BYTES, Readers, Secrets, Wrapper, WriterKey, checked_recipients, new_key
from holdfast.vault.objects import FORMAT_VERSION, HEADER_BYTES_MAX, SIZES, Codec, ObjectKind, Sizes, digest_name
from holdfast.vault.port import Backend, ObjectExists, ObjectMissing
from holdfast.vault.record import Snapshot

VAULT_NAME: Final = "vault.json"
CIPHERS_CACHED_MAX: Final = 1024
SNAPSHOT_PREFIX: Final = "snapshots/"
HELD_PREFIX: Final = "held/"
HEADER_READ_BYTES: Final = 4096
"""Enough for a pack's wrapped key with a dozen recipients; read again, longer, when it is not."""


class VaultFile(Struct, frozen=True):
    """``vault.json``; keys this program does not know are left alone."""

    format: int
    id: str
    check: str


class SnapshotName(NamedTuple):
    """A snapshot as the store lists it; needs no key."""

    name: str

    @property
    def taken_at_ns(self) -> int:
        return int(self.name.partition("/")[2].partition("-")[0])

    @property
    def position(self) -> Position | None:
        """Where in the log it stands; None for a snapshot made by a scan."""
        _, _, rest = self.name.partition("-")
        place, dash, _ = rest.partition("-")
        incarnation, _, sequence = place.partition(".")
        return Position(Incarnation(incarnation), Sequence(int(sequence))) if dash else None

    @property
    def short(self) -> str:
        """What people type."""
        return self.name.rpartition("-")[2]


def init_vault(backend: Backend, recipients: tuple[str, ...]) -> WriterKey:
    """Make a vault in an empty store; what it returns must be kept: without it nothing can be added (readers can get
    its secret back). Raises Refused when there is one, WrongKey for unusable recipients."""
    checked_recipients(recipients)
    if backend.size(VAULT_NAME) is not None:
        raise Refused("there is a vault at this place already", hint="Use it, or give another place.")
    vault, secret = new_key()[:VAULT_ID_BYTES], new_key()
    wrapped = Wrapper(recipients).wrap(secret)
    backend.put("keys/" + digest_name(wrapped), wrapped)
    made = VaultFile(FORMAT_VERSION, vault.hex(), Secrets(vault, secret).check.hex())
    try:
        backend.put(VAULT_NAME, msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    except ObjectExists:
        raise Refused("another program makes a vault here at this moment", hint="Use that one.") from None
    return WriterKey(vault.hex(), secret.hex(), recipients)


def open_vault(
    backend: Backend,
    *,
    writer: WriterKey | None = None,
    identities: tuple[str, ...] = (),
    cache: Path | None = None,
    sizes: Sizes = SIZES,
) -> Vault:
    """Open the vault in *backend* to add (*writer*), to read (*identities*) or both. *cache*: a file that keeps the
    catalog, and what the last backup of this machine knew; its folder must exist.

    Raises VaultMissing, VaultNewer, VaultDamaged, WrongKey, and what the backend raises.
    """
    file = _vault_file(backend)
    vault = bytes.fromhex(file.id)
    readers = Readers(identities)
    if writer is not None:
        secrets = Secrets(bytes.fromhex(writer.vault), bytes.fromhex(writer.secret))
        if writer.vault != file.id or secrets.check.hex() != file.check:
            raise WrongKey("this writer key belongs to another vault", hint=f"The vault here is {file.id}.")
    else:
        secrets = Secrets(vault, _writer_secret(backend, file, readers))
    opened = Vault(backend, Codec(secrets), readers, Wrapper(writer.recipients) if writer else None, cache, sizes)
    opened.sync()
    return opened


def _vault_file(backend: Backend) -> VaultFile:
    try:
        data = backend.get(VAULT_NAME)
    except ObjectMissing:
        hint = "Make one: `holdfast vault init`. Or look whether the place is right."
        raise VaultMissing("there is no vault at this place", hint=hint) from None
    try:
        file = msgspec.json.decode(data, type=VaultFile)
        if file.format != FORMAT_VERSION:
            raise VaultNewer(f"the vault has format {file.format}, this program knows 1", hint="Update Holdfast here.")
        if len(bytes.fromhex(file.id)) != VAULT_ID_BYTES or bytes.fromhex(file.id).hex() != file.id:
            raise ValueError("the id is none")
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise VaultDamaged(f"{VAULT_NAME} is unreadable ({error})", name=VAULT_NAME) from None
    return file


def _writer_secret(backend: Backend, file: VaultFile, readers: Readers) -> bytes:
    refusal: WrongKey | None = None
    for found in backend.list("keys/"):
        try:
            secret = readers.unwrap(backend.get(found.name), "the vault")
        except WrongKey as error:
            refusal = error
            continue
        if Secrets(bytes.fromhex(file.id), secret).check.hex() == file.check:
            return secret
    if refusal is not None:
        raise refusal
    raise VaultDamaged("the vault's key object is missing", name="keys/", hint="Open it with a writer key as well.")


class Vault:
    """An open vault. For one thread, but for :meth:`read_block` and :meth:`pack_cipher`."""

    def __init__(
        self,
        backend: Backend,
        codec: Codec,
        readers: Readers,
        wrapper: Wrapper | None,
        cache: Path | None = None,
        sizes: Sizes = SIZES,
    ) -> None:
        self.backend = backend
        self.codec = codec
        self.readers = readers
        readers.also(lambda: load_grants(backend, codec, readers))
        self.wrapper = wrapper
        self.sizes = sizes
        self.catalog = Catalog(codec.secrets.vault.hex(), cache)
        self._blocks = BlockCache()
        self._ciphers: OrderedDict[str, tuple[ObjectKind, AESGCM]] = OrderedDict()
        self._ciphers_lock = threading.Lock()

    def __enter__(self) -> Vault:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The catalog only: the backend belongs to who made it."""
        self.catalog.close()

    def forget(self) -> None:
        """Read everything from the store again: what is there may not be what was there."""
        self._blocks = BlockCache()
        with self._ciphers_lock:
            self._ciphers.clear()

    def hold_less(self) -> None:
        """Two processes read this vault from now on: together they keep no more in memory than one did."""
        self._blocks.bytes_max = SHARED_BYTES_MAX
        self.catalog.hold_less()

    def sync(self) -> None:
        """See what others wrote. Damage goes to ``catalog.problems``."""
        self.catalog.sync(self.backend, self.codec)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshots(self) -> list[SnapshotName]:
        """Oldest first."""
        return self._listed(SNAPSHOT_PREFIX)

    def held(self) -> list[SnapshotName]:
        """What legal holds keep of snapshots that are gone, oldest first; see ``remainder``."""
        return self._listed(HELD_PREFIX)

    def _listed(self, prefix: str) -> list[SnapshotName]:
        names = (found.name for found in self.backend.list(prefix))
        return sorted((SnapshotName(name) for name in names), key=lambda listed: (listed.taken_at_ns, listed.name))

    def find_snapshot(self, wanted: str) -> SnapshotName:
        """*wanted*: ``latest``, a name, or the beginning of what ``short`` gives (also of what is held).

        Raises SnapshotUnknown."""
        names = self.snapshots()
        if wanted == "latest" and names:
            return names[-1]
        names += self.held()
        hits = [name for name in names if wanted and (name.name == wanted or name.short.startswith(wanted))]
        if len(hits) != 1:
            what = "several snapshots begin" if hits else "no snapshot begins"
            raise SnapshotUnknown(f"{what} with {wanted!r}", hint="`holdfast vault list` shows them.")
        return hits[0]

    def snapshot(self, name: SnapshotName) -> Snapshot:
        """Raises VaultDamaged, WrongKey, SnapshotUnknown (gone meanwhile)."""
        try:
            data = self.backend.get(name.name)
        except ObjectMissing:
            raise SnapshotUnknown(f"{name.name} is not there any more") from None
        return self.codec.open_snapshot(data, self.readers, Snapshot, name.name)

    # -- contents ----------------------------------------------------------------------------------------------------

    def content(self, content_id: bytes) -> bytes:
        """One content, checked against its id; a second copy is tried when the first is damaged.

        Raises VaultDamaged (damaged or missing), WrongKey, and what the backend raises.
        """
        return self.content_in(self.catalog.places(content_id), content_id)

    def content_in(self, places: list[Place], content_id: bytes) -> bytes:
        """As :meth:`content`, with the places known."""
        damage: VaultDamaged | None = None
        for place in places:
            try:
                content = self.block(place.block)[place.at : place.at + place.length]
            except VaultDamaged as error:
                damage = error
                continue
            if len(content) == place.length and self.codec.secrets.content_id(content) == content_id:
                return content
            self._blocks.forget(place.block)
            damage = VaultDamaged(f"{place.block.pack}: a content does not give its id", name=place.block.pack)
        raise damage or VaultDamaged(f"content {content_id.hex()} is in no pack")

    def block(self, place: BlockPlace) -> bytes:
        """One plain block, from the cache when it is there. Raises VaultDamaged, WrongKey."""
        plain = self._blocks.get(place)
        if plain is None:
            plain = self.read_block(place)
            self._blocks.keep(place, plain)
        return plain

    def holds_block(self, place: BlockPlace) -> bool:
        return place in self._blocks

    def keep_block(self, place: BlockPlace, plain: bytes) -> None:
        """Put a block read ahead into the cache."""
        self._blocks.keep(place, plain)

    def read_block(self, place: BlockPlace) -> bytes:
        """One plain block from the store; may run in any thread. Raises VaultDamaged, WrongKey."""
        try:
            kind, cipher = self.pack_cipher(place.pack)
            sealed = self.backend.get(place.pack, place.at, place.sealed_bytes)
        except ObjectMissing:
            raise VaultDamaged(f"{place.pack} is missing", name=place.pack) from None
        return self.codec.open_block(cipher, kind, place.number, sealed, place.pack)

    def pack_cipher(self, pack: str) -> tuple[ObjectKind, AESGCM]:
        """Raises VaultDamaged, WrongKey, ObjectMissing."""
        known = self._ciphers.get(pack)
        if known is not None:
            return known
        header = self.backend.get(pack, 0, HEADER_READ_BYTES)
        if len(header) == HEADER_READ_BYTES and int.from_bytes(header[4:6], "big") + 6 > HEADER_READ_BYTES:
            header = self.backend.get(pack, 0, HEADER_BYTES_MAX)
        try:
            kind, cipher, _ = self.codec.unwrap(header, self.readers, pack)
        except WrongKey:
            if self.readers and "packs/" + digest_name(self.backend.get(pack)) != pack:
                raise VaultDamaged(f"{pack}: its key is damaged", name=pack) from None
            raise
        with self._ciphers_lock:
            while len(self._ciphers) >= CIPHERS_CACHED_MAX:
                self._ciphers.popitem(last=False)
            self._ciphers[pack] = kind, cipher
        return kind, cipher
