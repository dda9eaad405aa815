"""A sample of a standby's copy for a rehearsal: configuration, and a few accounts, as they stand at one log position.

*Why a sample, and not the copy itself under an overlay*: the applier goes on, and an overlay whose lower layer changes
is undefined (the kernel's Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems"); so applying
would have to rest for as long as a rehearsal takes, some seconds in which the standby falls behind. Copying a few
accounts takes some hundredths of a second of rest. Hard links would not do: the applier patches files where they stand.
What the sample cannot show is that all other accounts are as good: that is what ``verify`` compares.

Accounts are found by going down from the store's root at random until a mail directory is met, so that the number of
accounts does not matter. Of a Maildir some messages are taken, and all bookkeeping; of dbox the whole account. Each
message file taken is compared with what the log said it is: its digests stand in the tree index.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.changes.digest import content_digests
from holdfast.errors import HoldfastError
from holdfast.mail.mailboxes import MAIL_FOLDERS, Accounts, Format, is_maildir
from holdfast.mail.rehearse import Item, Sampled
from holdfast.trees.index import IndexReader, NodeKind
from holdfast.trees.spec import RESERVED_NAME, TreeSpec

ACCOUNTS: Final = 3
MESSAGES: Final = 40
"""Of one account, from all its folders."""
DESCENTS_MAX: Final = 40
DEPTH_MAX: Final = 12
ENTRIES_MAX: Final = 20_000
"""An account with more files is passed over while there are others: they would be listed while applying rests."""
ACCOUNT_BYTES_MAX: Final = 48 * 1024 * 1024
ETC_BYTES_MAX: Final = 64 * 1024 * 1024
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
"""In memory, twice, for a moment; a single larger file (a mailbox index of a million messages) is left out."""


class Chosen(NamedTuple):
    """An account to be sampled. *home*: what is copied, *mail* its mail directory, both below the root of *tree*."""

    tree: TreeSpec
    home: bytes
    mail: bytes
    account: str
    format: Format


class Taken(NamedTuple):
    """What is on the stage, and what of it is not what the log says it is."""

    accounts: tuple[Sampled, ...]
    items: tuple[Item, ...]
    binds: tuple[tuple[str, str], ...]
    """Folder of the stage, and where it is to be seen."""
    strange: tuple[str, ...]


def choose(trees: Iterable[TreeSpec], accounts: Accounts, chance: random.Random) -> list[Chosen]:
    """Some accounts of the stores, whichever chance leads to; the small ones where there are such."""
    stores = [tree for tree in trees if tree.name.startswith("store") and os.path.isdir(tree.root)]
    found: dict[str, Chosen] = {}
    large: dict[str, Chosen] = {}
    for _ in range(DESCENTS_MAX if stores else 0):
        if len(found) >= ACCOUNTS:
            break
        tree = chance.choice(stores)
        chosen = _descend(tree, accounts, chance)
        if chosen is not None and chosen.account not in found:
            small = _entries(os.path.join(os.fsencode(tree.root), chosen.home)) <= ENTRIES_MAX
            (found if small else large)[chosen.account] = chosen
    return list((found or dict(list(large.items())[:1])).values())


def _descend(tree: TreeSpec, accounts: Accounts, chance: random.Random) -> Chosen | None:
    at = os.fsencode(tree.root)
    for _ in range(DEPTH_MAX):
        try:
            names = [each.name for each in os.scandir(at) if each.is_dir(follow_symlinks=False)]
        except OSError:
            return None
        names = [name for name in names if name != RESERVED_NAME]
        if (kind := _format(at, names)) is not None:
            mail = os.path.relpath(at, os.fsencode(tree.root))
            above, _, name = mail.rpartition(b"/")
            home = above if above and os.fsdecode(name).lower() in MAIL_FOLDERS else mail
            return Chosen(tree, home, mail, accounts.account(at), kind)
        if not names:
            return None
        at = os.path.join(at, chance.choice(names))
    return None


def _format(at: bytes, names: list[bytes]) -> Format | None:
    if is_maildir(names):
        return Format.MAILDIR
    if b"mailboxes" not in names:
        return None
    return Format.MDBOX if os.path.isdir(os.path.join(at, b"storage")) else Format.SDBOX


def _entries(directory: bytes) -> int:
    count = 0
    for _, folders, files in os.walk(directory):
        count += len(folders) + len(files)
        if count > ENTRIES_MAX:
            break
    return count


class Sampler:
    """Copies onto the stage at *folder*, a folder of ours alone."""

    def __init__(self, folder: Path, trees: Iterable[TreeSpec], chosen: list[Chosen], chance: random.Random) -> None:
        self._folder = folder
        self._trees = list(trees)
        self._chosen = chosen
        self._chance = chance
        self._strange: list[str] = []
        self._places: dict[str, Path] = {}

    def prepare(self) -> None:
        """What needs no rest of the applier: the machine's own ``/etc``. Raises OSError, HoldfastError."""
        target = self._place("/etc")
        spent = 0
        for path in _below(Path("/etc")):
            if path.parts[:3] == ("/", "etc", "holdfast") and path.parts[3:4] != ("overrides",):
                continue  # keys of ours: nobody on the stage needs them
            spent += path.lstat().st_size if path.is_file() else 0
            if spent > ETC_BYTES_MAX:
                raise HoldfastError(f"/etc holds more than {ETC_BYTES_MAX >> 20} MB", hint="What is it that fills it?")
            _copy(path, target / path.relative_to("/etc"))

    def take(self, index: IndexReader) -> Taken:
        """Everything else, while applying rests. Raises OSError."""
        for tree in self._trees:
            if tree.name == "config" or tree.name.startswith("config-"):
                for inner in tree.include or ("",):
                    self._copy_all(Path(tree.root), Path(tree.root, inner))
        accounts = [each for chosen in self._chosen if (each := self._account(chosen, index)) is not None]
        for tree in self._trees:
            if tree.name.startswith("store"):
                self._place(tree.root)  # also when nobody was chosen: the real one is not to be seen
        items = [item for tree in self._trees if tree.name == "groupware" for item in self._groupware(tree)]
        binds = tuple((str(place), root) for root, place in self._places.items())
        return Taken(tuple(accounts), tuple(items), binds, tuple(self._strange))

    def _place(self, root: str) -> Path:
        """Where on the stage *root* is kept; made like it."""
        if root not in self._places:
            for known, place in self._places.items():
                if root.startswith(known + "/"):
                    return place / os.path.relpath(root, known)
            place = self._folder / str(len(self._places))
            place.mkdir()
            _like(Path(root), place)
            self._places[root] = place
        return self._places[root]

    def _copy_all(self, root: Path, top: Path) -> None:
        place = self._place(str(root))
        for path in (top, *(_below(top) if top.is_dir() and not top.is_symlink() else ())):
            if RESERVED_NAME.decode() not in path.parts and os.path.lexists(path):
                self._way(root, path, place)
                _copy(path, place / path.relative_to(root))

    def _way(self, root: Path, path: Path, place: Path) -> None:
        """The folders on the way to *path*, made like those of the copy."""
        for above in reversed(path.relative_to(root).parents):
            if not (place / above).exists():
                (place / above).mkdir()
                _like(root / above, place / above)

    def _account(self, chosen: Chosen, index: IndexReader) -> Sampled | None:
        root, place = Path(chosen.tree.root), self._place(chosen.tree.root)
        home, mail = root / os.fsdecode(chosen.home), root / os.fsdecode(chosen.mail)
        found = [path for path in _below(home) if "tmp" not in path.parts[-2:-1]]
        messages = [path for path in found if path.parent.name in ("cur", "new") and path.is_file()]
        left_out = set(messages) - set(self._chance.sample(messages, min(MESSAGES, len(messages))))
        kept = [path for path in found if path not in left_out]
        if chosen.format is not Format.MAILDIR and _size(kept) > ACCOUNT_BYTES_MAX:
            return None
        self._way(root, home / "x", place)
        for path in kept:
            content = _copy(path, place / path.relative_to(root))
            if content is not None and path in set(messages):
                self._compare(chosen.tree.name, os.fsencode(path.relative_to(root)), content, index)
        return Sampled(chosen.account, chosen.format, str(mail))

    def _compare(self, tree: str, path: bytes, content: bytes, index: IndexReader) -> None:
        node = index.at(tree, path)
        if node is None or node.kind != NodeKind.FILE or node.content != content_digests(content):
            said = "the log knows no such file" if node is None else "its bytes are not those of the log"
            self._strange.append(f"{tree}/{path.decode('utf-8', 'backslashreplace')}: {said}")

    def _groupware(self, tree: TreeSpec) -> Iterator[Item]:
        """One item of some users (Radicale keeps it as ``collection-root/USER/COLLECTION/ITEM``)."""
        root, place = Path(tree.root), self._place(tree.root)
        users = root / "collection-root"
        if not users.is_dir():
            return
        self._way(root, users / "x", place)
        homes = [each for each in users.iterdir() if each.is_dir() and not each.name.startswith(".")]
        for home in self._chance.sample(homes, min(ACCOUNTS, len(homes))):
            if _size(_below(home)) > ACCOUNT_BYTES_MAX:
                continue
            self._copy_all(root, home)
            if found := [path for path in home.glob("*/*.[iv]c[sf]") if path.is_file()]:
                item = self._chance.choice(found)
                yield Item(home.name, f"/{item.relative_to(users)}", str(item))


def _below(top: Path) -> Iterator[Path]:
    """Everything below *top*, a folder before what is in it."""
    for directory, folders, files in os.walk(top):
        for name in (*folders, *files):
            yield Path(directory, name)


def _size(paths: Iterable[Path]) -> int:
    return sum(path.lstat().st_size for path in paths if os.path.lexists(path))


def _copy(path: Path, target: Path) -> bytes | None:
    """One thing, with owner, bits and times; what a file holds. What is none of file, folder and link is left out."""
    try:
        status = path.lstat()
        content = None
        if stat.S_ISLNK(status.st_mode):
            target.unlink(missing_ok=True)
            target.symlink_to(os.readlink(path))
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
            return None
        if stat.S_ISDIR(status.st_mode):
            target.mkdir(exist_ok=True)
        elif stat.S_ISREG(status.st_mode) and status.st_size <= FILE_BYTES_MAX:
            content = path.read_bytes()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        else:
            return None
    except FileNotFoundError:
        return None  # it went while we looked: nobody rests while /etc is read
    _like(path, target)
    return content


def _like(path: Path, target: Path) -> None:
    status = path.stat()
    os.chown(target, status.st_uid, status.st_gid)
    shutil.copystat(path, target)
