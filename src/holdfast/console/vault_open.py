"""Opens the vault a command means: keys read, backend opened, the catalog's cache in its place.

Readers and writers have cache files of their own: a restore must not wait for the backup that runs. Two readers at
once: the second works in memory.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apsw
from blake3 import blake3

from holdfast.console.vault_choice import (
    CACHE_VARIABLE,
    VaultPlace,
    cache_folder,
    known_vaults,
    name_for,
    vault_place,
)
from holdfast.console.vault_options import VaultChoice
from holdfast.errors import ConfigurationError, EnvironmentUnfit, HoldfastError, NoSpace
from holdfast.vault.faults import VaultBusy, VaultMissing, WrongKey
from holdfast.vault.keys import WriterKey
from holdfast.vault.location import open_backend
from holdfast.vault.patient import Transfer
from holdfast.vault.port import Backend, ObjectMissing
from holdfast.vault.repository import VAULT_NAME, Vault, open_vault

IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-1"
STANDARD_INPUT: Final = "-"
INTERRUPT_SECONDS_MAX: Final = 3.0
"""For what is on its way to end in order."""
INTERRUPTED: Final = 130
"""128 + SIGINT."""


class OpenedVault(NamedTuple):
    vault: Vault
    place: VaultPlace
    backend: Backend
    key: WriterKey | None


@contextmanager
def opened(
    choice: VaultChoice,
    *,
    write: bool = False,
    read: bool = True,
    small: bool = False,
    limit: int = 0,
    watch: Callable[[Transfer], None] | None = None,
) -> Iterator[OpenedVault]:
    """The vault *choice* means. *write*: its writer key is needed; *read*: an identity is.

    With *write* alone no identity is loaded; with neither it is opened with what there is. *small*: what is written is
    an object or two, and need not wait for a backup at work. *limit*: bytes a second, 0
    for what is configured; *watch* hears of transfers, and of trouble with the store. Raises ConfigurationError
    (which vault?), WrongKey, VaultBusy, and what opening the backend and the vault raises.
    """
    place = vault_place(choice)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        backend = open_place(place, limit, watch)
        stack.callback(backend.close)
        place = _with_keys_of_the_same(place, backend)
        key = read_key(place, needed=write)
        identities = () if write and not read else read_identities(place, needed=read or key is None)
        alone = write and not small
        cache = _cache(place, write=alone)
        try:
            vault = open_vault(backend, writer=key, identities=identities, cache=cache)
        except (VaultBusy, NoSpace, apsw.Error, OSError) as error:
            if alone:
                raise _named(error, cache) from error
            vault = open_vault(backend, writer=key, identities=identities)
        stack.callback(vault.close)
        try:
            yield OpenedVault(vault, place, backend, key)
        except apsw.Error as error:
            raise _named(error, cache) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """An interrupt ends the command even while it waits for a store that does not answer, in a thread or in a call that
    does not come back to Python. Nothing is lost by that: whatever is cut off, the next command goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def give_up() -> None:
        while number := os.read(told, 1):
            if number[0] == signal.SIGINT:
                time.sleep(INTERRUPT_SECONDS_MAX)
                os._exit(INTERRUPTED)
        os.close(told)

    threading.Thread(target=give_up, name="interrupt", daemon=True).start()
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)  # which ends the thread


def _named(error: HoldfastError | apsw.Error | OSError, cache: Path | None) -> HoldfastError:
    """What the catalog's database ran into."""
    if isinstance(error, HoldfastError):
        return error
    if isinstance(error, OSError):
        hint = f"Remove it, give it to this user, or give another folder: {CACHE_VARIABLE}=/path."
        return EnvironmentUnfit(f"the vault's cache {cache} cannot be opened: {error.strerror}", hint=hint)
    message = f"the vault's cache {cache} cannot be written ({error})"
    if isinstance(error, apsw.FullError):
        return NoSpace(message, hint=f"Free space there, or give another folder: {CACHE_VARIABLE}=/path.")
    return HoldfastError(message, hint=f"Look at that disk, or give another folder: {CACHE_VARIABLE}=/path.")


def open_place(place: VaultPlace, limit: int = 0, watch: Callable[[Transfer], None] | None = None) -> Backend:
    """The store of *place*. Raises what the backend raises."""
    return open_backend(place.location, bytes_per_second=limit or place.bytes_per_second, progress=watch)


def _with_keys_of_the_same(place: VaultPlace, backend: Backend) -> VaultPlace:
    """A copy at a place nobody named here has the keys of the vault it is a copy of, if that is known here. Raises
    VaultMissing: better than to ask for keys of nothing."""
    if place.key is not None or place.identity is not None:
        return place
    try:
        named = backend.get(VAULT_NAME)
    except ObjectMissing:
        hint = "Look whether its disk is mounted, or mend the place. A new one: `holdfast vault init`."
        raise VaultMissing(f"there is no vault at {place.location}", hint=hint) from None
    try:
        others = known_vaults().values()
    except ConfigurationError:  # a broken configuration must not stand in the way of a restore
        return place
    for other in others:
        try:
            key = WriterKey.from_bytes(Path(other.key).read_bytes())
        except (OSError, WrongKey):
            continue
        if key.vault.encode() in named:
            return place._replace(key=Path(other.key), identity=Path(other.identity) if other.identity else None)
    return place


def read_key(place: VaultPlace, *, needed: bool) -> WriterKey | None:
    """The writer key. Raises WrongKey: it is needed and not there, or its file is none."""
    if place.key is None:
        if not needed:
            return None
        hint = "Give the file that `holdfast vault init` wrote: --key FILE."
        raise WrongKey(f"no writer key is known for {place.name}: nothing can be added to it from here", hint=hint)
    try:
        return WriterKey.from_bytes(place.key.read_bytes())
    except FileNotFoundError:
        if not needed and str(place.key) == place.remembered.key:
            return None
        hint = "It was made by `holdfast vault init`: bring it back from your safe, or give --key FILE."
        raise WrongKey(f"the writer key {place.key} is not there", hint=hint) from None


def read_identities(place: VaultPlace, *, needed: bool) -> tuple[str, ...]:
    """The identities of the file (``-``: standard input). Raises WrongKey: needed and not there, or none in it."""
    hint = "It is in your safe: give --identity FILE (or - to type it; from paper: `holdfast vault keys check`)."
    if place.identity is None:
        if not needed:
            return ()
        raise WrongKey(f"no identity is known for {place.name}: it cannot be read from here", hint=hint)
    try:
        text = sys.stdin.read() if str(place.identity) == STANDARD_INPUT else place.identity.read_text()
    except FileNotFoundError:
        if not needed and str(place.identity) == place.remembered.identity:
            return ()
        raise WrongKey(f"the identity file {place.identity} is not there", hint=hint) from None
    except UnicodeDecodeError:
        text = ""
    return identities_in(text, str(place.identity))


def identities_in(text: str, source: str) -> tuple[str, ...]:
    """The lines of an age identity file that are no comments. Raises WrongKey when there are none."""
    lines = [line.strip() for line in text.splitlines()]
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found or not all(line.upper().startswith(IDENTITY_PREFIX) for line in found):
        hint = f"It has a line that begins with {IDENTITY_PREFIX}, as age-keygen writes it."
        raise WrongKey(f"{source} is no age identity file", hint=hint)
    return found


def _cache(place: VaultPlace, *, write: bool) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    digest = blake3(place.location.encode(errors="surrogateescape")).hexdigest(length=6)
    return folder / f"{name_for(place.location)}-{digest}-{'write' if write else 'read'}.sqlite"
