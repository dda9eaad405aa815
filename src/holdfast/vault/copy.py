"""Copy: a vault to a second place, object by object.

It needs neither writer key nor identity: what it copies it cannot read. It needs the right to read at the one place and
to add at the other, where it makes the vault when there is none. The copy is the same vault, opened by the same keys;
each object's bytes are compared with its name before they are written, so damage is named and not spread.

What is there already is not copied again: repeated, it brings what is new; interrupted, it goes on. It takes nothing
away: what is dropped at the source stays in the copy until a prune there, whose rules should keep at least what the
source's do (what it drops and the source has comes back).

The order is that of docs/formats/vault.md: packs, index objects, snapshots, archived frames. Trash is not copied: it
speaks of the packs of one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

from holdfast.errors import ExitStatus, Refused
from holdfast.vault.archive import FRAMES_PREFIX
from holdfast.vault.faults import VaultMissing
from holdfast.vault.objects import GRANTS_PREFIX, KEEPING_PREFIX, digest_name
from holdfast.vault.port import Backend, BackendRefused, Found, ObjectExists, ObjectMissing
from holdfast.vault.repository import HELD_PREFIX, SNAPSHOT_PREFIX, VAULT_NAME

WORKERS: Final = 3
"""Objects on their way at once: one read, one written, one waiting for the other end."""
SHORT_DIGITS: Final = 16
PREFIXES: Final = (
    "keys/",
    GRANTS_PREFIX,
    KEEPING_PREFIX,
    "packs/",
    "index/",
    SNAPSHOT_PREFIX,
    HELD_PREFIX,
    FRAMES_PREFIX,
)
"""In the order they are written. Read in the opposite one: what a snapshot needs is there before it is."""


class CopyPlan(NamedTuple):
    """What the target lacks, in the order it has to be written. *stale*: of these, what stands at the target with
    another size, and is replaced. *there*: objects the target has."""

    steps: tuple[tuple[Found, ...], ...]
    stale: frozenset[str]
    there: int
    new: bool
    """The target holds no vault yet."""

    @property
    def objects(self) -> int:
        return sum(map(len, self.steps))

    @property
    def bytes(self) -> int:
        return sum(found.size for step in self.steps for found in step)


class Copying(NamedTuple):
    """How far it is."""

    objects: int
    bytes: int


class Copied(NamedTuple):
    """*failures*: what could not be copied, by name, and why."""

    objects: int
    bytes: int
    failures: tuple[tuple[str, str], ...]

    @property
    def exit_status(self) -> ExitStatus:
        return ExitStatus.DIFFERENCES if self.failures else ExitStatus.DONE


def gives_its_name(name: str, data: bytes) -> bool:
    """Whether *data* is what was written under *name* (not for ``vault.json``, which says nothing of its bytes)."""
    digest = digest_name(data)
    prefix, _, last = name.rpartition("/")
    if f"{prefix}/" in (SNAPSHOT_PREFIX, HELD_PREFIX, FRAMES_PREFIX):
        return last.rpartition("-")[2] == digest[:SHORT_DIGITS]
    return last == digest


def plan_copy(source: Backend, target: Backend) -> CopyPlan:
    """Lists both, changes nothing. Raises VaultMissing (no vault at the source), Refused (another vault stands at the
    target, or other things do), and what the backends raise."""
    new = _check_vaults(source, target)
    listed = {prefix: sorted(source.list(prefix)) for prefix in reversed(PREFIXES)}
    there = {found.name: found.size for found in target.list("")}
    if new and there.keys() - {found.name for step in listed.values() for found in step}:
        raise Refused("the target is not empty and holds no vault", hint="Give an empty or a new place.")
    steps = [listed[prefix] for prefix in PREFIXES]
    missing = [[found for found in step if there.get(found.name) != found.size] for step in steps]
    stale = frozenset(found.name for step in missing for found in step if found.name in there)
    copied = sum(map(len, steps)) - sum(map(len, missing))
    return CopyPlan(tuple(tuple(step) for step in missing if step), stale, copied, new)


def execute_copy(
    source: Backend, target: Backend, plan: CopyPlan, progress: Callable[[Copying], None] | None = None
) -> Copied:
    """Carry *plan* out. An object that is damaged at the source, or gone meanwhile, is named and the rest copied.

    Raises what the backends raise; repeated with a new plan, it goes on.
    """
    copier = _Copier(source, target, plan.stale, progress)
    steps = list(plan.steps)
    if plan.new:
        if steps and steps[0][0].name.startswith("keys/"):
            copier.step(steps.pop(0))
        target.put(VAULT_NAME, source.get(VAULT_NAME))
    for step in steps:
        copier.step(step)
    return Copied(copier.objects, copier.bytes, tuple(copier.failures))


def _check_vaults(source: Backend, target: Backend) -> bool:
    """Whether the target is new."""
    try:
        wanted = source.get(VAULT_NAME)
    except ObjectMissing:
        raise VaultMissing("there is no vault to copy", hint="Look whether the source's place is right.") from None
    try:
        if target.get(VAULT_NAME) == wanted:
            return False
    except ObjectMissing:
        return True
    hint = "A copy is the same vault. Give an empty place, or the place of an earlier copy."
    raise Refused("another vault stands at the target", hint=hint)


class _Copier:
    """Copies step by step; the objects of one step in any order."""

    def __init__(
        self, source: Backend, target: Backend, stale: frozenset[str], progress: Callable[[Copying], None] | None
    ) -> None:
        self._source = source
        self._target = target
        self._stale = stale
        self._progress = progress
        self.objects = 0
        self.bytes = 0
        self.failures: list[tuple[str, str]] = []

    def step(self, objects: Sequence[Found]) -> None:
        coming = iter(objects)
        with ThreadPoolExecutor(WORKERS, "vault-copy") as pool:
            while some := list(islice(coming, WORKERS)):
                for found, reason in zip(some, pool.map(self._one, some), strict=True):
                    if reason:
                        self.failures.append((found.name, reason))
                        continue
                    self.objects += 1
                    self.bytes += found.size
                    if self._progress is not None:
                        self._progress(Copying(self.objects, self.bytes))

    def _one(self, found: Found) -> str:
        """Why it was not copied; empty when it was."""
        try:
            data = self._source.get(found.name)
        except ObjectMissing:
            return "a prune took it away meanwhile: copy again"
        if not gives_its_name(found.name, data):
            return "its bytes at the source are not those that were written"
        if found.name in self._stale:
            try:
                self._target.delete(found.name)
            except BackendRefused as error:
                return f"the target's is damaged and cannot be replaced: {error.message}"
        try:
            self._target.put(found.name, data)
        except ObjectExists:
            return "the target has it with other bytes: verify the target"
        return ""
