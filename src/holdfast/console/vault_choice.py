"""Which vault a command means, and the files that open it: options, environment, configuration, memory of ``init``.

``vault init`` remembers each vault in a file ``NAME.json`` of a folder (``vaults_folder``): where it is, and which
files open it. The site's configuration (``[[vaults]]``) names more. What a command line gives wins over both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from holdfast.console.emit import warn
from holdfast.console.vault_options import VaultChoice
from holdfast.errors import ConfigurationError
from holdfast.files import PRIVATE, write_once

if TYPE_CHECKING:
    from holdfast.vault.settings import VaultSettings

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
FOLDER_VARIABLE: Final = "HOLDFAST_VAULTS"
CACHE_VARIABLE: Final = "HOLDFAST_CACHE"
CONFIGURATION_VARIABLE: Final = "HOLDFAST_CONFIG"


class RememberedVault(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the folder."""

    location: str
    key: str
    """The writer key's file; empty: none is here."""
    identity: str = ""
    """The identity's file; empty: none is here."""
    identity_elsewhere: bool = True
    """Whether somebody showed that the identity is kept outside this machine, too."""


class VaultPlace(NamedTuple):
    """A vault that is meant, before it is opened. *key*, *identity*: files, None where nobody said which."""

    name: str
    location: str
    key: Path | None
    identity: Path | None
    remembered: RememberedVault
    """As it is known here; with empty files when it is not."""
    settings: VaultSettings | None = None
    """Its table in the site's configuration."""

    @property
    def bytes_per_second(self) -> int:
        return self.settings.bytes_per_second if self.settings is not None else 0


def vaults_folder() -> Path:
    """Where vaults are remembered: for root ``/etc/holdfast/vaults``, for others below their own configuration."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/etc/holdfast/vaults")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "holdfast/vaults"


def cache_folder() -> Path | None:
    """Where catalogs are kept, made when it is not there; None where that is not possible (they are in memory then)."""
    if given := os.environ.get(CACHE_VARIABLE):
        folder = Path(given)
    elif os.geteuid() == 0:
        folder = Path("/var/cache/holdfast/vaults")
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast/vaults"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def configuration_path() -> Path:
    return Path(os.environ.get(CONFIGURATION_VARIABLE) or "/etc/holdfast/holdfast.toml")


def is_location(text: str) -> bool:
    """Whether *text* says where a vault is (a path or an address), and not what it is called."""
    return "/" in text or text in (".", "..")


def absolute(location: str) -> str:
    """The same place, wherever the next command is run. Raises ConfigurationError for what is meant to be another."""
    if not location or re.match(r"[a-z0-9]+:(?!//)", location):
        hint = "Give /path, s3://bucket/prefix?endpoint=URL&region=R or sftp://user@host:port/path?key=FILE."
        raise ConfigurationError(f"{location!r} is no place for a vault", hint=hint)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def name_for(location: str) -> str:
    """A name to remember *location* by."""
    plain = location.partition("?")[0].rstrip("/")
    last = re.sub(r"[^a-z0-9]+", "-", plain.rpartition("/")[2].lower()).strip("-")
    return last[:40].strip("-") or "vault"


def checked_vault_name(name: str) -> str:
    """Raises ConfigurationError."""
    if not NAME.fullmatch(name):
        hint = "Use lower-case letters, digits and hyphens."
        raise ConfigurationError(f"{name!r} cannot be the name of a vault", hint=hint)
    return name


# -- memory -----------------------------------------------------------------------------------------------------------


def remember(name: str, vault: RememberedVault) -> Path:
    """Write the file of *name*; returns it. Raises what write_once raises."""
    folder = vaults_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{checked_vault_name(name)}.json"
    write_once(path, msgspec.json.format(msgspec.json.encode(vault), indent=2) + b"\n", PRIVATE)
    return path


def remembered() -> dict[str, RememberedVault]:
    """By name. Raises ConfigurationError when a file of the folder is unreadable."""
    folder = vaults_folder()
    found: dict[str, RememberedVault] = {}
    for path in sorted(folder.glob("*.json")) if os.access(folder, os.R_OK) else ():
        try:
            found[path.stem] = msgspec.json.decode(path.read_bytes(), type=RememberedVault)
        except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
            hint = "Mend or remove it; `--vault LOCATION --key FILE --identity FILE` does without."
            raise ConfigurationError(f"{path} cannot be read: {error}", hint=hint) from None
    return found


def _configured() -> tuple[VaultSettings, ...]:
    """The vaults of the site's configuration; none where there is no site."""
    path = configuration_path()
    if not os.access(path, os.R_OK):
        return ()
    from holdfast.node.settings import load_settings

    return load_settings(path).vaults


def _known() -> dict[str, tuple[RememberedVault, VaultSettings | None]]:
    known: dict[str, tuple[RememberedVault, VaultSettings | None]]
    known = {name: (vault, None) for name, vault in remembered().items()}
    try:
        configured = _configured()
    except ConfigurationError as error:
        if not known:
            raise
        # It may be what is to be restored.
        warn(f"{error.message}; the vaults that `vault init` remembered are used")
        configured = ()
    for settings in configured:
        vault = RememberedVault(settings.location, settings.key, settings.identity)
        before = known.get(settings.name)
        if before is not None and before[0].location == vault.location:
            identity = vault.identity or before[0].identity
            elsewhere = before[0].identity_elsewhere
            vault = msgspec.structs.replace(vault, identity=identity, identity_elsewhere=elsewhere)
        known[settings.name] = vault, settings
    return known


def known_vaults() -> dict[str, RememberedVault]:
    """Configured and remembered, by name; the configuration's word counts, but for an identity it does not name."""
    return {name: vault for name, (vault, _) in _known().items()}


# -- the choice -------------------------------------------------------------------------------------------------------


def vault_place(choice: VaultChoice) -> VaultPlace:
    """The vault that *choice* means. Raises ConfigurationError: none is known, several are, no such name."""
    name, vault, settings = _chosen(choice.vault)
    key, identity = choice.key or vault.key, choice.identity or vault.identity
    return VaultPlace(name, vault.location, _file(key), _file(identity), vault, settings)


def _file(text: str) -> Path | None:
    return Path(text) if text else None


def _chosen(text: str) -> tuple[str, RememberedVault, VaultSettings | None]:
    if is_location(text):
        location = absolute(text)
        try:
            known = _known()
        except ConfigurationError:  # the place is given: what is known besides only helps with the keys
            known = {}
        for name, (vault, settings) in known.items():
            if vault.location == location:
                return name, vault, settings
        return name_for(location), RememberedVault(location, ""), None
    known = _known()
    if text in known:
        return text, *known[text]
    names = ", ".join(known)
    if text:
        hint = f"Known here: {names or 'none'}. Or give its location: --vault /path, s3://..., sftp://..."
        raise ConfigurationError(f"no vault called {text!r} is known here", hint=hint)
    if len(known) == 1:
        return next((name, *found) for name, found in known.items())
    if known:
        raise ConfigurationError(f"several vaults are known here: {names}", hint="Say which: --vault NAME.")
    hint = "Make one: `holdfast vault init LOCATION`. Or say where one is: --vault LOCATION --identity FILE."
    raise ConfigurationError("no vault is known here", hint=hint)
