"""A few seeds of ``make chaos``: whatever is broken, all gates on, every promise holds. ``make chaos`` does many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.drill.chaos import ACCOUNTS_PER_SEED, Chaos
from holdfast.drill.faults import draw
from holdfast.drill.lab.lab import Lab

pytestmark = pytest.mark.system

NAME = "test-chaos"
SEEDS = {32: "kill in takeover", 2: "freeze"}


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    yield Chaos(NAME, 7, folder, 1 + ACCOUNTS_PER_SEED * len(SEEDS))
    Lab.down(NAME)


@pytest.mark.parametrize(("place", "seed"), list(enumerate(SEEDS)))
def test_whatever_a_seed_breaks_under_smtp_imap_and_dav_every_promise_holds(
    chaos: Chaos, place: int, seed: int
) -> None:
    assert [fault.kind for fault in draw(random.Random(seed))] == [SEEDS[seed]]
    assert chaos.seed_of(seed, place, print) == []
