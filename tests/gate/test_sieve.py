"""The ManageSieve gate's pure part."""

from __future__ import annotations

import pytest

from holdfast.gate.read_only import WORDS
from holdfast.gate.sieve import COMMANDS_MAX, LINE_BYTES_MAX, SieveSession
from holdfast.gate.stream import ProtocolBroken

GREETING = b'"IMPLEMENTATION" "x"\r\n"SASL" "PLAIN"\r\nOK "ready"\r\n'


class Talk:
    """Both peers; what each has heard."""

    def __init__(self) -> None:
        self.read_only = False
        self.session = SieveSession(lambda: self.read_only)
        self.client = self.server = b""
        assert self.answer(GREETING) == GREETING

    def say(self, data: bytes) -> bytes:
        self.server = self.session.from_client(data).to_server
        return self.server

    def answer(self, data: bytes) -> bytes:
        self.client, self.server = self.session.from_server(data)
        return self.client

    def release(self) -> bytes:
        self.client, self.server = self.session.released()
        return self.client

    def reads(self) -> bool:
        return self.session.reading


CHANGING = (
    b'PUTSCRIPT "x" {5+}\r\nkeep;',
    b'DELETESCRIPT "x"',
    b'renamescript "x" "y"',
    b'SETACTIVE ""',
    b"XSOMETHING",
)


@pytest.mark.parametrize("command", CHANGING)
def test_the_ok_of_what_changes_something_is_held(command: bytes) -> None:
    talk = Talk()
    assert talk.say(command + b"\r\n") == command + b"\r\n"
    assert talk.answer(b'OK (WARNINGS) {4}\r\nOK\r\n "x"\r\n') == b""
    assert talk.session.holding
    assert talk.answer(b"more") == b""
    assert talk.release() == b'OK (WARNINGS) {4}\r\nOK\r\n "x"\r\n'
    assert talk.session.rest() == b"more"


def test_refusals_and_reading_pass() -> None:
    talk = Talk()
    talk.say(b'GETSCRIPT "x"\r\nLISTSCRIPTS\r\nNOOP "t"\r\n')
    data = b'{4}\r\nOK\r\n\r\nOK\r\n"x" ACTIVE\r\nok "done"\r\nOK (TAG "t") "x"\r\n'
    assert talk.answer(data) == data
    talk.say(b'PUTSCRIPT "x" {1+}\r\n!\r\n')
    assert talk.answer(b'NO "line 1"\r\n') == b'NO "line 1"\r\n'


@pytest.mark.parametrize("size", [1, 2, 5])
def test_it_does_not_matter_how_the_bytes_are_cut(size: int) -> None:
    talk = Talk()
    client = b'PUTSCRIPT {3+}\r\na"b {6+}\r\nNOOP\r\n\r\nLISTSCRIPTS\r\n'
    assert b"".join(talk.say(client[at : at + size]) for at in range(0, len(client), size)) == client
    answers = b'OK "x {3}"\r\n"a"\r\nOK\r\n'
    assert b"".join(talk.answer(answers[at : at + size]) for at in range(0, len(answers), size)) == b""
    assert talk.release() == answers


def test_while_a_change_has_no_answer_no_ok_passes() -> None:
    talk = Talk()
    talk.say(b'NOOP\r\nSETACTIVE "x"\r\n')
    assert talk.answer(b"OK\r\nOK\r\n") == b""
    assert talk.release() == b"OK\r\nOK\r\n"
    assert talk.answer(b"OK\r\n") == b""  # nobody asked


def test_authenticate_with_any_number_of_steps() -> None:
    talk = Talk()
    assert talk.say(b'AUTHENTICATE "X"\r\n"PUTSCRIPT"\r\n') == b'AUTHENTICATE "X"\r\n'
    assert not talk.reads()
    talk.answer(b'"Y2hhbGxlbmdl"\r\n')
    assert talk.server == b'"PUTSCRIPT"\r\n'
    talk.answer(b"{2}\r\nab\r\n")
    assert talk.say(b"{3+}\r\nabc\r\n") == b"{3+}\r\nabc\r\n"
    assert talk.answer(b'OK "in"\r\n') == b'OK "in"\r\n'
    assert talk.reads()
    talk.say(b'SETACTIVE "x"\r\n')
    assert talk.answer(b"OK\r\n") == b""


def test_starttls_is_not_offered_and_not_carried() -> None:
    talk = Talk()
    assert talk.say(b"STARTTLS\r\n") != b"STARTTLS\r\n"
    assert talk.answer(b'NO "unknown"\r\n') == b'NO "unknown"\r\n'
    talk.say(b"CAPABILITY\r\n")
    assert talk.answer(b'"SIEVE" "x"\r\n"STARTTLS"\r\nOK\r\n') == b'"SIEVE" "x"\r\nOK\r\n'


def test_what_has_no_end_or_asks_for_permission_ends_the_session() -> None:
    for said in (b"x" * (LINE_BYTES_MAX + 1), b"NOOP\r\n" * (COMMANDS_MAX + 1), b'PUTSCRIPT "x" {3}\r\n'):
        with pytest.raises(ProtocolBroken):
            Talk().say(said)
    with pytest.raises(ProtocolBroken):
        Talk().answer(b"x" * (LINE_BYTES_MAX + 1))


def test_last_words_are_said_between_two_answers_only() -> None:
    talk = Talk()
    assert talk.session.last_words('not "safe"') == b"BYE (TRYLATER) \"not 'safe'\"\r\n"
    talk.say(b'GETSCRIPT "x"\r\n')
    talk.answer(b"{9}\r\nabc")
    assert talk.session.last_words("x") == b""


@pytest.mark.parametrize("command", CHANGING)
def test_while_changes_are_refused_the_server_never_hears_of_them(command: bytes) -> None:
    for cut in range(len(command) + 2):
        talk, said = Talk(), command + b"\r\n"
        talk.read_only = True
        assert talk.say(said[:cut]) + talk.say(said[cut:]) == b"NOOP\r\n"
        assert talk.answer(b'OK "NOOP completed"\r\n') == b'NO (TRYLATER) "' + WORDS.encode() + b'"\r\n'
        assert talk.say(b"LISTSCRIPTS\r\n" + said) == b"LISTSCRIPTS\r\nNOOP\r\n"
        assert talk.answer(b'"x" ACTIVE\r\nOK "a"\r\n') == b'"x" ACTIVE\r\nOK "a"\r\n'
        assert talk.answer(b"OK\r\n").startswith(b"NO (TRYLATER)")
        talk.read_only = False
        assert talk.say(said) == said
        assert talk.answer(b"OK\r\n") == b""
        assert talk.release() == b"OK\r\n"
