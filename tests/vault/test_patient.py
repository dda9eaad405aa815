"""Retries, bandwidth and estimates: on a clock of the test's own."""

from __future__ import annotations

import pytest

from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.estimate import Estimate
from holdfast.vault.pace import Pace
from holdfast.vault.patient import Patience, PatientBackend, Transfer
from holdfast.vault.port import BackendUnavailable, ObjectExists


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Flaky(MemoryBackend):
    """Fails *failures* times, before the change or after it; then works."""

    def __init__(self, failures: int, *, after: bool) -> None:
        super().__init__()
        self.failures = failures
        self.after = after

    def put(self, name: str, data: bytes) -> None:
        if self.after:
            super().put(name, data)
        if self.failures:
            self.failures -= 1
            raise BackendUnavailable("injected")
        super().put(name, data)


@pytest.mark.parametrize("after", [False, True])
def test_it_goes_on_until_the_store_answers(after: bool) -> None:
    clock = Clock()
    heard: list[Transfer] = []
    store = PatientBackend(
        Flaky(4, after=after), progress=heard.append, clock_seconds=clock, wait=clock.wait, chance=lambda: 0.0
    )
    store.put("packs/0a", b"123")
    assert clock.waits == [0.5, 1.0, 2.0, 4.0]
    assert [moved.trouble for moved in heard] == ["injected"] * 4 + [""]
    assert store.moved == Transfer(put_bytes=3, got_bytes=0, objects_put=1, retries=4)
    assert store.get("packs/0a") == b"123"


def test_patience_ends() -> None:
    for patience, calls in ((Patience(attempts_max=3), 3), (Patience(seconds_max=1.2), 3)):
        clock = Clock()
        backend = Flaky(100, after=False)
        store = PatientBackend(backend, patience, clock_seconds=clock, wait=clock.wait, chance=lambda: 0.0)
        with pytest.raises(BackendUnavailable):
            store.put("packs/0a", b"123")
        assert 100 - backend.failures == calls


def test_what_is_no_trouble_of_the_line_is_not_tried_again() -> None:
    clock = Clock()
    store = PatientBackend(MemoryBackend({"packs/0a": b"1"}), clock_seconds=clock, wait=clock.wait)
    with pytest.raises(ObjectExists):
        store.put("packs/0a", b"2")
    assert clock.waits == []


def test_a_pace_is_kept_over_any_stretch() -> None:
    clock = Clock()
    pace = Pace(1_000_000, clock_seconds=clock, wait=clock.wait)
    sent = 0
    for piece in pace.pieces(bytes(5_000_000)):
        sent += len(piece)
        assert sent <= 1_000_000 * clock.now + 256 * 1024 + 1  # float
    assert clock.now == pytest.approx(5.0, abs=0.3)
    clock.now += 3600  # an idle hour earns nothing
    began = clock.now
    for _ in pace.pieces(bytes(2_000_000)):
        pass
    assert clock.now - began == pytest.approx(2.0, abs=0.3)
    assert [len(piece) for piece in Pace().pieces(bytes(5_000_000))] == [5_000_000]


def test_time_left() -> None:
    estimate = Estimate(1000.0, 0.0)
    assert estimate.left_seconds() is None
    for second in range(1, 6):
        estimate.update(second * 10.0, float(second))
    assert estimate.left_seconds() == pytest.approx(95, rel=0.1)
    for second in range(6, 100):  # it became five times as fast
        estimate.update(50 + (second - 5) * 5.0, float(second))
    assert estimate.per_second == pytest.approx(5, rel=0.05)
    assert Estimate(0.0, 0.0).left_seconds() is None
