"""Limbo: names that are not where the log has them, of things that are alive somewhere.

Between the moment the events of a batch were taken and the moment a place is looked at, things move on. A name missed
so is kept in the log until what was queued when it was missed has been looked at, and nothing moved it further. Only
then it has left the trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from holdfast.trees.index import Index, Node
from holdfast.watch.disk import Disk, Place
from holdfast.watch.hints import DELETE, MOVED_FROM


class _Missing:
    __slots__ = ("at", "node_id", "since", "since_seconds")

    def __init__(self, node_id: int, at: Place, since: int, since_seconds: float) -> None:
        self.node_id = node_id
        self.at = at
        """Where the last rename we heard of took it."""
        self.since = since
        """Number of the batch."""
        self.since_seconds = since_seconds


class Limbo:
    """The names in limbo, by the place where the log has them; and what the present batch tells of movements."""

    def __init__(self, index: Index, disk: Disk, monotonic: Callable[[], float], seconds: float) -> None:
        """*seconds*: nothing is given up sooner."""
        self._seconds = seconds
        self._index = index
        self._disk = disk
        self._monotonic = monotonic
        self._missing: dict[Place, _Missing] = {}
        self._renames: dict[Place, list[tuple[int, bytes | None]]] = {}
        """From where: numbers of ``_targets``, and the identity where the source of events tells."""
        self._targets: list[tuple[bytes, bytes]] = []
        self._arrivals: dict[Place, tuple[int, bytes | None]] = {}
        """Directories that came to a place: all that events said of it, the identity."""

    # -- what a batch tells --------------------------------------------------------------------------------------------

    def begin_batch(self) -> None:
        self._renames.clear()
        self._targets.clear()
        self._arrivals.clear()

    def renamed(self, place: Place, to: tuple[bytes, bytes], child: bytes | None) -> None:
        """An event told of a rename to *to* (directory and name). Call in the order of events."""
        self._renames.setdefault(place, []).append((len(self._targets), child))
        self._targets.append(to)

    def directory_came(self, place: Place, mask: int, child: bytes | None) -> None:
        """Events told of a directory at *place*."""
        before = self._arrivals.get(place)
        self._arrivals[place] = (mask | (before[0] if before else 0), child)

    def moved(self, handle: bytes, number: int) -> None:
        """An event of the batch *number* renamed what *handle* names: wait for what comes after that."""
        if self._missing:
            node = self._index.by_handle(handle)
            for place in self._index.names(node.id) if node is not None else ():
                if place in self._missing:
                    self._missing[place].since = number

    def renamed_to(self, place: Place, node: Node) -> Place:
        """Where the node went from *place*, by the renames of this batch, as far as that is inside the trees."""
        after = -1
        while True:
            steps = self._renames.get(place, ())
            number = next((n for n, child in steps if n > after and child in (None, node.handle)), None)
            if number is None:
                return place
            handle, name = self._targets[number]
            directory = self._disk.directory_of(handle)
            if directory is None:
                return place
            place, after = (directory.id, name), number

    # -- what is missing -----------------------------------------------------------------------------------------------

    def __contains__(self, place: Place) -> bool:
        return place in self._missing

    def __bool__(self) -> bool:
        return bool(self._missing)

    def miss(self, node: Node, places: Iterable[Place], number: int) -> None:
        """The node is not at *places* any more, and alive."""
        for place in places:
            known = self._missing.get(place)
            if known is None or known.node_id != node.id:
                at = self.renamed_to(place, node)
                self._missing[place] = _Missing(node.id, at, number, self._monotonic())

    def freed(self, place: Place) -> None:
        """The log has nothing at *place* any more."""
        self._missing.pop(place, None)

    def forget(self) -> None:
        self._missing.clear()
        self.begin_batch()

    def since(self) -> int | None:
        """The number of the oldest batch that missed something."""
        return min((missing.since for missing in self._missing.values()), default=None)

    def due_seconds(self) -> float:
        """How long until something can be given up."""
        since = min(missing.since_seconds for missing in self._missing.values())
        return max(since + self._seconds - self._monotonic(), 0.0)

    def stay(self, number: int) -> None:
        """All counts as missed in the batch *number*."""
        for missing in self._missing.values():
            missing.since = number

    def given_up(self, number: int) -> set[Place]:
        """The places missed before the batch *number*, which has been looked at now: taken out of limbo."""
        if not self._missing:
            return set()
        self._still_moving(number)
        limit = self._monotonic() - self._seconds
        places = {p for p, m in self._missing.items() if m.since < number and m.since_seconds <= limit}
        for place in places:
            del self._missing[place]
        return places

    def everything(self) -> set[Place]:
        """Take all out of limbo: nobody will tell where it went."""
        places = set(self._missing)
        self._missing.clear()
        return places

    def _still_moving(self, number: int) -> None:
        """What a rename of this batch moved on stays in limbo; and all does, while a directory that came somewhere in
        this batch is not there any more and not found elsewhere: what is missing may be in it."""
        if any(self._unlocated(place, mask, child) for place, (mask, child) in self._arrivals.items()):
            self.stay(number)
            return
        for missing in self._missing.values():
            node = self._index.node(missing.node_id)
            at = missing.at if node is None else self.renamed_to(missing.at, node)
            if at != missing.at:
                missing.at, missing.since = at, number

    def _unlocated(self, place: Place, mask: int, child: bytes | None) -> bool:
        if child is None:
            return not mask & (DELETE | MOVED_FROM) and self._index.child_id(*place) is None
        return self._index.by_handle(child) is None and self._disk.exists(child)
