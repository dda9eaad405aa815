"""Keys on paper: lines of letters that are easy to read aloud and hard to type wrong. Pure.

A key is written in the 32 letters and digits of bech32 (BIP 173: no 1, b, i, o), 20 to a line in groups of four, each
line with a label and two more letters that follow from label and line: a wrong line is known as soon as it is typed.
An identity's letters, all lines joined without those ends, behind ``AGE-SECRET-KEY-1``, are the identity as age(1)
takes it: the page is of use without this program.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blake3 import blake3

from holdfast.vault.faults import WrongKey
from holdfast.vault.keys import KEY_BYTES, VAULT_ID_BYTES, WriterKey

LETTERS: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
LINE_LETTERS: Final = 20
GROUP_LETTERS: Final = 4
CHECK_LETTERS: Final = 2
IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-1"
IDENTITY_LETTERS: Final = 58
"""52 of the key, 6 of bech32's own checksum."""
WRITER_LETTERS: Final = -(-(VAULT_ID_BYTES + KEY_BYTES) * 8 // 5)
_MISREAD: Final = str.maketrans({"o": "0", "i": "l", "1": "l", "b": "8"})
"""What is no letter of ours, as the one it looks like."""


class Line(NamedTuple):
    """One line of the page: *label* ``A1``, *letters* without spaces, *check* its two last."""

    label: str
    letters: str
    check: str

    def __str__(self) -> str:
        groups = [self.letters[at : at + GROUP_LETTERS] for at in range(0, len(self.letters), GROUP_LETTERS)]
        return f"{self.label}   {' '.join(groups):24}   {self.check}".upper()


def identity_lines(identity: str) -> list[Line]:
    """*identity*: ``AGE-SECRET-KEY-1...``, one that age takes."""
    letters = identity.strip().upper().removeprefix(IDENTITY_PREFIX).lower()
    return _lines("A", letters)


def writer_lines(vault: str, secret: str) -> list[Line]:
    """Of the vault's id and the writer key's secret, both hexadecimal."""
    data = bytes.fromhex(vault) + bytes.fromhex(secret)
    bits = int.from_bytes(data, "big") << (WRITER_LETTERS * 5 - len(data) * 8)
    letters = "".join(LETTERS[bits >> 5 * at & 31] for at in reversed(range(WRITER_LETTERS)))
    return _lines("W", letters)


def labels(kind: str) -> list[tuple[str, int]]:
    """The labels of a key's lines and how many letters each has. *kind*: ``A`` identity, ``W`` writer key."""
    total = IDENTITY_LETTERS if kind == "A" else WRITER_LETTERS
    starts = range(0, total, LINE_LETTERS)
    return [(f"{kind}{number}", min(LINE_LETTERS, total - at)) for number, at in enumerate(starts, 1)]


def read_line(label: str, count: int, typed: str) -> str:
    """The letters of one typed line (its label may be repeated in front, spaces and case do not matter).

    Raises WrongKey, saying what is wrong with it.
    """
    plain = "".join(typed.lower().split()).replace("-", "")
    bare = plain.removeprefix(label.lower())
    text = (bare if len(bare) == count + CHECK_LETTERS else plain).translate(_MISREAD)
    strange = sorted(set(text) - set(LETTERS))
    if strange:
        raise WrongKey(f"line {label}: {' '.join(strange)} is no letter of the page", hint="Look again at that place.")
    if len(text) != count + CHECK_LETTERS:
        hint = f"It has {count} letters, then {CHECK_LETTERS} more at the end."
        raise WrongKey(f"line {label} has {len(text)} letters instead of {count + CHECK_LETTERS}", hint=hint)
    letters, check = text[:count], text[count:]
    if _check(label, letters) != check:
        raise WrongKey(f"line {label} is not as it was printed", hint="Compare letter by letter, the two last as well.")
    return letters


def identity_from(letters: str) -> str:
    """The identity from the letters of its lines, joined."""
    return IDENTITY_PREFIX + letters.upper()


def writer_from(letters: str, recipients: tuple[str, ...]) -> WriterKey:
    """The writer key from the letters of its lines, joined; *recipients*: for whom it is to seal. Raises WrongKey."""
    bits = 0
    for letter in letters:
        bits = bits << 5 | LETTERS.index(letter)
    count = VAULT_ID_BYTES + KEY_BYTES
    data = (bits >> (WRITER_LETTERS * 5 - count * 8)).to_bytes(count, "big")
    return WriterKey(data[:VAULT_ID_BYTES].hex(), data[VAULT_ID_BYTES:].hex(), recipients)


def _lines(kind: str, letters: str) -> list[Line]:
    lines = []
    at = 0
    for label, count in labels(kind):
        part = letters[at : at + count]
        lines.append(Line(label, part, _check(label, part)))
        at += count
    assert at == len(letters), "a key of another length"
    return lines


def _check(label: str, letters: str) -> str:
    digest = blake3(f"{label} {letters}".lower().encode()).digest(length=2)
    bits = int.from_bytes(digest, "big")
    return LETTERS[bits >> 11] + LETTERS[bits >> 6 & 31]


def page(name: str, location: str, made: str, recipients: tuple[str, ...], lines: list[Line]) -> str:
    """The page for the safe; *made*: the date; *lines*: of the identity, then of the writer key."""
    identity = "\n".join(f"    {line}" for line in lines if line.label.startswith("A"))
    writer = "\n".join(f"    {line}" for line in lines if line.label.startswith("W"))
    return _PAGE.format(
        name=name, location=location, made=made, recipients=", ".join(recipients), identity=identity, writer=writer
    )


_PAGE: Final = """\
HOLDFAST VAULT "{name}"                         KEEP IN A SAFE

Printed {made}. The vault is at
    {location}

Whoever has this page can read every backup in it. Without it, or a copy of the
identity elsewhere, nobody can, once the mail server is lost. Keep one copy in
a safe, and one in another building.

IDENTITY: opens the backups
{identity}

WRITER KEY: adds backups (an owner of the identity can get it from the vault)
{writer}

To read the vault, on any machine with Holdfast, type these lines:
    holdfast vault keys check --vault LOCATION --save identity.txt
    holdfast restore --vault LOCATION --identity identity.txt --to FOLDER
Capitals and spaces do not matter; the last two letters of each line check it.

Without Holdfast: the letters of the lines A, without the last two of each,
joined behind AGE-SECRET-KEY-1, are an identity of age (age-encryption.org);
the format of the vault is published, and tools/open-vault reads it.

Readers at that time:
    {recipients}
"""
