"""Outputs of commands: kept when good, last good kept when not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError
from holdfast.mail.commands import SystemCommands
from holdfast.mail.outputs import Outputs, OutputSpec


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def outputs(
    folder: Path, script: str, clock: Clock, *, timeout_seconds: float = 10, bytes_max: int = 1 << 20
) -> Outputs:
    spec = OutputSpec(
        name="dump.sql",
        argv=("/bin/sh", "-c", script),
        every_seconds=600,
        timeout_seconds=timeout_seconds,
        bytes_max=bytes_max,
    )
    return Outputs((spec,), folder / "outputs", SystemCommands(), now=clock)


async def test_a_good_run_is_kept_and_the_next_is_due_after_the_interval(tmp_path: Path) -> None:
    clock = Clock()
    kept = outputs(tmp_path, "echo data", clock)
    assert kept.due() == ("dump.sql",)
    state = await kept.run("dump.sql")
    assert (state.age_seconds, state.bytes, state.failure, state.overdue) == (0, 5, "", False)
    assert (tmp_path / "outputs/dump.sql").read_text() == "data\n"
    assert kept.due() == ()
    clock.now += 601
    assert kept.due() == ("dump.sql",)
    clock.now += 700
    assert kept.state("dump.sql").overdue


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo half; echo no disk >&2; exit 3", "exit status 3: no disk"),
        ("echo half; kill -9 $$", "died by signal 9"),
        ("yes", "more than allowed"),
        ("echo half; sleep 60", "did not end within"),
        ("exec /nonexistent/program", "exit status 127"),
    ],
)
async def test_a_failure_keeps_the_last_good_one_and_says_why(tmp_path: Path, script: str, said: str) -> None:
    clock = Clock()
    await outputs(tmp_path, "echo good", clock).run("dump.sql")
    clock.now += 100
    failing = outputs(tmp_path, script, clock, timeout_seconds=0.5, bytes_max=10_000)
    state = await failing.run("dump.sql")
    assert said in state.failure
    assert state.age_seconds == 100
    assert (tmp_path / "outputs/dump.sql").read_text() == "good\n"
    assert os.listdir(tmp_path / "outputs") == ["dump.sql"]


async def test_an_unchanged_output_is_not_written_again(tmp_path: Path) -> None:
    clock = Clock()
    kept = outputs(tmp_path, "echo same", clock)
    await kept.run("dump.sql")
    before = (tmp_path / "outputs/dump.sql").stat().st_ino
    clock.now += 1000
    assert (await kept.run("dump.sql")).age_seconds == 0
    assert (tmp_path / "outputs/dump.sql").stat().st_ino == before


async def test_after_a_failure_it_waits_a_minute_and_a_clock_set_back_does_not_stop_it(tmp_path: Path) -> None:
    clock = Clock()
    kept = outputs(tmp_path, "exit 1", clock)
    await kept.run("dump.sql")
    assert 0 < kept.wait_seconds("dump.sql") <= 60
    good = outputs(tmp_path, "echo good", clock)
    await good.run("dump.sql")
    clock.now -= 100_000
    assert good.wait_seconds("dump.sql") <= 600


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-rf"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        Outputs((OutputSpec(name=name, argv=("true",)),), tmp_path, SystemCommands())
