"""Under traffic: at every whole instant nothing captured is absent, and at the end the trees are equal."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from holdfast.watch.limits import Limits
from tests.watch.conftest import own_tmpfs
from tests.watch.ground import Ground
from tests.watch.mail_traffic import Traffic

SECONDS = float(os.environ.get("HOLDFAST_TRAFFIC_SECONDS", "2.5"))


def messages(root: bytes) -> set[str]:
    found: set[str] = set()
    for _, _, names in os.walk(root):
        found.update(name.partition(b":")[0].decode() for name in names if name.endswith(b"host") or b":2," in name)
    return found


def hold_while_traffic_runs(ground: Ground, seed: int, *, restless: bool = False) -> None:
    traffic = Traffic(ground.root, seed, restless=restless)
    ground.collect()
    traffic.start()
    captured: set[str] = set()
    until = time.monotonic() + SECONDS
    instants = 0
    while time.monotonic() < until:
        for part in ground.watcher.collect(wait_seconds=0.01):
            ground.take([part])
            if not part.more:
                instants += 1
                there = messages(ground.mirror.root)
                absent = captured - there
                assert not absent - traffic.doomed, f"absent at instant {instants}: {absent - traffic.doomed}"
                captured = there
    traffic.stop()
    assert instants > 5
    assert traffic.done > 200
    ground.settle()
    ground.check()
    assert ground.watcher.status().overflows == 0
    before = len(ground.log)
    ground.crash()
    ground.settle()
    ground.check()
    assert len(ground.log) - before <= 20, "a scan after a crash logs next to nothing"


@pytest.mark.system
@pytest.mark.parametrize("restless", [False, True])
def test_fanotify(restless: bool) -> None:
    with own_tmpfs() as at:
        ground = Ground(at, sources=("fanotify",), limits=Limits(settle_seconds=0.05))
        try:
            hold_while_traffic_runs(ground, 1, restless=restless)
        finally:
            ground.close()


@pytest.mark.parametrize("restless", [False, True])
def test_inotify(tmp_path: Path, restless: bool) -> None:
    ground = Ground(tmp_path, sources=("inotify",), limits=Limits(settle_seconds=0.05))
    try:
        hold_while_traffic_runs(ground, 3, restless=restless)
    finally:
        ground.close()
