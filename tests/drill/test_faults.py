"""What a seed of the chaos drill draws; what its faults do to machines is tests/drill/lab and the drill itself."""

from __future__ import annotations

import random

import pytest

from holdfast.drill.faults import DELAYS_SECONDS, JUMPS_SECONDS, KINDS, TIED, Fault, draw

SEEDS = 200


def drawn() -> list[Fault]:
    return [fault for seed in range(SEEDS) for fault in draw(random.Random(seed))]


def test_a_seed_draws_the_same_faults_again() -> None:
    for seed in range(SEEDS):
        assert draw(random.Random(seed)) == draw(random.Random(seed))


def test_every_kind_comes_on_every_machine_it_may_and_every_pair_is_cut() -> None:
    seen = {(fault.kind, fault.machine) for fault in drawn()}
    for kind in KINDS:
        machines = {"primary"} if kind in TIED else {"primary", "standby", "relay"}
        assert {machine for each, machine in seen if each == kind} == machines, kind
    pairs = {frozenset((fault.machine, fault.other)) for fault in drawn() if fault.kind == "cut"}
    assert len(pairs) == 3
    one_way = {(fault.machine, fault.other) for fault in drawn() if fault.kind == "cut one way"}
    assert len(one_way) >= 5, "of six"


def test_clocks_jump_both_ways_and_links_are_slowed_by_every_delay() -> None:
    jumps = {fault.amount for fault in drawn() if fault.kind == "clock"}
    assert jumps == {sign * seconds for sign in (1, -1) for seconds in JUMPS_SECONDS}
    assert {fault.amount for fault in drawn() if fault.kind == "slow"} == set(DELAYS_SECONDS)


@pytest.mark.parametrize("kind", ["flap", "kill in takeover"])
def test_what_comes_in_steps_says_when(kind: str) -> None:
    found = [fault.moments for fault in drawn() if fault.kind == kind]
    assert min(map(len, found)) >= (4 if kind == "flap" else 1)
    assert len(set(map(len, found))) > 1
