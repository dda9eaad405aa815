"""Reading the documentation: pages, fenced blocks, links, anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
_FENCE: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"(?<!!)\[(?:[^\]`]|`[^`]*`)*\]\((?P<target>[^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block; *line* is that of its first line of text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    return sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def blocks(page: Path, language: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match["language"] == language:
            yield Block(page, text[: match.start("text")].count("\n") + 1, language, match["text"])


def links(page: Path) -> list[str]:
    """Targets of links, those in code left out."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [match["target"] for match in _LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Names of headings as GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(script: str) -> Iterator[list[str]]:
    """The ``holdfast`` commands in a shell script, as words; also those in substitutions, loops and ``sh -c``.

    What ``$(...)`` puts in stands as part of one word. Here-documents and comments are left out.
    """
    script = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", script, flags=re.DOTALL | re.MULTILINE)
    script = re.sub(r"\\\n\s*", " ", script)
    for substituted in re.findall(r"\$\(([^()]*)\)", script):
        yield from commands(substituted)
    script = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", script)
    for line in script.splitlines():
        for words in _simple_commands(line):
            if words[0] == "holdfast":
                yield words
            if "-c" in words[:-1]:
                yield from commands(words[words.index("-c") + 1])


_NOT_YET: Final = {"until", "while", "if", "do", "then", "else", "!", "{", "setsid"}
"""Words that may stand before a command."""


def _simple_commands(line: str) -> Iterator[list[str]]:
    """What stands between the operators of a line; redirections are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for token in [*lexer, ";"]:
        if set(token) <= set("<>&") and set(token) & set("<>"):
            redirected = True
            if words and words[-1].isdigit():
                words.pop()
        elif set(token) <= set(";|&()"):
            if words:
                yield words
            words = []
        elif redirected:
            redirected = False
        elif words or token not in _NOT_YET:
            words.append(token)
