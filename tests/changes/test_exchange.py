"""The exchange: what is said comes out as it went in, and nothing else opens."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.changes.change import Meta
from holdfast.changes.digest import DIGEST_BYTES
from holdfast.changes.exchange import (
    Asked,
    AuditFinding,
    AuditNews,
    Busy,
    CloseListing,
    Contents,
    Digests,
    Done,
    Entry,
    EntryKind,
    ExchangeDamaged,
    ExchangeSeal,
    Expired,
    Failed,
    Listing,
    Look,
    Looked,
    NextPage,
    OpenListing,
    Page,
    PartRead,
    PartState,
    PartWanted,
    PollAudit,
    ReadContents,
    ReadDigests,
    Reply,
    Request,
    StartAudit,
    StopAudit,
)
from holdfast.changes.frame import SegmentKey
from holdfast.changes.names import MachineName
from tests.examples import examples

KEY = SegmentKey(b"k" * 32)
MAIN, BACKUP, RELAY = MachineName("main"), MachineName("backup"), MachineName("relay")
SEAL = ExchangeSeal(KEY, MAIN)
META = Meta(0o640, "vmail", "#5000", -1, ((b"user.x", b"\0"),))
FILE = Entry(b"a/\xff\n", EntryKind.FILE, META, 65537, bytes(2 * DIGEST_BYTES), 7, 2)
LARGE = Entry(b"huge", EntryKind.FILE, META, 2**40, b"", 8, 1)
ROOT = Entry(b"", EntryKind.DIRECTORY, META, 0, b"", 1, 1)
LINK = Entry(b"l", EntryKind.SYMLINK, META, 0, b"../x", 2, 1)

REQUESTS: list[Request] = [
    OpenListing(True),
    NextPage("t", "store", None),
    NextPage("t", "store", b""),
    NextPage("t", "store", b"a/\xff"),
    CloseListing("t"),
    ReadContents((PartWanted(1, 2, 3), PartWanted(4, 5, 6))),
    ReadDigests("t", 1, 2),
    Look("t", (("store", b"a"), ("config", b""))),
    StartAudit(True),
    PollAudit("t", 3),
    StopAudit("t"),
]
REPLIES: list[Reply] = [
    Listing("t", "ab" * 16, 9, bytes(32), 3, ("config", "store"), 1, 2, 3, 4),
    Page((ROOT, FILE, LARGE, LINK), False),
    Page((), True),
    Contents((PartRead(PartState.READ, b"x" * 1000, 5), PartRead(PartState.GONE), PartRead(PartState.UNREADABLE))),
    Digests(bytes(32)),
    Looked((FILE, None)),
    AuditNews("t", (AuditFinding("store", b"\xff", "content", "x"),), 1, True, 2, 3, 0),
    Expired(),
    Busy(0.5, "why"),
    Failed("m", "h", True),
    Done(),
]


def asked() -> Asked:
    return SEAL.ask(BACKUP, OpenListing())[0]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_comes_out_as_it_went_in(request_: Request) -> None:
    question, message = SEAL.ask(BACKUP, request_)
    assert SEAL.open_request(message) == question == Asked(BACKUP, question.nonce, request_)


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_comes_out_as_it_went_in(reply: Reply) -> None:
    question = asked()
    assert SEAL.open_reply(question, SEAL.answer(question, reply)) == reply


def test_no_byte_can_be_changed() -> None:
    question, message = SEAL.ask(BACKUP, OpenListing())
    reply = SEAL.answer(question, Page((FILE,), True))
    for at in range(len(message)):
        with pytest.raises(ExchangeDamaged):
            SEAL.open_request(message[:at] + bytes((message[at] ^ 1,)) + message[at + 1 :])
    for at in range(len(reply)):
        with pytest.raises(ExchangeDamaged):
            SEAL.open_reply(question, reply[:at] + bytes((reply[at] ^ 1,)) + reply[at + 1 :])


def test_a_reply_opens_only_for_the_question_it_answers() -> None:
    question, again = asked(), asked()
    reply = SEAL.answer(question, Done())
    with pytest.raises(ExchangeDamaged, match="another question"):
        SEAL.open_reply(again, reply)
    with pytest.raises(ExchangeDamaged, match="another question"):
        SEAL.open_reply(question._replace(requester=RELAY), reply)


def test_a_message_opens_only_with_the_key_and_for_the_machine_it_was_meant_for() -> None:
    question, message = SEAL.ask(BACKUP, OpenListing())
    for other in (ExchangeSeal(SegmentKey(os.urandom(32)), MAIN), ExchangeSeal(KEY, RELAY)):
        with pytest.raises(ExchangeDamaged, match="seal"):
            other.open_request(message)
        with pytest.raises(ExchangeDamaged, match="seal"):
            SEAL.open_reply(question, other.answer(question, Done()))


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    question, message = SEAL.ask(BACKUP, OpenListing())
    with pytest.raises(ExchangeDamaged):
        SEAL.open_reply(question, message)
    with pytest.raises(ExchangeDamaged):
        SEAL.open_request(SEAL.answer(question, Done()))
    turned = bytearray(message)
    turned[3] = 2
    with pytest.raises(ExchangeDamaged):
        SEAL.open_reply(question, bytes(turned))


def test_nothing_of_the_content_is_readable() -> None:
    question, _ = SEAL.ask(BACKUP, OpenListing())
    secret = Page((Entry(b"secret-path", EntryKind.FILE, META, 0, b"", 1, 1),), True)
    assert b"secret" not in SEAL.answer(question, secret)
    assert b"vmail" not in SEAL.answer(question, secret)


@pytest.mark.parametrize(
    "entry",
    [
        Entry(b"../x", EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"a/../b", EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"/abs", EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"a//b", EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"x" * 256, EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"", EntryKind.FILE, META, 0, b"", 1, 1),
        Entry(b"a", EntryKind.FILE, META, -1, b"", 1, 1),
        Entry(b"a", EntryKind.FILE, META, 1, bytes(32), 1, 1),
        Entry(b"a", EntryKind.DIRECTORY, META, 0, b"x", 1, 1),
        Entry(b"a", EntryKind.SYMLINK, META, 0, b"", 1, 1),
        Entry(b"a", EntryKind.FILE, META, 0, b"", 1, 0),
        Entry(b"a", EntryKind.FILE, Meta(0o10000, "a", "b", 0), 0, b"", 1, 1),
    ],
)
def test_an_impossible_entry_is_refused_by_the_asker(entry: Entry) -> None:
    question = asked()
    for reply in (Page((entry,), True), Looked((entry,))):
        with pytest.raises(ExchangeDamaged):
            SEAL.open_reply(question, SEAL.answer(question, reply))


def test_an_endless_empty_page_is_refused() -> None:
    question = asked()
    with pytest.raises(ExchangeDamaged):
        SEAL.open_reply(question, SEAL.answer(question, Page((), False)))


@settings(max_examples=examples(100))
@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_raise_the_one_error(noise: bytes, prefixed: bool) -> None:
    message = b"HX\x01\x01\x06backup" + noise if prefixed else noise
    with pytest.raises(ExchangeDamaged):
        SEAL.open_request(message)
    with pytest.raises(ExchangeDamaged):
        SEAL.open_reply(asked(), message)


@settings(max_examples=examples(100))
@given(
    st.recursive(st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=9) | st.text(max_size=9), st.lists)
)
def test_well_sealed_nonsense_raises_the_one_error(body: object) -> None:
    """A holder of the key with another program: the decoder is strict, and its error is ours."""
    question = asked()
    sealed = SEAL.answer(question, body)  # type: ignore[arg-type]
    with contextlib.suppress(ExchangeDamaged):
        SEAL.open_reply(question, sealed)
