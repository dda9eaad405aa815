"""The workload's small clients: syntax, and what an error means for the command under way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.drill.workload.dav import parse_multistatus
from holdfast.drill.workload.imap import ImapClient
from holdfast.drill.workload.lmtp import percentile
from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, NotSent, Patience
from holdfast.drill.workload.smtp import SmtpClient, dot_stuffed
from holdfast.mail import imap_syntax as syntax
from holdfast.mail.imap_syntax import BadResponse

QUICK = Patience(connect_seconds=1.0, answer_seconds=1.0)


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("INBOX", '"INBOX"'),
        ("Köln & Bonn", '"K&APY-ln &- Bonn"'),
        ("日本語", '"&ZeVnLIqe-"'),
        ('say "hi"\\', '"say \\"hi\\"\\\\"'),
        ("🙂", '"&2D3eQg-"'),
    ],
)
def test_folder_names_on_the_wire(name: str, wire: str) -> None:
    """RFC 3501 5.1.3, with its own example among them."""
    assert syntax.folder_to_wire(name) == wire


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30))
def test_folder_names_come_back(name: str) -> None:
    (value,) = syntax.parse([syntax.folder_to_wire(name).encode()])
    assert isinstance(value, bytes)
    assert syntax.folder_from_wire(value) == name


def test_a_fetch_with_a_literal_becomes_values() -> None:
    parts = [b'4 FETCH (UID 7 FLAGS (\\Seen todo) INTERNALDATE " 1-Jan" BODY[] {5}', b")x\r\n(", b" MODSEQ (12) X NIL)"]
    assert syntax.parse(parts) == [
        b"4",
        b"FETCH",
        [
            *(b"UID", b"7", b"FLAGS", [b"\\Seen", b"todo"], b"INTERNALDATE", b" 1-Jan"),
            *(b"BODY[]", b")x\r\n(", b"MODSEQ", [b"12"], b"X", None),
        ],
    ]


def test_a_bracket_with_spaces_stays_one_word() -> None:
    assert syntax.parse([b"BODY[HEADER.FIELDS (MESSAGE-ID)] {1}", b"x", b""]) == [
        b"BODY[HEADER.FIELDS (MESSAGE-ID)]",
        b"x",
    ]


@pytest.mark.parametrize("line", [b"(", b"a)", b'"open'])
def test_what_is_not_imap_raises_the_documented_error(line: bytes) -> None:
    with pytest.raises(BadResponse):
        syntax.parse([line])


@given(st.lists(st.integers(1, 60), unique=True))
def test_sequence_sets_come_back(uids: list[int]) -> None:
    ascending = sorted(uids)
    assert (syntax.numbers(syntax.sequence_set(ascending).encode()) if uids else []) == ascending


@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"\r\n.")))
def test_dot_stuffing_is_undone_line_by_line(content: bytes) -> None:
    lines = dot_stuffed(content).split(b"\r\n")
    assert b"\r\n".join(line.removeprefix(b".") for line in lines) == b"\r\n".join(
        line.removeprefix(b".") if not line.startswith(b".") else line for line in content.split(b"\r\n")
    )
    assert b"." not in lines


def test_percentiles_are_nearest_rank() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert (percentile(hundred, 50), percentile(hundred, 99), percentile([], 50)) == (50.0, 99.0, 0.0)
    assert percentile([1.0, 2.0], 99) == 2.0


def test_a_multistatus_tells_collections_from_items() -> None:
    body = b"""<multistatus xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav">
    <response><href>/a%20b/c/</href><propstat><prop><resourcetype><collection/><C:calendar/></resourcetype>
    <displayname>n</displayname></prop></propstat></response>
    <response><href>/a%20b/c/1.ics</href><propstat><prop><resourcetype/><getetag>"e"</getetag></prop></propstat>
    </response></multistatus>"""
    found = parse_multistatus(body)
    assert [(one.href, one.kind, one.etag) for one in found] == [
        ("/a b/c/", "calendar", ""),
        ("/a b/c/1.ics", "", '"e"'),
    ]


# --- what a broken connection means ---------------------------------------------------------------------------------


@contextlib.contextmanager
def scripted(*answers: bytes | None) -> Iterator[Endpoint]:
    """A server for one connection: says each of *answers* after whatever it hears; None closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for index, answer in enumerate(answers):
                if index and not connection.recv(65536):
                    return
                if answer is None:
                    return
                connection.sendall(answer)
            while connection.recv(65536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.close()
        thread.join()


def send_through(endpoint: Endpoint) -> str:
    client = SmtpClient(endpoint, QUICK, name="test", login=None)
    try:
        return client.send("a@example.org", ("b@example.org",), b"Subject: x\r\n\r\nbody\r\n")
    finally:
        client.close()


HELLO = (b"220 main ESMTP\r\n", b"250-main\r\n250 8BITMIME\r\n")
OK = b"250 2.0.0 Ok\r\n"


def test_a_message_answered_is_accepted() -> None:
    with scripted(*HELLO, OK, OK, b"354 go\r\n", b"250 queued as 1\r\n") as endpoint:
        assert send_through(endpoint) == "queued as 1"


def test_a_cut_before_the_final_dot_cannot_have_been_accepted() -> None:
    for answers in ((*HELLO, OK, None), (*HELLO, OK, OK, None), (b"220 main\r\n", None), (None,)):
        with scripted(*answers) as endpoint, pytest.raises(NotSent):
            send_through(endpoint)


def test_a_cut_after_the_final_dot_is_unknown() -> None:
    with scripted(*HELLO, OK, OK, b"354 go\r\n", None) as endpoint, pytest.raises(AnswerLost):
        send_through(endpoint)


def test_a_silent_server_after_the_final_dot_is_unknown() -> None:
    patience = Patience(answer_seconds=0.1)
    with scripted(*HELLO, OK, OK, b"354 go\r\n", b"") as endpoint:
        client = SmtpClient(endpoint, patience, name="test", login=None)
        with pytest.raises(AnswerLost):
            client.send("a@example.org", ("b@example.org",), b"\r\nbody\r\n")
        client.close()


def test_a_refusal_says_whether_to_try_again() -> None:
    for answer, temporary in ((b"451 later\r\n", True), (b"550 never\r\n", False)):
        with scripted(*HELLO, answer) as endpoint, pytest.raises(Declined) as caught:
            send_through(endpoint)
        assert caught.value.temporary is temporary


def test_nobody_listening_means_not_done() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotSent):
        send_through(Endpoint("127.0.0.1", port))


def test_an_imap_command_cut_before_its_answer_is_unknown_and_a_login_is_not_done() -> None:
    login = (b"* OK hello\r\n", b"a1 OK in\r\n")
    with scripted(*login, None) as endpoint:
        client = ImapClient(endpoint, QUICK, "u", "p")
        with pytest.raises(AnswerLost):
            client.on_folder("CREATE", "x")
    with scripted(b"* OK hello\r\n", None) as endpoint, pytest.raises(NotSent):
        ImapClient(endpoint, QUICK, "u", "p")
    with scripted(b"* BYE busy\r\n") as endpoint, pytest.raises(Declined):
        ImapClient(endpoint, QUICK, "u", "p")


def test_an_imap_no_is_a_refusal() -> None:
    with scripted(b"* OK hello\r\n", b"a1 OK in\r\n", b"a2 NO [ALREADYEXISTS] there\r\n") as endpoint:
        client = ImapClient(endpoint, QUICK, "u", "p")
        with pytest.raises(Declined) as caught:
            client.on_folder("CREATE", "x")
        assert caught.value.code == "NO"
        client.close()
