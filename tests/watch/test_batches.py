"""When a batch is full: what comes alone goes at once, what comes with much waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.changes.change import Put
from holdfast.trees.stat import Owners
from holdfast.watch.watcher import FULL_BYTES, QUIET_SECONDS, Watcher
from tests.watch.ground import Ground

BATCH_SECONDS = 10 * QUIET_SECONDS


class Pauses:
    """Stands for time: something happens in each pause."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.meanwhile()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def ground(tmp_path: Path, pauses: Pauses) -> Iterator[Ground]:
    made = Ground(tmp_path, start=False)
    made.watcher = Watcher(
        made.index,
        [made.tree],
        Owners(),
        batch_seconds=BATCH_SECONDS,
        limits=made.limits,
        pause=pauses,
        sources=made.sources,
    )
    made.watcher.start()
    made.scan()
    made.collect()
    pauses.taken.clear()
    yield made
    made.close()


def test_what_comes_alone_is_handed_over_after_one_quiet_moment(ground: Ground, pauses: Pauses) -> None:
    (ground.root / "alone").write_text("x")
    assert ground.take(ground.watcher.collect(wait_seconds=1))
    assert pauses.taken == [QUIET_SECONDS]


def test_while_more_comes_a_batch_fills_up_to_its_time(ground: Ground, pauses: Pauses) -> None:
    names = iter(range(100))
    pauses.meanwhile = lambda: (ground.root / str(next(names))).write_text("x")
    (ground.root / "first").write_text("x")
    taken = ground.take(ground.watcher.collect(wait_seconds=1))
    assert sum(pauses.taken) == pytest.approx(BATCH_SECONDS)
    assert sum(isinstance(change, Put) for change in taken) == 1 + len(pauses.taken)


def test_a_batch_is_full_when_much_waits(ground: Ground, pauses: Pauses) -> None:
    def meanwhile() -> None:
        for number in range(FULL_BYTES // 24):
            (ground.root / f"{len(pauses.taken)}-{number}").write_text("x")

    pauses.meanwhile = meanwhile
    (ground.root / "first").write_text("x")
    ground.take(ground.watcher.collect(wait_seconds=1))
    assert pauses.taken == [QUIET_SECONDS]


def test_a_barrier_does_not_wait_for_the_batch_to_fill(ground: Ground, pauses: Pauses) -> None:
    names = iter(range(100))

    def meanwhile() -> None:
        (ground.root / str(next(names))).write_text("x")
        if len(pauses.taken) == 2:
            ground.watcher.barrier()

    pauses.meanwhile = meanwhile
    (ground.root / "first").write_text("x")
    ground.take(ground.watcher.collect(wait_seconds=1))
    assert len(pauses.taken) == 2
    assert ground.watcher.passed_cookies()
