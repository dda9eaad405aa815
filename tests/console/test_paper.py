"""Keys on paper: what is typed back is the key, and a slip is known line by line."""

from __future__ import annotations

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.console.paper import (
    LETTERS,
    Line,
    identity_from,
    identity_lines,
    labels,
    page,
    read_line,
    writer_from,
    writer_lines,
)
from holdfast.vault.faults import WrongKey

IDENTITY = str(pyrage.x25519.Identity.generate())
RECIPIENT = str(pyrage.x25519.Identity.from_str(IDENTITY).to_public())


def typed_back(lines: list[Line], kind: str, text: list[str]) -> str:
    return "".join(read_line(label, count, line) for (label, count), line in zip(labels(kind), text, strict=True))


def test_an_identity_comes_back_from_paper() -> None:
    lines = identity_lines(IDENTITY)
    assert identity_from(typed_back(lines, "A", [str(line) for line in lines])) == IDENTITY


def test_the_letters_alone_are_an_age_identity() -> None:
    """What the page says about life without this program."""
    joined = "AGE-SECRET-KEY-1" + "".join(line.letters for line in identity_lines(IDENTITY)).upper()
    assert str(pyrage.x25519.Identity.from_str(joined).to_public()) == RECIPIENT


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_a_writer_key_comes_back_from_paper(vault: bytes, secret: bytes) -> None:
    lines = writer_lines(vault.hex(), secret.hex())
    key = writer_from(typed_back(lines, "W", [str(line) for line in lines]), (RECIPIENT,))
    assert (key.vault, key.secret, key.recipients) == (vault.hex(), secret.hex(), (RECIPIENT,))


def test_capitals_spaces_labels_and_letters_that_look_alike_do_not_matter() -> None:
    lines = identity_lines(IDENTITY)
    plain = [f"{line.letters}{line.check}".lower() for line in lines]
    seen = [text.replace("0", "o").replace("l", "1").replace("8", "B") for text in plain]
    assert identity_from(typed_back(lines, "A", plain)) == IDENTITY
    assert identity_from(typed_back(lines, "A", seen)) == IDENTITY


@settings(max_examples=60)
@given(st.data())
def test_a_wrong_letter_is_found_in_its_line(data: st.DataObject) -> None:
    """Two letters check a line: one slip in a thousand goes through here, and is caught by the identity's checksum."""
    line = identity_lines(IDENTITY)[0]
    text = line.letters + line.check
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(LETTERS.replace(text[at], "")))
    wrong = text[:at] + other + text[at + 1 :]
    rest = "".join(line.letters for line in identity_lines(IDENTITY)[1:])
    with pytest.raises((WrongKey, pyrage.IdentityError)):
        pyrage.x25519.Identity.from_str(identity_from(read_line("A1", 20, wrong) + rest))


@pytest.mark.parametrize(
    ("typed", "says"),
    [("qpzr", "has 4 letters instead of 22"), ("!" * 22, "! is no letter"), ("", "has 0 letters instead of 22")],
)
def test_what_is_wrong_with_a_line_is_said(typed: str, says: str) -> None:
    with pytest.raises(WrongKey, match=says):
        read_line("A1", 20, typed)


def test_lines_in_the_wrong_order_are_found() -> None:
    second = identity_lines(IDENTITY)[1]
    with pytest.raises(WrongKey, match="A1 is not as it was printed"):
        read_line("A1", 20, second.letters + second.check)


def test_the_page_fits_paper() -> None:
    lines = [*identity_lines(IDENTITY), *writer_lines("00" * 16, "11" * 32)]
    text = page("backup", "s3://bucket/prefix", "2026-11-22", (RECIPIENT,), lines)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert len(text.splitlines()) <= 60
    for line in lines:
        assert str(line) in text
