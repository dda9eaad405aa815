"""Places to watch: a filesystem of our own for fanotify, any folder for inotify, an overlay without handles."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.watch.ground import Ground


@contextmanager
def mounted(kind: str, at: Path, *options: str, device: str = "none") -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, *options, device, str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@contextmanager
def own_tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, mounted("tmpfs", Path(folder) / "fs") as at:
        yield at


@contextmanager
def own_ext4(megabytes: int = 300) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        with mounted("ext4", Path(folder) / "fs", "-o", "loop", device=str(image)) as at:
            yield at


@contextmanager
def own_overlay() -> Iterator[Path]:
    with own_tmpfs() as base:
        for name in ("lower", "upper", "work"):
            (base / name).mkdir()
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        with mounted("overlay", base / "merged", "-o", options, device="overlay") as at:
            yield at


@pytest.fixture
def inotify_ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path, sources=("inotify",))
    yield ground
    ground.close()


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with own_tmpfs() as at:
        yield at


@pytest.fixture
def ext4() -> Iterator[Path]:
    with own_ext4() as at:
        yield at


@pytest.fixture
def overlay() -> Iterator[Path]:
    with own_overlay() as at:
        yield at


@pytest.fixture(
    params=[
        "inotify",
        pytest.param("fanotify", marks=pytest.mark.system),
        pytest.param("overlay", marks=pytest.mark.system),
    ]
)
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Every fact about the reconciler holds with each source of events."""
    if request.param == "inotify":
        made = Ground(tmp_path, sources=("inotify",))
        yield made
        made.close()
        return
    place = own_tmpfs() if request.param == "fanotify" else own_overlay()
    source = "fanotify" if request.param == "fanotify" else "inotify"
    with place as at:
        made = Ground(at, sources=(source,))
        yield made
        made.close()


def exchange(left: Path | bytes, right: Path | bytes) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(left), -100, os.fsencode(right), 2):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
