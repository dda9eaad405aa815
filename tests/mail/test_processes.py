"""Ending processes: all of those meant, and no other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from holdfast.mail import processes

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def start(made: list[subprocess.Popen[bytes]], code: str, *, group: int = 0) -> int:
    """A Python process that has said something; *group*: that process group, 0 for one of its own."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=group)
    made.append(process)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process.pid


def only(*pids: int) -> list[processes.Seen]:
    return [process for pid in pids if (process := processes.seen(pid)) is not None]


def test_who_ignores_the_question_is_killed_after_the_grace(started: list[subprocess.Popen[bytes]]) -> None:
    pid = start(started, STUBBORN)
    began = time.monotonic()
    asyncio.run(processes.end(lambda: only(pid), "test", grace_seconds=0.2))
    assert 0.2 <= time.monotonic() - began < 3
    assert processes.seen(pid) is None


def test_who_is_no_longer_known_by_its_program_is_waited_for_all_the_same(
    started: list[subprocess.Popen[bytes]],
) -> None:
    """A process on its way out has no program any more, and its sockets still listen."""
    pid = start(started, STUBBORN)
    looks = iter([only(pid)])
    asyncio.run(processes.end(lambda: next(looks, []), "test", grace_seconds=0.2))
    assert processes.seen(pid) is None


def test_a_stranger_in_the_same_group_is_spared(started: list[subprocess.Popen[bytes]]) -> None:
    """As when a script keeps a master and something else in the foreground of its own group."""
    leader = start(started, STUBBORN)
    ours, stranger = start(started, STUBBORN, group=leader), start(started, STUBBORN, group=leader)
    asyncio.run(processes.end(lambda: only(ours), "test", grace_seconds=0))
    assert processes.seen(ours) is None
    assert processes.seen(stranger) is not None
    os.kill(leader, signal.SIGKILL)
    started[0].wait()
    third = start(started, STUBBORN, group=leader)  # the group lives on without its leader
    asyncio.run(processes.end(lambda: only(third), "test", grace_seconds=0))
    assert processes.seen(third) is None
    assert processes.seen(stranger) is not None


def test_ending_nobody_is_done_at_once() -> None:
    asyncio.run(processes.end(list, "test", grace_seconds=60))


@pytest.mark.parametrize("text", ["", "abc", "0", "1\n"])
def test_a_pid_file_without_a_daemon_is_none(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pid") / "pid"
    assert processes.pid_in_file(path) is None
    path.write_text(text)
    assert processes.pid_in_file(path) is None
