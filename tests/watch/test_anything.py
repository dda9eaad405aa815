"""Any sequence of operations, with crashes and lost events anywhere in between, ends with equal trees."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from holdfast.watch.limits import Limits
from tests.examples import examples
from tests.watch.conftest import exchange, own_overlay, own_tmpfs
from tests.watch.ground import Ground

SMALL = Limits(
    settle_seconds=0.0,
    limbo_seconds=0.0,
    retry_seconds=0.0,
    piece_bytes=128 * 1024,
    frame_content_bytes=4096,
    scan_batch_bytes=32 * 1024,
    append_reach_bytes=64 * 1024,
    events_between_seconds=0.0,
    directories_cached_max=4,
    directory_fds_max=2,
    tails_bytes_max=100_000,
)
NAMES = ("a", "b", "c", "x.log", "dovecot.index", "tmp")
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
sizes = st.sampled_from([0, 1, 100, 5000, 65536, 65537, 200_000, 400_000])


def content(size: int, seed: int) -> bytes:
    return bytes([seed % 251]) * (size // 2) + os.urandom(1) * (size - size // 2)


class Operations(RuleBasedStateMachine):
    """What can be done to the files below *root*; things are moved there from *outside*, and back."""

    root: Path
    outside: Path

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    def place(self) -> Path:
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))

    def at(self, path: str) -> Path:
        return self.root / path

    @rule(path=paths, size=sizes, seed=st.integers(0, 1000))
    def write(self, path: str, size: int, seed: int) -> None:
        with suppress(OSError):
            if path.endswith("x.log"):  # files that grow are not written anew in place: that is the deal
                self.at(path).unlink(missing_ok=True)
            self.at(path).write_bytes(content(size, seed))

    @rule(path=paths, size=sizes, seed=st.integers(0, 1000))
    def replace(self, path: str, size: int, seed: int) -> None:
        with suppress(OSError):
            made = self.at(path + ".lock")
            made.write_bytes(content(size, seed))
            os.rename(made, self.at(path))

    @rule(path=paths, size=sizes, seed=st.integers(0, 1000))
    def append(self, path: str, size: int, seed: int) -> None:
        with suppress(OSError), open(self.at(path), "ab") as file:
            file.write(content(size, seed))

    @rule(path=paths, offset=sizes, size=sizes, seed=st.integers(0, 1000))
    def overwrite(self, path: str, offset: int, size: int, seed: int) -> None:
        if path.endswith("x.log"):
            return
        with suppress(OSError), open(self.at(path), "r+b") as file:
            file.seek(offset)
            file.write(content(size, seed))

    @rule(path=paths, size=sizes)
    def truncate(self, path: str, size: int) -> None:
        with suppress(OSError):
            os.truncate(self.at(path), size)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        with suppress(OSError):
            self.at(path).mkdir(parents=True)

    @rule(path=paths)
    def remove(self, path: str) -> None:
        with suppress(OSError):
            self.at(path).unlink()

    @rule(path=paths)
    def remove_tree(self, path: str) -> None:
        shutil.rmtree(self.at(path), ignore_errors=True)

    @rule(path=paths, to=paths)
    def rename(self, path: str, to: str) -> None:
        with suppress(OSError):
            os.rename(self.at(path), self.at(to))

    @rule(path=paths, to=paths)
    def swap(self, path: str, to: str) -> None:
        with suppress(OSError):
            exchange(self.at(path), self.at(to))

    @rule(path=paths)
    def swap_with_parent(self, path: str) -> None:
        """a/b becomes b/a."""
        inner, outer = self.at(path), self.at(path).parent
        if outer == self.root or not inner.is_dir():
            return
        with suppress(OSError):
            spare = self.root / "spare"
            os.rename(inner, spare)
            os.rename(outer, spare / inner.name)
            os.rename(spare, outer)

    @rule(path=paths, to=paths)
    def link(self, path: str, to: str) -> None:
        with suppress(OSError):
            os.link(self.at(path), self.at(to))

    @rule(path=paths, to=st.sampled_from(["a", "../b", "/etc", "loop"]))
    def symlink(self, path: str, to: str) -> None:
        with suppress(OSError):
            os.symlink(to, self.at(path))

    @rule(path=paths, mode=st.sampled_from([0o600, 0o640, 0o755]), time=st.integers(0, 10**18))
    def describe(self, path: str, mode: int, time: int) -> None:
        with suppress(OSError):
            if not self.at(path).is_symlink():
                os.chmod(self.at(path), mode)
            os.utime(self.at(path), ns=(time, time), follow_symlinks=False)

    @rule(path=paths, uid=st.sampled_from([0, 8, 4711]))
    def chown(self, path: str, uid: int) -> None:
        with suppress(OSError):
            os.chown(self.at(path), uid, uid, follow_symlinks=False)

    @rule(path=paths, value=st.binary(max_size=5))
    def xattr(self, path: str, value: bytes) -> None:
        with suppress(OSError):
            os.setxattr(self.at(path), "trusted.holdfast", value, follow_symlinks=False)

    @rule(path=paths, name=names)
    def move_out(self, path: str, name: str) -> None:
        with suppress(OSError):
            os.rename(self.at(path), self.outside / name)

    @rule(path=paths, name=names)
    def move_in(self, path: str, name: str) -> None:
        with suppress(OSError):
            os.rename(self.outside / name, self.at(path))


class Anything(Operations):
    source = "inotify"
    ground: Ground | None = None

    @initialize(handles=st.booleans())
    def begin(self, handles: bool) -> None:
        self.stand_on(Ground(self.place(), sources=(self.source,), limits=SMALL))

    def stand_on(self, ground: Ground) -> None:
        self.ground, self.root, self.outside = ground, ground.root, ground.outside

    @rule()
    def collect(self) -> None:
        assert self.ground is not None
        self.ground.take(self.ground.watcher.collect(wait_seconds=0))

    @rule(data=st.data(), parts=st.integers(1, 3))
    def collect_while_it_goes_on(self, data: st.DataObject, parts: int) -> None:
        """Something happens between two parts of a batch."""
        assert self.ground is not None
        batch = self.ground.watcher.collect(wait_seconds=0)
        self.ground.take(batch, parts)
        self.rename(data.draw(paths), data.draw(paths))
        self.write(data.draw(paths), 5000, 3)
        self.ground.take(batch)

    @rule()
    def commit(self) -> None:
        assert self.ground is not None
        self.ground.commit()

    @rule(parts=st.integers(0, 3))
    def crash(self, parts: int) -> None:
        """The agent dies with a batch half handed over."""
        assert self.ground is not None
        if parts:
            self.ground.take(self.ground.watcher.collect(wait_seconds=0), parts)
        self.ground.crash()

    @rule()
    def overflow(self) -> None:
        """Events are lost."""
        assert self.ground is not None
        self.ground.watcher._drain()
        self.ground.watcher._dirty.overflow()

    @rule()
    def check(self) -> None:
        assert self.ground is not None
        self.ground.collect()
        self.ground.take(self.ground.watcher.collect(wait_seconds=0))
        self.ground.check()

    def teardown(self) -> None:
        try:
            if self.ground is not None:
                self.check()
        finally:
            if self.ground is not None:
                self.ground.close()
            self.stack.close()


class AnythingFanotify(Anything):
    source = "fanotify"

    def place(self) -> Path:
        return self.stack.enter_context(own_tmpfs())


class AnythingOverlay(Anything):
    def place(self) -> Path:
        return self.stack.enter_context(own_overlay())


EXAMPLES = examples(40)
EFFORT = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_inotify() -> None:
    run_state_machine_as_test(Anything, settings=EFFORT)


@pytest.mark.system
def test_fanotify() -> None:
    run_state_machine_as_test(AnythingFanotify, settings=EFFORT)


@pytest.mark.system
def test_without_handles() -> None:
    run_state_machine_as_test(AnythingOverlay, settings=EFFORT)
