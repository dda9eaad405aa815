from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.gate.lmtp import HEADER_BYTES_MAX, RECIPIENTS_MAX, NoteDone, NoteIntent, State, delivery_id
from tests.gate.talk import LHLO, Talk

MESSAGE = b"Received: by mx (Postfix) id 4XyZ\r\nSubject: hello\r\n\r\nfirst line\r\n..stuffed\r\n.\r\n"
HEADER = b"Received: by mx (Postfix) id 4XyZ\r\nSubject: hello\r\n"


@pytest.fixture
def talk() -> Talk:
    talk = Talk()
    talk.greet()
    return talk


def test_only_what_the_gate_carries_is_offered() -> None:
    talk = Talk()
    talk.answer(b"220 ready\r\n")
    talk.say(b"LHLO client\r\n")
    talk.answer(LHLO)
    assert talk.client == (
        b"220 ready\r\n250-mail.example.org\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-PIPELINING\r\n"
        b"250 SMTPUTF8\r\n"
    )


@pytest.mark.parametrize("asked", [b" SMTPUTF8", b" smtputf8 BODY=8BITMIME", b" BODY=8BITMIME  SMTPUTF8 SIZE=70"])
def test_a_message_with_utf8_in_its_header_reaches_a_server_that_does_not_offer_it(talk: Talk, asked: bytes) -> None:
    left = asked.upper().replace(b"  SMTPUTF8", b"").replace(b" SMTPUTF8", b"")
    for sender in (b"", b"a@example.org", b'"x> SMTPUTF8 y"@example.org'):
        talk.say(b"MAIL FROM:<" + sender + b">" + asked + b"\r\n")
        assert talk.heard_by_server() == b"MAIL FROM:<" + sender + b">" + left + b"\r\n"
        talk.answer(b"250 OK\r\n")
        assert talk.heard_by_client() == b"250 OK\r\n"


def test_a_sender_that_is_not_ascii_is_refused_in_its_turn_where_the_server_could_not_take_it(talk: Talk) -> None:
    talk.say("RSET\r\nMAIL FROM:<jürgen@example.org> SMTPUTF8\r\n".encode())
    assert talk.heard_by_server() == b"RSET\r\n"
    talk.answer(b"250 OK\r\n")
    assert talk.heard_by_client().splitlines() == [
        b"250 OK",
        b"550 5.6.7 the mail store takes no address that is not ASCII",
    ]


def test_a_server_that_offers_smtputf8_is_asked_with_it() -> None:
    talk = Talk()
    talk.answer(b"220 ready\r\n")
    talk.say(b"LHLO client\r\n")
    talk.answer(b"250-mail.example.org\r\n250 SMTPUTF8\r\n")
    assert talk.heard_by_client() == b"220 ready\r\n250-mail.example.org\r\n250 SMTPUTF8\r\n"
    talk.heard_by_server()
    talk.say("MAIL FROM:<jürgen@example.org> SMTPUTF8\r\n".encode())
    assert talk.heard_by_server() == "MAIL FROM:<jürgen@example.org> SMTPUTF8\r\n".encode()


def test_the_success_waits_for_the_barrier_and_the_content_passes_unchanged(talk: Talk) -> None:
    talk.envelope(b"alice@example.org", b"bob@example.org")
    assert talk.session.state is State.HEADER
    talk.say(MESSAGE[:60])
    talk.say(MESSAGE[60:])
    assert talk.heard_by_server() == b""
    talk.know()
    assert talk.heard_by_server() == b"DATA\r\n"
    talk.answer(b"354 OK\r\n")
    assert talk.heard_by_server() == MESSAGE
    talk.answer(b"250 2.0.0 saved\r\n")
    assert not talk.waits_for_barrier()
    talk.answer(b"552 5.2.2 quota\r\n")
    assert talk.waits_for_barrier()
    assert talk.heard_by_client() == b""
    talk.keep(talk.session.barrier_passed())
    assert talk.heard_by_client() == b"250 2.0.0 saved\r\n552 5.2.2 quota\r\n"
    both = (b"alice@example.org", b"bob@example.org")
    mine = delivery_id(HEADER)
    assert talk.notes() == [NoteIntent(mine, both), NoteDone(mine, both[:1], both[1:])]
    assert talk.session.reading


def test_a_barrier_that_fails_makes_success_a_later_and_leaves_refusals(talk: Talk) -> None:
    talk.envelope(b"alice@example.org", b"bob@example.org")
    talk.say(MESSAGE)
    talk.know()
    talk.answer(b"354 OK\r\n250 2.0.0 saved\r\n552 5.2.2 quota\r\n")
    talk.keep(talk.session.barrier_failed("the log is away\r\n250 forged"))
    later, refused, rest = talk.heard_by_client().split(b"\r\n", 2)
    assert later.startswith(b"451 4.3.0 delivered, not yet safe on a second machine: the log is away??250")
    assert refused == b"552 5.2.2 quota"
    assert rest == b""


def test_who_has_it_is_left_out_and_answered_success_in_order(talk: Talk) -> None:
    talk.envelope(b"alice@example.org", b"bob@example.org", b"carol@example.org")
    talk.say(MESSAGE)
    talk.know(b"alice@example.org", b"carol@example.org")
    assert talk.heard_by_server() == (b"RSET\r\nMAIL FROM:<a@outside.example>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")
    talk.answer(b"250 reset\r\n250 mail\r\n250 rcpt\r\n354 OK\r\n")
    assert talk.heard_by_server() == MESSAGE
    talk.answer(b"250 2.0.0 saved for bob\r\n")
    talk.keep(talk.session.barrier_passed())
    before = b"250 2.0.0 delivered before, not again\r\n"
    assert talk.heard_by_client() == before + b"250 2.0.0 saved for bob\r\n" + before
    assert talk.notes()[0] == NoteIntent(delivery_id(HEADER), (b"bob@example.org",))


def test_nothing_is_delivered_when_all_have_it_but_the_barrier_is_waited_for(talk: Talk) -> None:
    talk.envelope(b"alice@example.org")
    talk.say(MESSAGE[:-5])
    talk.know(b"alice@example.org")
    assert talk.heard_by_server() == b"RSET\r\n"
    assert not talk.waits_for_barrier()
    talk.say(MESSAGE[-5:])
    assert talk.waits_for_barrier()
    talk.keep(talk.session.barrier_failed("away"))
    assert talk.heard_by_client().startswith(b"451 4.3.0")
    talk.answer(b"250 reset\r\n")
    assert talk.heard_by_client() == b""
    talk.envelope(b"alice@example.org")
    assert talk.session.state is State.HEADER


def test_a_second_message_pipelined_behind_the_content_waits_its_turn(talk: Talk) -> None:
    talk.envelope(b"alice@example.org")
    talk.say(MESSAGE + b"MAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\n")
    talk.know()
    talk.answer(b"354 OK\r\n")
    assert talk.heard_by_server() == b"DATA\r\n" + MESSAGE
    talk.answer(b"250 saved\r\n")
    assert talk.heard_by_server() == b""
    talk.keep(talk.session.barrier_passed())
    assert talk.heard_by_server() == b"MAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\n"


def test_without_a_valid_recipient_no_content_is_asked_for(talk: Talk) -> None:
    talk.say(b"MAIL FROM:<a@b.c>\r\nRCPT TO:<nobody@example.org>\r\nDATA\r\nNOOP\r\n")
    talk.answer(b"250 ok\r\n550 5.1.1 unknown\r\n")
    assert talk.heard_by_client() == b"250 ok\r\n550 5.1.1 unknown\r\n503 5.5.1 no valid recipients\r\n"
    assert talk.heard_by_server().endswith(b"RCPT TO:<nobody@example.org>\r\nNOOP\r\n")


@pytest.mark.parametrize(
    "command", [b"BDAT 5 LAST", b"STARTTLS", b"XCLIENT ADDR=1", b"AUTH PLAIN x", b"EHLO x", b"data x"]
)
def test_commands_that_would_open_another_way_are_refused_in_their_turn(talk: Talk, command: bytes) -> None:
    talk.say(b"NOOP\r\n" + command + b"\r\nNOOP\r\n")
    assert talk.heard_by_client() == b""
    talk.answer(b"250 one\r\n")
    assert talk.heard_by_client() == b"250 one\r\n500 5.5.1 not known here\r\n"
    assert talk.heard_by_server() == b"NOOP\r\nNOOP\r\n"


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\n", b"\n.\r", b"\n\r.\r\n"], ids=lambda end: repr(end)
)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
def test_a_smuggled_end_never_reaches_the_server(talk: Talk, end: bytes, pieces: str) -> None:
    smuggled = b"MAIL FROM:<forged@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
    talk.envelope(b"alice@example.org")
    talk.say(HEADER + b"\r\nbody\r\n")
    talk.know()
    talk.answer(b"354 OK\r\n")
    data = b"text" + end + smuggled + b"\r\n.\r\n"
    for piece in [data] if pieces == "whole" else [data[at : at + 1] for at in range(len(data))]:
        talk.say(piece)
    assert b"forged" not in talk.server
    assert talk.ended is not None
    assert talk.heard_by_client().startswith(b"554 5.6.0 bare LF")


@pytest.mark.parametrize("end", [b"\r.\r", b"\r\r\n.\r\r\n", b"\r\n.\r"], ids=lambda end: repr(end))
def test_what_no_reader_takes_for_an_end_passes_unchanged(talk: Talk, end: bytes) -> None:
    message = HEADER + b"\r\nbody" + end + b"MAIL FROM:<forged@example.org>\r\n.\r\n"
    talk.envelope(b"alice@example.org")
    talk.say(message)
    talk.know()
    talk.answer(b"354 OK\r\n")
    assert talk.heard_by_server() == b"DATA\r\n" + message
    assert talk.session.state is State.ANSWERS


def test_a_header_without_end_is_refused_with_bounded_memory(talk: Talk) -> None:
    talk.envelope(b"alice@example.org")
    for _ in range(HEADER_BYTES_MAX // 8000 + 2):
        talk.say(b"X-Long: " + b"x" * 7990 + b"\r\n")
    assert talk.session.state is State.SWALLOW
    talk.say(b"\r\n.\r\n")
    assert talk.heard_by_client().startswith(b"554 5.6.0 the header")
    assert talk.heard_by_server() == b""


def test_too_many_recipients_are_put_off(talk: Talk) -> None:
    talk.say(b"MAIL FROM:<a@b.c>\r\n")
    talk.answer(b"250 ok\r\n")
    for at in range(RECIPIENTS_MAX):
        talk.say(b"RCPT TO:<u%d@example.org>\r\n" % at)
        talk.answer(b"250 ok\r\n")
    talk.heard_by_client()
    talk.say(b"RCPT TO:<last@example.org>\r\n")
    assert talk.heard_by_client() == b"452 4.5.3 too many recipients\r\n"


@pytest.mark.parametrize("when", ["header", "content", "answers"])
def test_a_server_that_goes_away_is_a_later_for_everybody(talk: Talk, when: str) -> None:
    talk.envelope(b"alice@example.org", b"bob@example.org")
    if when != "header":
        talk.say(MESSAGE if when == "answers" else MESSAGE[:-5])
        talk.know()
        talk.answer(b"354 OK\r\n")
    if when == "answers":
        talk.answer(b"250 saved\r\n")
    talk.keep(talk.session.server_gone("it died"))
    if when == "header":
        talk.say(MESSAGE)
    elif when == "content":
        talk.say(MESSAGE[-5:])
    else:
        assert talk.notes()[-1] == NoteDone(delivery_id(HEADER), (b"alice@example.org",), ())
        talk.keep(talk.session.barrier_passed())
    lines = talk.heard_by_client().split(b"\r\n")
    assert [line[:3] for line in lines] == [b"250" if when == "answers" else b"451", b"451", b""]
    assert talk.ended is not None


def test_a_server_that_answers_what_was_not_asked_ends_the_session(talk: Talk) -> None:
    talk.answer(b"250 surprise\r\n")
    assert talk.ended is not None


def test_a_session_that_ended_meanwhile_is_told_of_its_barrier_and_says_nothing(talk: Talk) -> None:
    """The server says something nobody asked for, in one piece with its last answer."""
    talk.envelope(b"alice@example.org")
    talk.say(MESSAGE)
    talk.know()
    talk.answer(b"354 go\r\n250 saved\r\n250 and more\r\n")
    assert talk.waits_for_barrier()
    assert talk.ended is not None
    assert talk.session.barrier_passed() == []
    assert talk.session.barrier_failed("away") == []


def test_the_id_is_the_header_of_ours_or_the_digest_of_the_whole_header() -> None:
    assert delivery_id(b"Subject: x\r\nHoldfast-Delivery: 0a1B2c\r\n") == b"0a1B2c"
    assert delivery_id(HEADER) == delivery_id(HEADER)
    assert delivery_id(HEADER) != delivery_id(HEADER.replace(b"4XyZ", b"4XyA"))
    assert len(delivery_id(b"Holdfast-Delivery: two words\r\n")) == 32


@given(
    st.lists(
        st.one_of(st.tuples(st.just("c"), st.binary(max_size=60)), st.tuples(st.just("s"), st.binary(max_size=60)))
    )
)
def test_no_bytes_of_either_side_are_more_than_an_end(pieces: list[tuple[str, bytes]]) -> None:
    talk = Talk()
    for side, data in [("s", b"220 x\r\n"), *pieces]:
        (talk.say if side == "c" else talk.answer)(data)


words = st.sampled_from(
    [b"LHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b"RSET\r\n",
     b"NOOP\r\n", b"Subject: x\r\n\r\n", b"text\r\n", b"\r\n.\r\n", b"\n.\n", b"QUIT\r\n"]
)  # fmt: skip
replies = st.sampled_from([b"250 ok\r\n", b"354 go\r\n", b"451 later\r\n", b"550 no\r\n", b"250-more\r\n"])


@given(
    st.lists(
        st.one_of(
            words.map(lambda w: ("c", w)),
            replies.map(lambda r: ("s", r)),
            st.sampled_from([("k", b""), ("b", b""), ("f", b"")]),
        ),
        max_size=60,
    )
)
def test_success_for_a_content_is_said_only_behind_a_barrier(moves: list[tuple[str, bytes]]) -> None:
    """Whatever both sides say in whatever order: between the end of a content and its answers lies a barrier."""
    talk = Talk()
    talk.answer(b"220 x\r\n")
    for kind, data in moves:
        state = talk.session.state
        before = len(talk.client)
        if kind == "c" and talk.session.reading:
            talk.say(data)
        elif kind == "s":
            talk.answer(data)
        elif kind == "k" and state is State.LOOKUP:
            talk.know()
        elif kind == "b" and state is State.BARRIER:
            talk.keep(talk.session.barrier_passed())
        elif kind == "f" and state is State.BARRIER:
            talk.keep(talk.session.barrier_failed("away"))
            said = talk.client[before:]
            assert not [line for line in said.split(b"\r\n") if line[:1] == b"2"]
        if state in (State.ANSWERS, State.CONTENT, State.OPENING) and kind == "s":
            said = talk.client[before:]
            assert not [line for line in said.split(b"\r\n") if line[:1] == b"2"]


def test_a_hundred_megabytes_pass_and_nothing_is_kept(talk: Talk) -> None:
    """Lines far above the 998 bytes of RFC 5322, and NUL: Dovecot's business, unchanged."""
    talk.envelope(b"alice@example.org")
    talk.say(HEADER + b"\r\n")
    talk.know()
    talk.answer(b"354 OK\r\n")
    talk.heard_by_server()
    piece = b"x" * 5000 + b"\0\r\n" + b"\xff" * 1000
    size = 0
    tracemalloc.start()
    while size < 100_000_000:
        talk.say(piece)
        size += len(piece)
        assert talk.heard_by_server() == piece
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    talk.say(b"\r\n.\r\n")
    talk.answer(b"250 saved\r\n")
    assert talk.waits_for_barrier()


def test_a_thousand_recipients_are_answered_one_by_one(talk: Talk) -> None:
    addresses = [b"u%d@example.org" % number for number in range(1000)]
    talk.envelope(*addresses)
    talk.say(MESSAGE)
    talk.know(*addresses[::2])
    talk.answer(b"250 ok\r\n" * 502 + b"354 go\r\n" + b"".join(b"250 %s\r\n" % one for one in addresses[1::2]))
    talk.keep(talk.session.barrier_passed())
    said = talk.heard_by_client().split(b"\r\n")
    assert said[1:1001:2] == [b"250 " + one for one in addresses[1::2]]
    assert all(line.startswith(b"250 2.0.0 delivered before") for line in said[0:1000:2])
