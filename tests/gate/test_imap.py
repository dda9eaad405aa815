"""The IMAP gate's pure part: which bytes wait for which."""

from __future__ import annotations

import pytest

from holdfast.gate.imap import COMMANDS_MAX, LINE_BYTES_MAX, ImapSession
from holdfast.gate.read_only import WORDS
from holdfast.gate.stream import ProtocolBroken


class Talk:
    """Both peers; what each has heard."""

    def __init__(self) -> None:
        self.read_only = False
        self.session = ImapSession(lambda: self.read_only)
        self.client = self.server = b""
        self.answer(b"l OK [CAPABILITY IMAP4rev1] Logged in\r\n")
        self.client = b""

    def _moved(self, to_client: bytes, to_server: bytes) -> None:
        self.client += to_client
        self.server += to_server

    def say(self, data: bytes) -> bytes:
        """The client says *data*; what the server hears now."""
        self.server = b""
        self._moved(*self.session.from_client(data))
        return self.server

    def answer(self, data: bytes) -> bytes:
        """The server says *data*; what the client hears now."""
        self.client = b""
        self._moved(*self.session.from_server(data))
        return self.client

    def reads(self) -> bool:
        """Whether the client's bytes are wanted."""
        return self.session.reading

    def release(self) -> bytes:
        self.client = b""
        self._moved(*self.session.released())
        return self.client

    def passes(self, command: bytes, answer: bytes) -> None:
        """*command* goes through, its *answer* comes back at once."""
        assert self.say(command) == command
        assert self.answer(answer) == answer
        assert not self.session.holding


CHANGING = (
    b"APPEND INBOX {3+}\r\nabc",
    b"STORE 1 +FLAGS (\\Deleted)",
    b"UID STORE 1 FLAGS ()",
    b"COPY 1 x",
    b"uid move 1 x",
    b"EXPUNGE",
    b"UID EXPUNGE 1",
    b"CLOSE",
    b"CREATE x",
    b"RENAME x y",
    b"DELETE x",
    b"SUBSCRIBE x",
    b"UNSUBSCRIBE x",
    b'SETMETADATA "" (/private/comment "x")',
    b"SETACL x u lr",
    b"DELETEACL x u",
    b"SETQUOTA x ()",
    b"CHECK",
    b"REPLACE 1 x {1+}\r\na",
    b"XWHATEVER",
)
READING = (
    b"NOOP",
    b"SELECT x",
    b"FETCH 1 (FLAGS)",
    b"UID FETCH 1 BODY[]",
    b"uid search all",
    b"UNSELECT",
    b"LOGIN {1+}\r\na {1+}\r\nb",
    b"LOGOUT",
)


@pytest.mark.parametrize("command", CHANGING)
def test_the_ok_of_what_may_change_something_is_held(command: bytes) -> None:
    talk = Talk()
    assert talk.say(b"a " + command + b"\r\n") == b"a " + command + b"\r\n"
    assert talk.answer(b"* 1 FETCH (FLAGS ())\r\na OK done\r\n* 2 EXISTS\r\n") == b"* 1 FETCH (FLAGS ())\r\n"
    assert talk.session.holding
    assert talk.answer(b"* 3 EXISTS\r\n") == b""
    assert talk.release() == b"a OK done\r\n* 2 EXISTS\r\n* 3 EXISTS\r\n"
    assert not talk.session.holding


@pytest.mark.parametrize("command", READING)
def test_the_ok_of_what_only_reads_passes(command: bytes) -> None:
    Talk().passes(b"a " + command + b"\r\n", b"* 1 EXISTS\r\na OK done\r\n")


def test_a_refusal_is_not_held() -> None:
    Talk().passes(b"a STORE 1 FLAGS ()\r\n", b"a NO no\r\n")
    Talk().passes(b"a COPY 1 x\r\n", b"a BAD no\r\n")


def test_an_answer_nobody_asked_for_is_held() -> None:
    talk = Talk()
    talk.say(b"a NOOP\r\n")
    assert talk.answer(b"b OK what\r\n") == b""
    assert talk.session.holding


def test_one_barrier_serves_all_answers_that_were_there_when_it_began() -> None:
    talk = Talk()
    talk.say(b"a STORE 1 FLAGS ()\r\nb STORE 2 FLAGS ()\r\nc NOOP\r\nd STORE 3 FLAGS ()\r\n")
    assert talk.answer(b"a OK\r\nb OK\r\nc O") == b""
    assert talk.release() == b"a OK\r\nb OK\r\n"
    assert talk.answer(b"K\r\nd OK\r\n") == b"c OK\r\n"
    assert talk.session.holding
    assert talk.answer(b"* 9 EXISTS\r\n") == b""
    assert talk.release() == b"d OK\r\n* 9 EXISTS\r\n"


def test_what_looks_like_an_answer_within_a_literal_is_content() -> None:
    talk = Talk()
    talk.say(b"f FETCH 1 BODY[]\r\ns STORE 1 FLAGS ()\r\n")
    content = b"\r\ns OK not me\r\n* OK {5}\r\n"
    data = b"* 1 FETCH (BODY[] {%d}\r\n%s X {2}\r\ns  Y)\r\nf OK\r\n" % (len(content), content)
    assert talk.answer(data) == data
    assert talk.answer(b"s OK\r\n") == b""


def test_what_looks_like_a_literal_at_the_end_of_a_text_is_none() -> None:
    talk = Talk()
    talk.say(b"a NOOP\r\ns STORE 1 FLAGS ()\r\n")
    data = b"* OK text {400}\r\n* NO more {400}\r\n* 1 EXISTS\r\na BAD text {400}\r\n"
    assert talk.answer(data) == data
    assert talk.answer(b"s OK {400}\r\n") == b""
    assert talk.release() == b"s OK {400}\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_it_does_not_matter_how_the_bytes_are_cut(size: int) -> None:
    talk = Talk()
    client = (
        b'a1 APPEND "x y" (\\Seen) {12+}\r\nb OK {3+}\r\n\r\n\r\nc3 UID FETCH 1 BODY[HEADER.FIELDS ({4+}\r\nFROM)]\r\n'
    )
    heard = b"".join(talk.say(client[at : at + size]) for at in range(0, len(client), size))
    assert heard == client
    before = b'* LIST () "/" {4}\r\na{}b\r\n* NAMESPACE (("" "/")) NIL NIL\r\n* 1 FETCH (BODY[] {5}\r\na1 OK)\r\n'
    answer = b"a1 OK done\r\n* 3 EXISTS\r\n"
    heard = b"".join(talk.answer((before + answer)[at : at + size]) for at in range(0, len(before + answer), size))
    assert heard == before
    assert talk.release() == answer
    talk.passes(b"", b"* 1 FETCH (BODY[HEADER.FIELDS (FROM)] {0}\r\n)\r\nc3 OK\r\n")


def test_literals_that_ask_wait_for_the_server() -> None:
    talk = Talk()
    assert talk.say(b"a APPEND x {5}\r\nb STO") == b"a APPEND x {5}\r\n"
    assert not talk.reads()
    assert talk.answer(b"+ OK\r\n") == b"+ OK\r\n"
    assert talk.server == b"a APPEND x {5}\r\nb STO"  # the content
    assert talk.say(b" ~{2}\r\n") == b" ~{2}\r\n"
    talk.answer(b"+ OK\r\n")
    assert talk.say(b"\r\n\r\n") == b"\r\n\r\n"
    assert talk.reads()
    assert talk.answer(b"a OK\r\n") == b""


def test_after_a_refused_literal_comes_a_command() -> None:
    talk = Talk()
    talk.say(b"a LOGIN {500}\r\nb STORE 1 FLAGS ()\r\n")
    assert talk.answer(b"a NO too big\r\n") == b"a NO too big\r\n"
    assert talk.server.endswith(b"b STORE 1 FLAGS ()\r\n")
    assert talk.answer(b"b OK\r\n") == b""


def test_an_answer_to_an_earlier_command_of_the_same_tag_refuses_nothing() -> None:
    talk = Talk()
    talk.say(b"a NOOP\r\na APPEND x {4}\r\n")
    talk.answer(b"a NO no\r\n")
    assert not talk.reads()
    talk.answer(b"+ go on\r\n")
    assert talk.say(b"b c\r\n\r\n")
    assert talk.answer(b"a OK\r\n") == b""


def test_a_tag_used_twice_at_a_time_is_held_for_both() -> None:
    talk = Talk()
    talk.say(b"a NOOP\r\na STORE 1 FLAGS ()\r\n")
    assert talk.answer(b"a OK\r\na OK\r\n") == b""
    assert talk.release() == b"a OK\r\na OK\r\n"
    talk.passes(b"a NOOP\r\n", b"a OK\r\n")


def test_idle() -> None:
    talk = Talk()
    assert talk.say(b"a IDLE\r\nDONE\r\nb STORE 1 FLAGS ()\r\n") == b"a IDLE\r\n"
    assert talk.answer(b"+ idling\r\n* 2 EXISTS\r\n") == b"+ idling\r\n* 2 EXISTS\r\n"
    assert talk.server.endswith(b"DONE\r\nb STORE 1 FLAGS ()\r\n")
    assert talk.answer(b"a OK idle\r\nb OK\r\n") == b"a OK idle\r\n"


def test_authenticate_with_any_number_of_steps() -> None:
    talk = Talk()
    assert talk.say(b"a AUTHENTICATE X\r\nstep {1}\r\n") == b"a AUTHENTICATE X\r\n"
    talk.answer(b"+ \r\n")
    assert talk.server.endswith(b"step {1}\r\n")
    assert talk.say(b"b STORE x\r\n") == b""
    talk.answer(b"+ more\r\n")
    assert talk.server == b"b STORE x\r\n"  # a response, whatever it looks like
    assert talk.answer(b"a OK in\r\n") == b"a OK in\r\n"
    talk.say(b"c AUTHENTICATE PLAIN =\r\n")
    assert talk.answer(b"c NO\r\n") == b"c NO\r\n"
    assert talk.say(b"d EXPUNGE\r\n") == b"d EXPUNGE\r\n"
    assert talk.answer(b"d OK\r\n") == b""


def test_what_the_gate_cannot_read_is_not_offered() -> None:
    talk = Talk()
    assert talk.answer(b"* OK [CAPABILITY IMAP4rev1 STARTTLS ID] hi\r\n") == b"* OK [CAPABILITY IMAP4rev1 ID] hi\r\n"
    assert talk.answer(b"* CAPABILITY A COMPRESS=DEFLATE\r\n* 1 EXISTS\r\n") == b"* CAPABILITY A\r\n* 1 EXISTS\r\n"
    talk.say(b"l LOGIN a b\r\n")
    assert talk.answer(b"l OK [CAPABILITY X COMPRESS=DEFLATE Y] in\r\n") == b"l OK [CAPABILITY X Y] in\r\n"
    for refused in (b"a STARTTLS\r\n", b"a COMPRESS DEFLATE\r\n"):
        assert refused[2:9] not in talk.say(refused)
        assert talk.answer(b"a BAD unknown\r\n") == b"a BAD unknown\r\n"


def test_a_quoted_string_without_end_holds_no_literal() -> None:
    talk = Talk()
    talk.passes(b'a SEARCH TEXT "x {9+}\r\n', b"a BAD quote\r\n")
    talk.say(b'b SEARCH TEXT "x" {3+}\r\n"{}\r\nc EXPUNGE\r\n')
    assert talk.answer(b"b OK\r\nc OK\r\n") == b"b OK\r\n"


def test_what_has_no_end_ends_the_session() -> None:
    with pytest.raises(ProtocolBroken):
        Talk().say(b"a" * (LINE_BYTES_MAX + 1))
    with pytest.raises(ProtocolBroken):
        Talk().answer(b"a" * (LINE_BYTES_MAX + 1))
    with pytest.raises(ProtocolBroken):
        Talk().say(b"a NOOP\r\n" * (COMMANDS_MAX + 1))
    with pytest.raises(ProtocolBroken):
        Talk().say(b"{7+}\r\n")


def test_last_words_are_said_between_two_responses_only() -> None:
    talk = Talk()
    assert talk.session.last_words("gone") == b"* BYE [UNAVAILABLE] gone\r\n"
    talk.answer(b"* 1 FETCH (BODY[] {5}\r\n")
    assert talk.session.last_words("gone") == b""
    talk.answer(b"12345)")
    assert talk.session.last_words("gone") == b""
    talk.answer(b"\r\n")
    assert talk.session.last_words("gone") != b""


# -- while changes are refused -----------------------------------------------------------------------------------------

REFUSED = b"a NO [UNAVAILABLE] " + WORDS.encode() + b"\r\n"


def read_only() -> Talk:
    talk = Talk()
    talk.read_only = True
    return talk


@pytest.mark.parametrize("command", [command for command in CHANGING if command != b"CLOSE"])
def test_what_may_change_something_is_refused_and_the_server_never_hears_it(command: bytes) -> None:
    for cut in range(len(command) + 4):
        talk, said = read_only(), b"a " + command + b"\r\n"
        assert talk.say(said[:cut]) + talk.say(said[cut:]) == b"a CAPABILITY\r\n"
        assert talk.answer(b"* CAPABILITY IMAP4rev1\r\na OK done\r\n") == b"* CAPABILITY IMAP4rev1\r\n" + REFUSED
        assert not talk.session.holding
        talk.passes(b"b SELECT x\r\n", b"b OK\r\n")


@pytest.mark.parametrize("command", READING)
def test_reading_goes_on_while_changes_are_refused(command: bytes) -> None:
    read_only().passes(b"a " + command + b"\r\n", b"* 1 EXISTS\r\na OK done\r\n")


def test_a_refused_message_is_not_sent_where_the_client_asks_first() -> None:
    for begun in (b"", b"{3+}\r\nabc "):
        talk = read_only()
        assert talk.say(b"a APPEND INBOX " + begun + b"{310}\r\n") == b"a CAPABILITY\r\n"
        assert not talk.reads()
        assert talk.answer(b"a OK done\r\n") == REFUSED
        assert talk.reads()
        talk.passes(b"b NOOP\r\n", b"b OK\r\n")


def test_refusals_come_in_the_order_of_the_commands_and_none_is_lost() -> None:
    talk = read_only()
    said = talk.say(b"a STORE 1 FLAGS ()\r\nb FETCH 1 FLAGS\r\nc APPEND x {4+}\r\n\r\nd \r\n")
    assert said == b"a CAPABILITY\r\nb FETCH 1 FLAGS\r\nc CAPABILITY\r\n"
    assert talk.answer(b"a OK\r\n* 1 FETCH (FLAGS ())\r\nb OK\r\nc OK\r\n") == (
        REFUSED + b"* 1 FETCH (FLAGS ())\r\nb OK\r\n" + REFUSED.replace(b"a NO", b"c NO")
    )


def test_a_mailbox_is_closed_without_an_expunge() -> None:
    talk = read_only()
    assert talk.say(b"a close\r\n") == b"a UNSELECT\r\n"
    assert talk.answer(b"a OK done\r\n") == b"a OK done\r\n"


def test_what_was_under_way_when_refusing_began_is_held_as_ever() -> None:
    talk = Talk()
    talk.say(b"a STORE 1 FLAGS ()\r\n")
    talk.read_only = True
    talk.say(b"b STORE 2 FLAGS ()\r\n")
    assert talk.answer(b"a OK\r\nb OK\r\n") == b""
    assert talk.session.holding
    assert talk.release() == b"a OK\r\n" + REFUSED.replace(b"a NO", b"b NO")
    talk.read_only = False
    assert talk.say(b"c STORE 2 FLAGS ()\r\n") == b"c STORE 2 FLAGS ()\r\n"
