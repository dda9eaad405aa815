"""Automatic failover in a simulated site: the promises, over many seeds; thousands more in ``make chaos``."""

from __future__ import annotations

import os
import statistics
from typing import Final

import pytest

from holdfast.drill import simulated_site
from holdfast.drill.simulated_site import Broken, another_dies, chaos, primary_dies
from holdfast.node import outlook
from holdfast.node.watchman import MISSING_SECONDS

SEEDS: Final = int(os.environ.get("HOLDFAST_FAILOVER_SEEDS", "100"))


def test_never_two_that_answer_and_one_again_when_all_is_mended() -> None:
    promotions = sum(chaos(seed).promotions - 1 for seed in range(SEEDS))
    assert promotions > SEEDS // 10, "the seeds do lead to takeovers"


def test_a_dead_primary_is_replaced_in_time() -> None:
    seconds = [primary_dies(seed) for seed in range(SEEDS)]
    assert statistics.median(seconds) < MISSING_SECONDS + 0.5


def test_neither_the_standby_nor_the_relay_can_make_the_primary_stop() -> None:
    for seed in range(SEEDS):
        another_dies(seed)


def test_a_seed_is_one_history() -> None:
    assert chaos(7).history == chaos(7).history


def test_the_simulation_would_see_two_primaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary that goes on for 3 s without being heard is noticed: the check is not blind."""
    monkeypatch.setattr(outlook, "SERVE_SECONDS", 3.0)
    seen = 0
    for seed in range(60):
        try:
            simulated_site.chaos(seed)
        except Broken as error:
            seen += "two machines answered" in str(error)
    assert seen
