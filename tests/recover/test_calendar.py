"""Events into a running Radicale: its clients see what was missing, and what they changed since stays theirs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from holdfast.drill.workload.dav import DavClient
from holdfast.drill.workload.net import Endpoint, Patience
from holdfast.errors import ConfigurationError
from holdfast.recover import groupware
from holdfast.recover.boxes import Moment
from holdfast.recover.calendar import LOCK_NAME, ItemStep, ItemVerdict, execute_items, plan_items
from holdfast.recover.groupware import Version, items_by_id, items_of_collections
from holdfast.recover.headers import Headers
from holdfast.recover.wanted import split_id
from holdfast.vault import backup
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.record import Read
from tests.mail.boxes import PASSWORD, USER, RadicaleBox
from tests.recover.site import event
from tests.vault import site

pytestmark = pytest.mark.system
WORK = f"/{USER}/office/"


class Running:
    def __init__(self, box: RadicaleBox) -> None:
        self.box = box
        self.vault = site.new_vault(MemoryBackend())
        self.clocks = site.clocks()
        self.dav = DavClient(Endpoint("127.0.0.1", box.port), Patience(), USER, PASSWORD)

    def snapshot(self) -> Moment:
        trees = [site.tree(self.box.storage, "groupware")]
        made = backup.backup_trees(self.vault, trees, "main", clocks=self.clocks)
        return Moment(made.name.short[:8], made.snapshot.taken_at_ns, made.snapshot.trees, self.vault.content)

    def titles(self, href: str = WORK) -> list[str]:
        found = []
        for entry in self.dav.children(href):
            text = self.dav.get(entry.href)
            found.append(next(line[8:] for line in text.splitlines() if line.startswith("SUMMARY:")))
        return sorted(found)

    def restore(self, pairs: list[tuple[Version, Read]], into: str = "") -> list[ItemStep]:
        readers = {id(version): read for version, read in pairs}

        def read(version: Version) -> tuple[bytes, bytes]:
            source = readers[id(version)]
            return groupware.content_of(version.entry, source), groupware.properties_of(version.shelf, source)

        steps = plan_items(self.box.storage, [version for version, _ in pairs], read, into)
        execute_items(self.box.storage, steps)
        return steps


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="hf-dav-") as name:
        Path(name).chmod(0o755)
        box = RadicaleBox(Path(name))
        shutil.chown(box.storage, 5000, 5000)
        (Path(name) / "radicale/users").chmod(0o644)
        asyncio.run(box.service.start())
        try:
            made = Running(box)
            made.dav.make_collection(WORK, calendar=True, name="Work")
            for number in range(3):
                made.dav.put(f"{WORK}{number}.ics", event(f"uid-{number}", f"title {number}"))
            yield made
        finally:
            asyncio.run(box.service.stop())


SYNC = """<?xml version="1.0"?><d:sync-collection xmlns:d="DAV:"><d:sync-token>{token}</d:sync-token>
<d:sync-level>1</d:sync-level><d:prop><d:getetag/></d:prop></d:sync-collection>"""


def synchronised(running: Running, token: str) -> tuple[str, list[str]]:
    """A client's synchronisation (RFC 6578): the new token, and the items it is told of."""
    _, body = running.dav._ask("REPORT", WORK, SYNC.format(token=token), {"Content-Type": "application/xml"})
    tree = ElementTree.fromstring(body)
    told = [urllib.parse.unquote(found.text or "").rpartition("/")[2] for found in tree.iter("{DAV:}href")]
    return tree.findtext("{DAV:}sync-token", ""), sorted(name for name in told if name)


def test_what_is_missing_comes_and_what_was_changed_since_stays(running: Running) -> None:
    moment = running.snapshot()
    running.dav.delete(f"{WORK}0.ics")
    running.dav.put(f"{WORK}1.ics", event("uid-1", "moved by its owner"))
    running.dav.put(f"{WORK}9.ics", event("uid-9", "new"))
    token, _ = synchronised(running, "")
    pairs, problems = items_of_collections(moment, USER, "Work", Headers())
    assert problems == {}
    steps = running.restore(pairs)
    assert {step.version.item.uid: step.verdict for step in steps} == {
        "uid-0": ItemVerdict.ADDED,
        "uid-1": ItemVerdict.CHANGED,
        "uid-2": ItemVerdict.THERE,
    }
    after = ["moved by its owner", "new", "title 0", "title 2"]
    assert running.titles() == after
    assert synchronised(running, token)[1] == ["0.ics"]
    assert [step.verdict for step in running.restore(pairs) if step.verdict is ItemVerdict.ADDED] == []
    assert running.titles() == after


def test_a_deleted_calendar_and_another_one(running: Running) -> None:
    moment = running.snapshot()
    (path,) = (entry.href for entry in running.dav.children(f"/{USER}/"))
    running.dav.delete(path)
    pairs, _ = items_of_collections(moment, USER, "*", Headers())
    assert len(running.restore(pairs)) == 3
    assert running.titles() == ["title 0", "title 1", "title 2"]
    (again,) = running.dav.children(f"/{USER}/")
    assert (again.href, again.kind, again.properties["name"]) == (path, "calendar", "Work")
    running.restore(pairs, "As it was on Tuesday")
    assert running.titles(f"/{USER}/as-it-was-on-tuesday/") == ["title 0", "title 1", "title 2"]
    names = {entry.properties["name"] for entry in running.dav.children(f"/{USER}/")}
    assert names == {"Work", "As it was on Tuesday"}
    stray = [file for file in running.box.storage.rglob("*") if file.name.startswith(".Radicale.tmp")]
    assert stray == []


def test_one_event_by_its_id_and_the_name_taken(running: Running) -> None:
    moment = running.snapshot()
    (version, _), *_ = items_of_collections(moment, USER, "Work", Headers())[0]
    pairs, missing = items_by_id([version.id], {moment.label: moment}.__getitem__, Headers(), split_id)
    assert (missing, [one.item.uid for one, _ in pairs]) == ({}, ["uid-0"])
    running.dav.delete(f"{WORK}0.ics")
    running.dav.put(f"{WORK}0.ics", event("uid-other", "took the name"))
    assert [step.verdict for step in running.restore(pairs)] == [ItemVerdict.ADDED]
    assert running.titles() == ["title 0", "title 1", "title 2", "took the name"]


def test_it_waits_for_radicales_lock_and_refuses_other_folders(running: Running) -> None:
    moment = running.snapshot()
    running.dav.delete(f"{WORK}2.ics")
    pairs, _ = items_of_collections(moment, USER, "Work", Headers())
    released = threading.Event()
    descriptor = os.open(running.box.storage / LOCK_NAME, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def release() -> None:
        released.set()
        os.close(descriptor)

    timer = threading.Timer(0.2, release)
    timer.start()
    running.restore(pairs)
    assert released.is_set()
    assert len(running.titles()) == 3
    with pytest.raises(ConfigurationError):
        plan_items(running.box.folder, [], lambda _: (b"", b""))
