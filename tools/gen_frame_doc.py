#!/usr/bin/env python3
"""Write docs/formats/frame.md from the modules that read and write frames; with ``--check``, fail when it differs.

The words are the modules' own docstrings, the fields are those of the structs, the limits are the constants: what the
page says is what the program does. An example at the end is sealed and opened while the page is made.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_type_hints

import msgspec

from holdfast.changes import change, digest, frame, names

PAGE: Final = Path(__file__).resolve().parent.parent / "docs/formats/frame.md"
NOTE: Final = (
    "<!-- Made by tools/gen_frame_doc.py from src/holdfast/changes: change it there, then `make docs`. -->\n\n"
)
HEADER_MEANINGS: Final = {
    "kind": "1: changes, 2: a promotion",
    "segment": "the segment the log belongs to",
    "incarnation": "32 hexadecimal digits: which log",
    "sequence": "the record's number in that log, from 1, without gaps",
    "epoch": "number of the promotion under which it was written",
    "writer": "the machine that wrote it",
    "previous": "BLAKE3 of the frame before, 32 bytes",
    "nonce": "of AES-GCM, 12 bytes",
}
LIMITS: Final = (
    (frame, "HEADER_BYTES_MAX"),
    (frame, "FRAME_CONTENT_BYTES"),
    (frame, "FRAME_BYTES_MAX"),
    (frame, "BODY_BYTES_MAX"),
    (frame, "FRAMES_PER_KEY_MAX"),
    (change, "NAME_BYTES_MAX"),
    (change, "PATH_BYTES_MAX"),
    (digest, "BLOCK_BYTES"),
    (digest, "DIGEST_BYTES"),
)


def markdown(docstring: str) -> str:
    """The little reStructuredText that docstrings use, as Markdown."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r":(?:class|func|meth|attr):`~?\.?([^`]*)`", r"`\1`", text)
    text = text.replace("``", "`")
    out: list[str] = []
    lines = text.splitlines()
    while lines:
        if re.fullmatch(r"=+(?: +=+)+", lines[0]):
            out += _table(lines)
        elif lines[0].rstrip().endswith("::"):
            out += _code(lines)
        else:
            out.append(lines.pop(0))
    return "\n".join(out)


def _table(lines: list[str]) -> list[str]:
    """A simple table (=== ===): takes its lines."""
    rule = lines.pop(0)
    starts = [match.start() for match in re.finditer("=+", rule)]
    rows: list[list[str]] = []
    while True:
        line = lines.pop(0)
        if line == rule:
            if len(rows) > 1:
                break
            continue
        ends = [*starts[1:], len(line) + 1]
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{before} {cell}".strip() for before, cell in zip(rows[-1], cells, strict=True)]
    return [_row(rows[0]), _row(["---"] * len(starts)), *map(_row, rows[1:])]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(lines: list[str]) -> list[str]:
    """A literal block after a line that ends in ``::``: takes its lines."""
    out = [lines.pop(0).rstrip()[:-1], "", "```"]
    body: list[str] = []
    while lines and (not lines[0] or lines[0].startswith(" ")):
        body.append(lines.pop(0))
    return [*out, *textwrap.dedent("\n".join(body)).strip().splitlines(), "```", ""]


def docs_below(source: str) -> dict[str, str]:
    """Docstrings that stand below assignments: of a class's fields, of a module's constants."""
    tree = ast.parse(textwrap.dedent(source))
    body = tree.body[0].body if len(tree.body) == 1 and isinstance(tree.body[0], ast.ClassDef) else tree.body
    docs: dict[str, str] = {}
    for field, after in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(after.value.value).split()).replace("``", "`")
    return docs


def type_words(hint: Any) -> str:
    """How a field's type is called in the page: NewTypes by what they are made of."""
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    if getattr(hint, "__args__", None):
        inner = [type_words(argument) for argument in hint.__args__ if argument is not Ellipsis]
        return f"array of {inner[0]}" if hint.__args__[-1] is Ellipsis else f"array ({', '.join(inner)})"
    name: str = hint.__name__
    return {"int": "integer", "str": "string", "bool": "boolean", "FrameKind": "integer"}.get(name, name)


def fields_table(struct: type, meanings: dict[str, str]) -> str:
    """Position, field, type, meaning."""
    docs, hints = docs_below(inspect.getsource(struct)), get_type_hints(struct)
    lines = [_row(["", "field", "type", "meaning"]), _row(["---"] * 4)]
    for number, field in enumerate(msgspec.structs.fields(struct)):
        default = "" if field.default is msgspec.NODEFAULT else f"; may be left out: {field.default!r}"
        meaning = docs.get(field.name) or meanings.get(field.name, "")
        lines.append(_row([str(number), f"`{field.name}`", type_words(hints[field.name]) + default, meaning]))
    return "\n".join(lines) + "\n"


def kinds_table() -> str:
    """The arrays of the nine kinds of changes."""
    lines = [_row(["tag", "kind", "elements after the tag"]), _row(["---"] * 3)]
    for struct, kind in change.KIND_NAMES.items():
        hints = get_type_hints(struct)
        tag = msgspec.inspect.type_info(struct).tag  # type: ignore[attr-defined]
        elements = []
        for field in msgspec.structs.fields(struct):
            default = "" if field.default is msgspec.NODEFAULT else f" = {field.default!r}"
            elements.append(f"`{field.name}` {type_words(hints[field.name])}{default}")
        lines.append(_row([str(tag), kind, ", ".join(elements)]))
    return "\n".join(lines) + "\n"


def limits_table() -> str:
    lines = [_row(["limit", "value", "why"]), _row(["---"] * 3)]
    for module, name in LIMITS:
        why = docs_below(inspect.getsource(module)).get(name, LIMIT_MEANINGS.get(name, ""))
        lines.append(_row([f"`{name}`", f"{getattr(module, name):,}", why]))
    return "\n".join(lines) + "\n"


def example() -> str:
    """A frame's clear part, byte by byte: made and opened here, with everything that is random left out."""
    writer = frame.FrameWriter(
        names.SegmentName("mail"), names.MachineName("main"), names.Epoch(3), frame.SegmentKey(bytes(32))
    )
    start = frame.chain_start(names.Incarnation("0f" * 16))
    batch: tuple[change.Change, ...] = (change.Remove("store", b"old"),)
    packed = frame.pack_changes(batch)
    raw = frame.seal(writer, start, frame.FrameKind.CHANGES, packed, captured_at_ns=1_700_000_000_000_000_000)
    opened = frame.open_frame(raw, writer.key)
    assert opened.changes == batch
    body_at = frame.read_header(raw)[1]
    header = [
        "changes",
        "mail",
        "0f0f...",
        1,
        3,
        "main",
        1_700_000_000_000_000_000,
        "32 zeros",
        "12 random bytes",
        False,
    ]
    plain = msgspec.msgpack.encode(batch)
    return (
        f"The first frame of a log, by `main` in epoch 3, which removes `old` from the tree `store`:\n\n```\n"
        f"{raw[:2].hex(' ')}         magic\n"
        f"{raw[2]:02x}            format version\n"
        f"{raw[3:5].hex(' ')}         length of the header: {body_at - frame.PREFIX_BYTES}\n"
        f"...           header: {header}\n"
        f"...           the sealed body, tag included\n```\n\n"
        f"Its plain body, before zstd: `{plain.hex(' ')}`\n"
    )


def module_words(module: ModuleType) -> str:
    return markdown(module.__doc__ or "")


def struct_words(struct: type) -> str:
    return markdown(struct.__doc__ or "")


def render() -> str:
    """The whole page."""
    return (
        f"{NOTE}# The frame format, version {frame.FORMAT_VERSION}\n\n"
        f"{module_words(frame)}\n\n"
        f"## Header\n\nA msgpack array of these, in order. An element more than these is refused: a newer format has "
        f"another version.\n\n{fields_table(frame.FrameHeader, HEADER_MEANINGS)}\n"
        f"## Body of a promotion\n\n{struct_words(frame.Promotion)}\n\n{fields_table(frame.Promotion, PROMOTION)}\n"
        f"## Body of changes\n\n{module_words(change)}\n\n"
        f"Each change is a msgpack array: its kind's tag, then its fields in order. What has a default may be left out "
        f"at the end.\n\n{kinds_table()}\n"
        f"`Meta`: {struct_words(change.Meta)}\n\n{fields_table(change.Meta, META_MEANINGS)}\n"
        f"`Extent`: {struct_words(change.Extent)}\n\n{fields_table(change.Extent, EXTENT_MEANINGS)}\n"
        f"`Patch`: {struct_words(change.Patch)}\n\n"
        f"## Digests\n\n{module_words(digest)}\n\n"
        f"## Limits\n\n{limits_table()}\n"
        f"## Example\n\n{example()}\n"
        f"## What a reader must do\n\n{READER}"
    )


LIMIT_MEANINGS: Final = {
    "FRAMES_PER_KEY_MAX": "Random nonces: NIST SP 800-38D, 8.3.",
    "DIGEST_BYTES": "See above.",
}
PROMOTION: Final = {
    "machine": "the machine that is the primary now",
    "reason": "why, for people",
    "planned": "whether the primary before it stopped in good order (switchover)",
}
EXTENT_MEANINGS: Final = {"offset": "bytes from the start of the file", "data": "what stands there"}
META_MEANINGS: Final = {
    "mode": "permission bits, 07777",
    "owner": "user, by name; `#` and the number when it has none",
    "group": "the same for the group",
    "mtime_ns": "modification time, nanoseconds since 1970 (UTC)",
    "xattrs": "pairs of name and value, sorted by name",
}
READER: Final = """\
1. Refuse what does not begin with the magic, or has another version.
2. Read the header; refuse one that is too long, has fields of a wrong length, or more fields.
3. Open the body with the key of the header's incarnation and epoch; everything before the body is additional data.
4. Refuse a frame that is not the successor of the last one: another incarnation, another number than one more, another
   digest in `previous`.
5. Refuse a frame of an older epoch than the last promotion's.
6. Check every change (paths, sizes, digests) before applying it.

Each refusal is the one error `FrameDamaged` (5: `EpochOver`, 6: `ChangeInvalid`). Nothing of a refused frame is
applied.
"""


def main() -> int:
    """Exit status 1 when ``--check`` finds that the page is not up to date."""
    page = render()
    if "--check" in sys.argv:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(PAGE.parents[2])} is not up to date: run `make docs`", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
