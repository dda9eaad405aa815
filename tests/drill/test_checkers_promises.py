"""The promises about loss, writers, trees, time, doubles and truth, on facts broken on purpose."""

from __future__ import annotations

import math

import msgspec
import pytest

from holdfast.drill.checkers.exactly_once import exactly_once
from holdfast.drill.checkers.facts import Appended, Probe, Protocol, TreeEntry
from holdfast.drill.checkers.findings import Difference, Duplicate, LostMessage, What
from holdfast.drill.checkers.in_time import in_time, longest_outage, outage_since
from holdfast.drill.checkers.nothing_lost import Reach, explain, nothing_lost
from holdfast.drill.checkers.one_writer import one_answers, one_writer
from holdfast.drill.checkers.prefix import prefix
from holdfast.drill.checkers.truthful import reported_done, truthful
from tests.drill.made import ANN, SECOND, probe


def lost(message_id: str, at_seconds: float) -> LostMessage:
    at_ns = round(at_seconds * SECOND)
    return LostMessage(ANN, message_id, "Deliver", at_ns, at_ns, "INBOX")


# --- 1: nothing lost ----------------------------------------


def test_without_a_bound_every_loss_breaks_the_promise() -> None:
    assert [one.before for one in nothing_lost([lost("a", 1)], Reach())] == ["a"]


def test_only_what_was_acknowledged_after_the_safe_moment_and_before_the_kill_is_excused() -> None:
    reach = Reach(safe_mono_ns=10 * SECOND, killed_mono_ns=11 * SECOND)
    explained = explain([lost("early", 10), lost("late", 10.9), lost("after", 11.1)], reach)
    assert [(one.message_id, one.excused) for one in explained] == [("early", False), ("late", True), ("after", False)]
    assert "100 ms after its acknowledgement" in explained[1].reason
    assert len(nothing_lost(explained, reach)) == 2


@pytest.mark.parametrize(("protected", "broken"), [(True, 1), (False, 0)])
def test_a_message_in_the_dead_machines_queue_is_excused_only_when_the_queue_was_not_protected(
    protected: bool, broken: int
) -> None:
    reach = Reach(queued=frozenset({"q"}), queue_protected=protected)
    assert len(nothing_lost([lost("q", 1)], reach)) == broken
    assert "mail queue" in explain([lost("q", 1)], reach)[0].reason


def test_a_message_that_only_the_dead_machines_disk_had_is_named_as_that() -> None:
    reach = Reach(safe_mono_ns=10 * SECOND, killed_mono_ns=11 * SECOND, set_aside=frozenset({"kept", "later"}))
    kept, later = explain([lost("kept", 9), lost("later", 11.5)], reach)
    assert (kept.excused, later.excused) == (True, False)
    assert "2000 ms after its acknowledgement" in kept.reason


def test_a_copy_not_yet_captured_is_excused_only_while_the_message_is_there() -> None:
    reach = Reach(safe_mono_ns=10 * SECOND, killed_mono_ns=11 * SECOND)
    moved = msgspec.structs.replace(lost("a", 1), rests_on=(1 * SECOND, round(10.5 * SECOND)))
    assert explain([msgspec.structs.replace(moved, copies=1)], reach)[0].excused
    assert not explain([moved], reach)[0].excused, "the message itself was captured"
    early = msgspec.structs.replace(moved, copies=1, rests_on=(1 * SECOND,))
    assert not explain([early], reach)[0].excused


# --- 2: one writer ----------------------------------------


def log(*records: tuple[int, str] | tuple[int, str, bool]) -> list[Appended]:
    return [Appended(sequence, record[0], record[1], len(record) > 2) for sequence, record in enumerate(records, 1)]


def test_epochs_with_one_writer_each_are_right() -> None:
    assert one_writer(log((1, "main", True), (1, "main"), (2, "backup", True), (2, "backup"))) == []


@pytest.mark.parametrize(
    "records",
    [
        log((1, "main", True), (2, "backup", True), (1, "main")),
        log((1, "main", True), (1, "backup")),
        log((1, "main", True), (3, "backup", True)),
        log((1, "main", True), (1, "backup", True)),
        log((0, "main"), (0, "backup")),
    ],
    ids=["older epoch", "another machine", "skipped epoch", "epoch promised twice", "two before any promotion"],
)
def test_a_second_writer_is_found(records: list[Appended]) -> None:
    (found,) = one_writer(records)
    assert (found.what, found.uid) == (What.WRITER, len(records))


def test_of_a_log_seen_from_the_middle_the_first_record_says_who_writes() -> None:
    records = log((1, "main", True), (1, "main"), (2, "backup", True), (2, "backup"), (1, "main"))
    assert one_writer(records[1:4]) == one_writer(records[2:4]) == []
    assert [one.uid for one in one_writer(records[1:])] == [5]


def test_an_old_primary_that_answers_again_is_found_beyond_the_bound() -> None:
    probes = [probe(1), probe(2), probe(3, by="backup"), probe(3.2, by="main"), probe(4, by="backup")]
    assert [one.account for one in one_answers(probes, overlap_seconds_max=0)] == ["main"]
    assert one_answers(probes, overlap_seconds_max=0.5) == []
    assert one_answers([probe(1), probe(2, by="backup")], overlap_seconds_max=0) == []


# --- 3: prefix ----------------------------------------

ENTRY = TreeEntry("file", 0o600, "vmail", "vmail", 5, 10, "d")
FOLDER = TreeEntry("directory", 0o700, "vmail", "vmail", 5, 4096, "")


def test_equal_trees_have_no_difference_and_a_folders_time_does_not_count() -> None:
    moved = msgspec.structs.replace(FOLDER, mtime_ns=9, size_bytes=1)
    assert prefix("store", {b"a": ENTRY, b"d": FOLDER}, {b"a": ENTRY, b"d": moved}) == []


@pytest.mark.parametrize("field", TreeEntry.__struct_fields__)
def test_each_field_of_a_file_counts(field: str) -> None:
    value = getattr(ENTRY, field)
    other = msgspec.structs.replace(ENTRY, **{field: value + 1 if isinstance(value, int) else value + "x"})
    (found,) = prefix("store", {b"\xff\n": ENTRY}, {b"\xff\n": other})
    assert (found.account, found.folder, found.note) == ("store", "\\xff\n", field)


def test_a_path_on_one_side_only_is_found() -> None:
    assert len(prefix("store", {b"a": ENTRY}, {b"b": ENTRY})) == 2


# --- 5: in time ----------------------------------------


def outage_probes() -> list[Probe]:
    return [probe(1), probe(2), probe(2.05, good=False), probe(2.5, good=False), probe(3.5, by="backup"), probe(4)]


def test_an_outage_counts_from_the_failure_to_the_end_of_the_first_success() -> None:
    found = outage_since(outage_probes(), Protocol.IMAP, round(2.02 * SECOND))
    assert found.seconds == pytest.approx(3.51 - 2.02)
    assert found.failures == 2
    assert found.first_failure_seconds == pytest.approx(0.03)
    assert in_time([found], 2.0) == []
    assert [one.what for one in in_time([found], 1.0)] == [What.LATE]


def test_a_success_begun_before_the_failure_does_not_end_the_outage() -> None:
    straddling = Probe(Protocol.IMAP, True, 2 * SECOND, 0, 0.5)
    found = outage_since([straddling, probe(9)], Protocol.IMAP, round(2.1 * SECOND))
    assert found.seconds == pytest.approx(9.01 - 2.1)


def test_an_outage_without_end_is_infinite_and_never_in_time() -> None:
    found = outage_since(outage_probes(), Protocol.SMTP, SECOND)
    assert math.isinf(found.seconds)
    assert [one.after for one in in_time([found], 100)] == ["never"]


def test_the_longest_outage_is_found_without_knowing_the_failure() -> None:
    found = longest_outage(outage_probes(), Protocol.IMAP)
    assert found is not None
    assert found.seconds == pytest.approx(3.51 - 2.01)
    assert longest_outage([probe(1), probe(2)], Protocol.IMAP) is None
    ended = longest_outage([probe(1), probe(2, good=False)], Protocol.IMAP)
    assert ended is not None
    assert math.isinf(ended.seconds)


# --- 6 and 7 ----------------------------------------


def test_doubles_are_judged_by_whether_a_retry_excuses_them() -> None:
    unexplained = Duplicate(ANN, "a", ("INBOX",), 2, 1, explained=False)
    retried = msgspec.structs.replace(unexplained, message_id="b", explained=True)
    assert len(exactly_once([unexplained, retried], allow_explained=True)) == 1
    assert len(exactly_once([unexplained, retried], allow_explained=False)) == 2


def test_a_loss_that_nobody_named_breaks_the_truth() -> None:
    found = truthful([lost("a", 1), lost("b", 1)], {"a"})
    assert [(one.what, one.before) for one in found] == [(What.NOT_NAMED, "b")]


def test_a_step_reported_done_that_was_not_breaks_the_truth() -> None:
    assert reported_done(["address", "start"], {"address", "start"}) == []
    assert len(reported_done(["address", "start"], {"address"})) == 1


def test_a_difference_reads_as_a_sentence_with_its_address() -> None:
    text = str(Difference(ANN, "INBOX", 4, What.FLAGS, "(\\Seen)", "()", "note"))
    assert text == "ann@example.org/INBOX UID 4: flags differ: (\\Seen) -> () (note)"
