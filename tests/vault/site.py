"""A small mail store with everything a snapshot must keep, and an exact comparison of two folders."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyrage

from holdfast.trees.spec import Tree, TreeSpec
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import Clocks
from holdfast.vault.repository import Vault, init_vault, open_vault

IDENTITY = str(pyrage.x25519.Identity.generate())
RECIPIENT = str(pyrage.x25519.Identity.from_str(IDENTITY).to_public())
WORDS = ("mail", "holdfast", "vault", "Tuesday", "hello", "budget")
LATER_NS = 3600 * 10**9
"""Files written by a test count as settled."""


class Clock:
    """Wall time that goes on by a minute whenever it is read, an hour ahead of the files."""

    def __init__(self, start_ns: int) -> None:
        self.now_ns = start_ns

    def __call__(self) -> int:
        self.now_ns += 60 * 10**9
        return self.now_ns


def clocks(start_ns: int | None = None) -> Clocks:
    return Clocks(Clock(start_ns or LATER_NS + int(Path("/proc/self").stat().st_mtime_ns)))


def make_store(root: Path, *, seed: int = 1, accounts: int = 3, messages: int = 12) -> Path:
    """Maildirs with hard links, symlinks, odd names, xattrs, empty and large files."""
    chance = random.Random(seed)
    for account in range(accounts):
        for folder in ("cur", "new", "tmp"):
            (root / f"user{account}" / folder).mkdir(parents=True)
        cur = root / f"user{account}" / "cur"
        for number in range(messages):
            message(cur, number, chance)
        os.link(cur / "0.host:2,S", root / f"user{account}" / "new" / "copy")
    odd = os.fsencode(root) + b"/user0/cur/\xff\n odd"
    Path(os.fsdecode(odd)).write_bytes(b"odd name")
    (root / "user0" / "empty").write_bytes(b"")
    (root / "user0" / "large").write_bytes(chance.randbytes(2_500_000))
    (root / "user0" / "zeros").write_bytes(bytes(3_000_000))
    (root / "user0" / "link").symlink_to("large")
    os.utime(root / "user0" / "link", ns=(5, 123_456_789), follow_symlinks=False)
    os.setxattr(root / "user0" / "empty", "user.note", b"\0value")
    os.setxattr(root / "user1", "user.folder", b"yes")
    os.chown(root / "user1" / "cur" / "1.host:2,S", 12345, 8)
    (root / "user1" / "cur" / "1.host:2,S").chmod(0o4640)
    (root / "user2").chmod(0o2750)
    os.utime(root / "user2", ns=(1, 1_500_000_000_123_456_789))
    return root


def message(folder: Path, number: int, chance: random.Random) -> Path:
    words = " ".join(
        chance.choices(("mail", "holdfast", "vault", "Tuesday", "hello", "budget"), k=chance.randint(20, 400))
    )
    path = folder / f"{number}.host:2,S"
    path.write_text(f"From: a{number}@example.org\nSubject: {chance.random()}\n\n{words}\n")
    os.utime(path, ns=(0, 1_600_000_000_000_000_000 + number))
    return path


def tree(root: Path, name: str = "store", **options: Any) -> Tree:
    return Tree(TreeSpec(name, str(root), **options))


def new_vault(backend: MemoryBackend, cache: Path | None = None) -> Vault:
    """A vault just made, open to add and to read."""
    return open_vault(backend, writer=init_vault(backend, (RECIPIENT,)), identities=(IDENTITY,), cache=cache)


def reader(backend: MemoryBackend) -> Vault:
    return open_vault(backend, identities=(IDENTITY,))


def picture(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything a restore must bring back of *root*, itself included, by path."""
    top = os.fsencode(root)
    seen: dict[bytes, tuple[Any, ...]] = {}
    inodes: dict[int, bytes] = {}
    paths = [top]
    for folder, folders, files in os.walk(top):
        paths += [folder + b"/" + name for name in folders + files]
    for path in sorted(paths):
        status = os.lstat(path)
        first = inodes.setdefault(status.st_ino, path[len(top) :])
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        content: bytes | list[bytes] = b""
        if os.path.islink(path):
            content = os.readlink(path)
        elif os.path.isfile(path):
            content = Path(os.fsdecode(path)).read_bytes()
        facts = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
        seen[path[len(top) :]] = (*facts, first, xattrs, content)
    return seen
