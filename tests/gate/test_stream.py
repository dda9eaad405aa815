from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.gate.stream import LINE_BYTES_MAX, ContentReader, LineReader, ProtocolBroken


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """*data* in pieces, cut at *places* (any numbers)."""
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True) if a < b]


@given(st.lists(st.binary(max_size=20).filter(lambda line: not set(line) & {0, 10, 13})), st.lists(st.integers(0)))
def test_lines_come_out_as_they_went_in_however_they_are_cut(lines: list[bytes], places: list[int]) -> None:
    reader, found = LineReader(), []
    for piece in cut(b"".join(line + b"\r\n" for line in lines), places):
        reader.feed(piece)
        while (line := reader.line()) is not None:
            found.append(line)
    assert found == lines
    assert not reader.waiting


@pytest.mark.parametrize(
    "data",
    [b"NOOP\n", b"NO\nOP\r\n", b"NO\rOP\r\n", b"NOOP\r\r\n", b"NO\0OP\r\n", b"\n", b"x" * (LINE_BYTES_MAX + 1)],
)
def test_a_line_that_two_readers_could_take_differently_is_refused(data: bytes) -> None:
    reader = LineReader()
    reader.feed(data)
    with pytest.raises(ProtocolBroken):
        reader.line()


def expected_end(data: bytes) -> int | None:
    """Where the content ends, by the letter of RFC 5321, 4.1.1.4: after <CRLF>.<CRLF>, the first <CRLF> being the
    one that ended the DATA command."""
    at = (b"\r\n" + data).find(b"\r\n.\r\n")
    return None if at < 0 else at + 3


pieces = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\r\n.\r\n", b"\n.\n", b"\r\n.\n", b"\n.\r\n"]))


@given(pieces.map(b"".join), st.lists(st.integers(0)))
def test_the_end_is_where_the_standard_says_however_it_is_cut(data: bytes, places: list[int]) -> None:
    reader, content, rest = ContentReader(), b"", b""
    bare_lf_passed = False
    for piece in cut(data, places):
        if reader.ended:
            rest += piece
            continue
        mine, after = reader.feed(piece)
        content, rest = content + mine, rest + after
        bare_lf_passed = bare_lf_passed or reader.bare_lf
    end = expected_end(data)
    assert reader.ended == (end is not None)
    assert content == (data if end is None else data[:end])
    assert rest == (b"" if end is None else data[end:])
    assert bare_lf_passed == (content.replace(b"\r\n", b"").count(b"\n") > 0)


def test_a_content_of_no_lines_ends_at_once() -> None:
    reader = ContentReader()
    assert reader.feed(b".\r\nRSET\r\n") == (b".\r\n", b"RSET\r\n")
    assert reader.ended
