"""From the primary's files to the standby's: any operations, crashes of both sides anywhere; the trees end equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from tests.flow.pair import Pair
from tests.watch.conftest import own_ext4, own_tmpfs
from tests.watch.test_anything import EXAMPLES, SMALL, Anything


class Flow(Anything):
    """The watcher's own rules, with a standby behind them."""

    pair: Pair

    @initialize(handles=st.booleans())
    def begin(self, handles: bool) -> None:
        self.pair = Pair(self.place(), sources=(self.source,), limits=SMALL)
        self.stand_on(self.pair)  # type: ignore[arg-type]

    @rule(frames=st.integers(1, 8))
    def standby_applies(self, frames: int) -> None:
        self.pair.apply(frames)

    @rule()
    def standby_makes_durable(self) -> None:
        self.pair.standby.applier.make_durable()

    @rule(part=st.integers(0, 6))
    def standby_crashes(self, part: int) -> None:
        self.pair.crash_standby(part)

    @rule()
    def standby_restarts(self) -> None:
        if self.pair.standby.applier.whole:
            self.pair.standby.stop()
        else:
            self.pair.standby.crash()
        self.pair.standby.start()


class FlowFanotify(Flow):
    source = "fanotify"

    def place(self) -> Path:
        return self.stack.enter_context(own_tmpfs())


class FlowExt4(FlowFanotify):
    """Where inode numbers come again at once."""

    def place(self) -> Path:
        return self.stack.enter_context(own_ext4(64))


EFFORT = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_inotify() -> None:
    run_state_machine_as_test(Flow, settings=EFFORT)


@pytest.mark.system
def test_fanotify() -> None:
    run_state_machine_as_test(FlowFanotify, settings=EFFORT)


@pytest.mark.system
def test_fanotify_on_ext4() -> None:
    run_state_machine_as_test(FlowExt4, settings=settings(EFFORT, max_examples=max(1, EXAMPLES // 3)))
