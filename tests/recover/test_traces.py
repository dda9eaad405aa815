"""Where the log is archived: a deletion is known to the record that captured it, any instant can be searched, and what
came and went between two snapshots is found."""

from __future__ import annotations

from holdfast.changes.change import Change, Extent, Meta, Mkdir, Put, Remove, Rename
from holdfast.changes.digest import content_digests
from holdfast.changes.frame import pack_changes
from holdfast.changes.names import Incarnation, Position, Sequence
from holdfast.mail.mailboxes import Accounts
from holdfast.recover.boxes import Moment
from holdfast.recover.headers import Headers
from holdfast.recover.search import Query, search
from holdfast.recover.traces import Ground, Traces, traces
from holdfast.recover.wanted import messages_of
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.instant import Archive, open_instant
from tests.apply.model import TREE
from tests.vault import site
from tests.vault.history import SECOND, START_NS, History, first_snapshot, position

META = Meta(0o755, "#0", "#0", 0)
INBOX, TRASH = b"example.org/alice/Maildir", b"example.org/alice/Maildir/.Trash"


def put(path: bytes, subject: str) -> Put:
    data = f"Subject: {subject}\n\nbody\n".encode()
    return Put(TREE, path, len(data), META, content_digests(data), (Extent(0, data),))


def folders(path: bytes) -> list[Change]:
    parts = path.split(b"/")
    above = [Mkdir(TREE, b"/".join(parts[: n + 1]), META) for n in range(len(parts))]
    return [*above, Mkdir(TREE, path + b"/cur", META), Mkdir(TREE, path + b"/new", META)]


def test_a_deletion_is_known_to_the_second() -> None:
    history = History()
    steps: list[list[Change]] = [
        [*folders(INBOX), *folders(TRASH)[-3:]],
        [
            put(INBOX + b"/new/1.host", "removed"),
            put(INBOX + b"/new/2.host", "moved"),
            put(INBOX + b"/new/3.host", "kept"),
        ],
        [Rename(TREE, INBOX + b"/new/1.host", INBOX + b"/cur/1.host:2,S")],
        [Remove(TREE, INBOX + b"/cur/1.host:2,S")],
        [Rename(TREE, INBOX + b"/new/2.host", TRASH + b"/cur/2.host:2,S")],
        [Rename(TREE, INBOX + b"/new/3.host", INBOX + b"/cur/3.host:2,F")],
    ]
    for changes in steps:
        history._append(pack_changes(tuple(changes)), more=False)
    with site.new_vault(MemoryBackend()) as vault:
        first_snapshot(vault)
        history.archive(vault, 1, history.last)
        archive = Archive(vault)
        moments = []
        instants = [open_instant(vault, archive.at_position(position(number))) for number in (2, 6)]
        for number, instant in zip((2, 6), instants, strict=True):
            snapshot = instant.snapshot
            moments.append(Moment(f"{number:04}", START_NS + number * SECOND, snapshot.trees, instant.vault.content))
        found = search(moments, Query(), Headers(), Accounts())
        by_subject = {one.header.envelope.subject: one for one in found.presences if one.box.mailbox.folder == "INBOX"}
        seen = traces(vault, found.presences, Query(), Ground({TREE: b"/mail"}, Accounts()))
        for instant in instants:
            instant.close()
    left = seen.departures
    assert (found.problems, seen.short) == ({}, [])
    assert sorted(by_subject) == ["kept", "moved", "removed"]
    assert left[id(by_subject["removed"])] == (START_NS + 4 * SECOND, "")
    assert left[id(by_subject["moved"])] == (START_NS + 5 * SECOND, "Trash")
    assert id(by_subject["kept"]) not in left
    assert len(left) == 2


def test_what_came_and_went_between_two_snapshots_is_found_and_restored() -> None:
    history = History()
    steps: list[list[Change]] = [
        [*folders(INBOX), *folders(TRASH)[-3:]],
        [put(INBOX + b"/new/1.host", "in a hurry"), put(INBOX + b"/new/2.host", "stays")],
        [Rename(TREE, INBOX + b"/new/1.host", INBOX + b"/cur/1.host:2,S")],
        [put(INBOX + b"/new/3.host", "too quick"), Remove(TREE, INBOX + b"/new/3.host")],
        [Remove(TREE, INBOX + b"/cur/1.host:2,S")],
        [put(INBOX + b"/new/4.host", "moved away")],
        [Rename(TREE, INBOX + b"/new/4.host", TRASH + b"/cur/4.host:2,S")],
    ]
    for changes in steps:
        history._append(pack_changes(tuple(changes)), more=False)
    with site.new_vault(MemoryBackend()) as vault:
        first_snapshot(vault)
        history.archive(vault, 1, 4)
        history.archive(vault, 3, history.last)
        snapshot = vault.snapshot(vault.find_snapshot("latest"))
        moments = [Moment("0000", snapshot.taken_at_ns, snapshot.trees, vault.content)]

        def looked(**asked: object) -> Traces:
            query = Query(**asked)  # type: ignore[arg-type]
            found = search(moments, query, Headers(), Accounts())
            return traces(vault, found.presences, query, Ground({TREE: b"/mail"}, Accounts()))

        assert looked().short == []
        seen = looked(deleted_from_ns=0)
        told = [(one.header.envelope.subject, one.box.account, seen.departures[id(one)]) for one in seen.short]
        assert told == [
            ("in a hurry", "alice@example.org", (START_NS + 5 * SECOND, "")),
            ("moved away", "alice@example.org", (START_NS + 7 * SECOND, "Trash")),
        ]
        assert looked(deleted_from_ns=START_NS + 6 * SECOND, subject="hurry").short == []
        assert looked(deleted_from_ns=0, account="bob@example.org").short == []
        (one,) = looked(deleted_from_ns=0, subject="hurry").short
        label, _, _ = one.id.rpartition("-")
        incarnation, _, sequence = label.partition(":")
        at = Archive(vault).at_position(Position(Incarnation(incarnation), Sequence(int(sequence))))
        with open_instant(vault, at) as instant:
            moment = Moment(label, at.time_ns, instant.snapshot.trees, instant.vault.content)
            chosen = messages_of([one.id], {label: moment}.__getitem__, Accounts())
            (wanted,) = chosen.wanted["alice@example.org"]
            assert wanted.stored.flags == ("\\Seen",)
            assert b"in a hurry" in wanted.stored.raw(wanted.read)
