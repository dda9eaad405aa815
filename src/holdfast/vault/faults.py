"""What can be wrong with a vault, beside its store (see ``port``)."""

from __future__ import annotations

from holdfast.errors import ExitStatus, HoldfastError, Refused


class VaultMissing(HoldfastError):
    """There is no vault at that place."""

    exit_status = ExitStatus.CONFIGURATION


class VaultNewer(HoldfastError):
    """Made by a newer program."""

    exit_status = ExitStatus.NEWER_FORMAT


class WrongKey(HoldfastError):
    """No key, or one that does not open this vault. Nothing is wrong with the vault."""

    exit_status = ExitStatus.WRONG_KEY


class VaultBusy(Refused):
    """Another command holds the vault's cache file on this machine."""

    exit_status = ExitStatus.LOCKED


class VaultDamaged(HoldfastError):
    """Bytes of the vault are not what was written, or are missing. *name*: the object, where one is to blame."""

    exit_status = ExitStatus.DAMAGED

    def __init__(self, message: str, *, name: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint or "`holdfast vault verify` names every file that is touched.")
        self.name = name


class SnapshotUnknown(HoldfastError):
    """No snapshot, or more than one, answers to what was asked for."""

    exit_status = ExitStatus.USAGE


class PathUnknown(HoldfastError):
    """The snapshot has nothing at that path."""

    exit_status = ExitStatus.USAGE


class TargetInUse(Refused):
    """A restore would touch what stands there already."""


class ClockWrong(Refused):
    """This machine's clock is far behind the newest snapshot's."""
