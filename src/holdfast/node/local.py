"""What a machine remembers of itself: one small file, written whole before what it tells becomes true."""

from __future__ import annotations

from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct

from holdfast.changes.names import Epoch
from holdfast.errors import ConfigurationError
from holdfast.files import write_once
from holdfast.trees.spec import TreeSpec


class Ordered(Struct, frozen=True):
    """A switchover to this machine, at a moment (seconds since 1970)."""

    at: float
    why: str


class LocalState(Struct, frozen=True):
    """``node.json`` in the state directory."""

    served_epoch: int = 0
    """The epoch this machine serves in, or last served in without handing over cleanly; 0: none."""
    trees: tuple[TreeSpec, ...] = ()
    """The trees as the primary protects them; a standby learns them when it is seeded."""
    doubt_since_ns: int = 0
    """After an unclean end: files changed since then (ctime) may have lost bytes in a power cut; 0: no doubt."""
    paused: str = ""
    """Why nobody may take over without a person (`holdfast pause`); empty: it is not so."""
    whole_after: int = 0
    """Under the policy ``interval``: a seed ended when this was the log's last record, and what it brought is of two
    moments until a copy behind it is applied."""
    switchover: Ordered | None = None
    """What `holdfast switchover --at` ordered and is still to come."""
    alone: str = ""
    """Why this machine goes on alone (`holdfast takeover --alone`), until its new log is founded; or empty."""
    verified_at: float = 0.0
    verified_differences: int = -1


def trees_digest(trees: tuple[TreeSpec, ...]) -> str:
    """A short name for a set of trees: two machines that differ in it protect different things."""
    return blake3(msgspec.json.encode(sorted(trees, key=lambda tree: tree.name))).hexdigest(length=8)


class LocalFile:
    """Reads and replaces the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = self._read()

    def _read(self) -> LocalState:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=LocalState)
        except FileNotFoundError:
            return LocalState()
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"{self._path} is damaged ({error})",
                hint="Move it away; then `holdfast join --rejoin` if this machine may have served.",
            ) from None

    @property
    def served_epoch(self) -> Epoch:
        return Epoch(self.state.served_epoch)

    def change(self, **fields: object) -> None:
        """Durable on return."""
        new = msgspec.structs.replace(self.state, **fields)
        if new != self.state:
            write_once(self._path, msgspec.json.format(msgspec.json.encode(new)), 0o600)
            self.state = new
