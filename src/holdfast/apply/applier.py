"""The applier: frames, one after another, into the trees and the index; and where that stands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import apsw

from holdfast.apply.aside import Aside
from holdfast.apply.divergence import Diverged, EpochOver, RecoveryNeeded
from holdfast.apply.place import DIRECTORIES_OPEN_MAX, Place, SymlinkInTheWay, world_error
from holdfast.apply.recovery import Recovered, RecoveryReport, Settlement, recover
from holdfast.apply.steps import Steps
from holdfast.changes.change import KIND_NAMES, Change, ChangeInvalid, Patch, Put, Symlink, check_change
from holdfast.changes.frame import Chain, Frame, FrameDamaged, FrameHeader
from holdfast.changes.names import NOWHERE, AppliedPosition, DurablePosition, Epoch, Position
from holdfast.errors import ConfigurationError, NoSpace, Refused
from holdfast.files import sync_folder, write_once
from holdfast.trees.index import Index
from holdfast.trees.replay import Replay, ReplayGap
from holdfast.trees.spec import Tree
from holdfast.trees.stat import Owners


class Applier:
    """Applies frames to *trees*. One per agent, used by one thread (except :meth:`flush`).

    ``recover()`` comes first, once; then ``apply()`` for each frame in order, ``make_durable()`` from time to time, and
    ``close()``. Only for a machine that is not the primary: there, the trees are the truth and not the log.
    """

    def __init__(
        self, index: Index, trees: Iterable[Tree], owners: Owners, aside: Aside, *, open_files_max: int = 0
    ) -> None:
        """*index* was seeded: it stands for a place in the log. *open_files_max*: of this process, should that be more
        than usual. Raises OSError when a root cannot be opened."""
        self._index = index
        self._trees = {str(tree.name): tree for tree in trees}
        open_max = max(DIRECTORIES_OPEN_MAX, open_files_max // 2 // max(len(self._trees), 1))
        self._places = {name: Place(tree.root, directories_open_max=open_max) for name, tree in self._trees.items()}
        self._owners = owners
        self.aside = aside
        self._replay = Replay(index, owners)
        self._steps = Steps(index, self._trees, self._places, owners, aside)
        self._chain = self._durable = index.chain
        self._epoch = index.epoch
        self._whole = True
        self._done = 0
        """Changes of the frame after ``_chain`` that are made already: it failed for want of space, or diverged."""
        self._touched = False
        """Whether something of the frame after ``_chain`` may be in the trees."""
        self._sound = False
        self._recovered: Recovered | None = None
        self._marker = clean_marker(index.file)

    # -- where it stands -----------------------------------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """The last frame applied: what the next one must follow."""
        return self._chain

    @property
    def applied(self) -> AppliedPosition:
        return AppliedPosition(self._chain.position)

    @property
    def durable(self) -> DurablePosition:
        return DurablePosition(self._durable.position)

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def whole(self) -> bool:
        """Whether the trees stand as they stood at one instant on the primary; False inside a batch."""
        return self._whole and not self._touched

    @property
    def unsettled(self) -> bool:
        """Whether a recovery left something open: :meth:`settle` is due once the log was applied to its end."""
        return self._recovered is not None

    @property
    def steps(self) -> Steps:
        """For its ``oddities`` and ``unfinished``."""
        return self._steps

    # -- frames --------------------------------------------------------------------------------------------------------

    def apply(self, frame: Frame, chain: Chain) -> bool:
        """Apply *frame*, opened; *chain* is the place after it. False when it had been applied already.

        Raises FrameDamaged (it does not follow the last one: a gap or a fork), EpochOver, Diverged (tree and log differ
        at a named place), ReplayGap (index and log differ), NoSpace, SymlinkInTheWay, EnvironmentUnfit. After NoSpace
        and Diverged the same frame can be applied again: what was done of it is not done twice. After others
        :meth:`recover` comes first.
        """
        if not self._sound:
            raise RecoveryNeeded("the applier has not recovered", hint="It does so when the agent starts.", retry=True)
        header = frame.header
        if not self._is_next(header, chain):
            return False
        if header.epoch < self._epoch or (frame.promotion and header.epoch == self._epoch):
            raise EpochOver(
                f"record {header.sequence} was written by {header.writer} in epoch {header.epoch}; "
                f"the epoch is {self._epoch}",
                hint="That machine was replaced as the primary; what it wrote afterwards is refused.",
            )
        for change in frame.changes:
            check_change(change)
        if not frame.changes:  # a promotion, or a writer that began anew in the middle of a batch
            self._steps.abandon()
            self._replay.abandon()
        for change in frame.changes[self._done :]:
            self._make(change)
            self._done += 1
        self._done, self._touched = 0, False
        self._chain = chain
        self._epoch = header.epoch
        self._whole = not header.more
        return True

    def _is_next(self, header: FrameHeader, chain: Chain) -> bool:
        at = self._chain
        if header.incarnation != at.incarnation:
            raise FrameDamaged(
                f"a frame belongs to log {header.incarnation[:8]}, this copy to {at.incarnation[:8]}",
                hint="The log was replaced: re-seed this machine.",
            )
        if header.sequence == at.sequence and chain.digest != at.digest:
            raise FrameDamaged(
                f"the log has another record {header.sequence} than the one applied here: the chain forks",
                hint="Re-seed this machine.",
            )
        if header.sequence <= at.sequence:
            return False
        if header.sequence != at.sequence + 1 or header.previous != at.digest:
            raise FrameDamaged(
                f"record {header.sequence} does not follow record {at.sequence}, the last one applied",
                hint="Records are missing or the chain forks; a scan by the primary or a re-seed heals it.",
            )
        return True

    def _make(self, change: Change) -> None:
        self._sound, self._touched = False, True
        try:
            sighting = self._steps.make(change)
            self._sound = True
        except (FileNotFoundError, NotADirectoryError):
            self._sound, self._touched = True, self._done > 0
            raise Diverged(change.tree, change.path, "it is missing, or a directory above it") from None
        except OSError as error:
            what = f"{KIND_NAMES[type(change)]} of {change.path!r} in tree {change.tree!r}"
            translated = world_error(error, what)
            self._sound = isinstance(translated, NoSpace | SymlinkInTheWay)
            raise translated from error
        except (Diverged, ReplayGap, ChangeInvalid, ConfigurationError):  # said before anything was touched
            self._sound, self._touched = True, self._done > 0
            raise
        except apsw.Error as error:
            raise self._index_failed(error) from error
        self._sound = False
        try:
            self._replay.apply(change, sighting)
        except apsw.Error as error:
            raise self._index_failed(error) from error
        self._sound = True
        if self._recovered is not None and isinstance(change, Put | Patch | Symlink) and not _goes_on(change):
            node = self._index.at(change.tree, change.path)
            if node is not None:
                self._recovered.brought(node)

    def _index_failed(self, error: apsw.Error) -> NoSpace:
        """SQLite may have rolled the transaction back: sqlite.org/lang_transaction.html, section 3."""
        return NoSpace(
            f"the tree index {self._index.file} cannot be written ({error})",
            hint="Free space on that disk; the agent recovers from the last durable position.",
            retry=True,
        )

    # -- durability ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Start on the disk's work: may run in another thread meanwhile, so that :meth:`make_durable` is short."""
        for place in {place.device: place for place in self._places.values()}.values():
            try:
                place.sync()
            except OSError as error:
                raise world_error(error, f"writing out {place.root}") from error

    def make_durable(self) -> DurablePosition:
        """Everything applied is on disk, and the index says so; the durable position. Inside a batch: nothing is done.

        Raises NoSpace, HoldfastError: then recover() comes first.
        """
        if not self.whole or self._chain == self._durable:
            return self.durable
        if not self._sound:
            raise RecoveryNeeded("the applier has not recovered", hint="It does so when the agent starts.", retry=True)
        self._sound = False
        self.flush()
        self._index.commit(self._chain, self._epoch)
        self._sound = True
        self._durable = self._chain
        return self.durable

    # -- start and stop ------------------------------------------------------------------------------------------------

    def recover(self) -> RecoveryReport:
        """Bring the trees back to the committed index, whatever stopped the last run (or this one).

        Afterwards the log is applied from :attr:`durable` on; when it has been applied as far as it reached when this
        was called, :meth:`settle` tells whether all came out right. Raises Refused when the index was never seeded, or
        when more differs than an unclean stop explains (a filesystem that is not mounted).
        """
        if self._index.position == NOWHERE:
            raise Refused("this machine's copy was never seeded", hint="`holdfast join` seeds it from the primary.")
        self._steps.abandon()
        self._replay.abandon()
        self._index.rollback()
        self._chain = self._durable = self._index.chain
        self._epoch = self._index.epoch
        self._whole, self._done, self._touched = True, 0, False
        if self._take_marker():
            self._sound = True
            return RecoveryReport.nothing()
        recovered = recover(self._index, self._trees, self._places, self.aside)
        self._recovered = None if recovered.settled else recovered
        self.flush()
        self._index.commit(self._chain, self._epoch)
        self._sound = True
        return recovered.report

    def settle(self) -> Settlement:
        """After recovery and once the log was applied to where it reached: what is not as the log says, by name."""
        if self._recovered is None:
            return Settlement((), ())
        settlement = self._recovered.settle(self._index, self._places)
        self._recovered = None
        return settlement

    def give_up_batch(self) -> None:
        """The batch will not be finished: its writer is gone, and this machine is to be promoted.

        What was applied of it counts as it stands. Known files whose patch had only begun are made to look changed in
        the index, so that the scan which follows reads them and logs what they hold.
        """
        unfinished = set(self._steps.unfinished)
        self._steps.abandon()
        self._replay.abandon()
        for tree, path in unfinished:
            node = self._index.at(tree, path)
            if node is not None:
                self._index.update(node, node._replace(mtime_ns=0, ctime_ns=0))
        self._whole = True

    def close(self, *, clean: bool = True) -> None:
        """Stop. With *clean*, everything is made durable and the next start need not recover, unless what the last
        recovery found is not settled yet. Closes the index too."""
        if clean and self._sound and self.whole:
            self.make_durable()
            if self._recovered is None:
                write_once(self._marker, _marker_text(self._durable))
        self._steps.drop()
        for place in self._places.values():
            place.close()
        self._index.close()

    def _take_marker(self) -> bool:
        """Whether the last run stopped cleanly at the committed position. The mark is good once."""
        try:
            text = self._marker.read_bytes()
        except FileNotFoundError:
            return False
        os.unlink(self._marker)
        sync_folder(self._marker.parent)
        return text == _marker_text(self._durable)


def _goes_on(change: Put | Patch | Symlink) -> bool:
    return not isinstance(change, Symlink) and change.more


def clean_marker(index_file: Path) -> Path:
    """The file beside the index that a clean stop leaves."""
    return index_file.with_name(index_file.name + ".clean")


def mark_clean(index: Index) -> None:
    """Say that the trees equal the committed index: for a primary that has stopped in order."""
    write_once(clean_marker(index.file), _marker_text(index.chain))


def _marker_text(chain: Chain) -> bytes:
    position: Position = chain.position
    return f"{position.incarnation} {position.sequence} {chain.digest.hex()}\n".encode()
