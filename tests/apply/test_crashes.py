"""Any changes, a crash anywhere, recovery, and the log from the durable position: the tree equals the model.

A crash of the process is the applier dropped with its uncommitted index, the tree left as it is. (The power cut is in
test_power_cut.py, the kill of a real process in test_kill.py.)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apply.model import LogRecord, LogWriter, Model, Op, index_agrees, picture_of
from tests.apply.standby import Standby

Pictures: TypeAlias = list[dict[bytes, tuple[Any, ...]]]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A durable point writes a whole filesystem out: not the one everything else here works on."""
ops = st.builds(Op, *(st.integers(0, 200) for _ in range(4)))


def batches(model: Model, script: list[list[Op]], writer: LogWriter | None = None) -> tuple[list[LogRecord], Pictures]:
    """A frame for each list of operations; changes in parts are spread over frames. And the model after each."""
    writer = writer or LogWriter()
    log: list[LogRecord] = []
    pictures: Pictures = []
    for batch in script:
        changes = [change for op in batch for change in model.do(op)]
        halves = [changes[: len(changes) // 2], changes[len(changes) // 2 :]] if len(batch) % 3 == 0 else [changes]
        for number, half in enumerate(halves):
            log.append(writer.changes(half, more=number < len(halves) - 1))
            pictures.append(model.picture())
    return log, pictures


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    script=st.lists(st.lists(ops, max_size=6), min_size=1, max_size=10),
    durable=st.sets(st.integers(0, 20)),
    crashes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), max_size=4),
)
def test_crashes_anywhere_end_with_equal_trees(
    script: list[list[Op]], durable: set[int], crashes: list[tuple[int, int]]
) -> None:
    log, pictures = batches(Model(), script)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, Standby(Path(folder)) as standby:
        for at, part in crashes:
            reached = standby.applier.chain.sequence
            for number, record in enumerate(log[reached : min(at, len(log))], reached):
                standby.applier.apply(*record)
                if number in durable:
                    standby.applier.make_durable()
            following = log[standby.applier.chain.sequence :]
            if following:
                frame, chain = following[0]
                standby.applier.apply(frame._replace(changes=frame.changes[:part]), chain)
            standby.crash()
            standby.start()
            assert standby.report.needed
        before = standby.applier.chain.sequence
        standby.follow(log)
        assert picture_of(standby.root) == pictures[-1]
        index_agrees(standby.index, standby.root)
        settlement = standby.applier.settle()
        assert settlement.differing == ()
        assert settlement.kept == (), f"from {before}"
        assert standby.applier.steps.oddities_count == 0
        standby.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(st.lists(ops, max_size=5), min_size=1, max_size=15))
def test_every_whole_position_equals_the_model(script: list[list[Op]]) -> None:
    log, pictures = batches(Model(), script)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, Standby(Path(folder)) as standby:
        for record, picture in zip(log, pictures, strict=True):
            standby.applier.apply(*record)
            if standby.applier.whole:
                assert picture_of(standby.root) == picture
        index_agrees(standby.index, standby.root)
        standby.stop()
        standby.start()
        assert not standby.report.needed, "a clean stop needs no recovery"
        assert standby.applier.chain == log[-1].chain
