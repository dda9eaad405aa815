"""Results for programs, remarks for people."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import Final

import click

WARNING_CHARS_MAX: Final = 400

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def emit(value: object) -> None:
    """Print *value* as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def warn(text: str, *, first: str = "! ", rest: str = "  ") -> None:
    """A remark on standard error; on a terminal wrapped at words. What a program said too much of is cut."""
    if len(text) > WARNING_CHARS_MAX:
        text = text[:WARNING_CHARS_MAX].rstrip() + " ..."
    if not sys.stderr.isatty():
        click.echo(first + text, err=True)
        return
    width = max(shutil.get_terminal_size().columns - 1, 40)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    click.echo("\n".join(lines), err=True)
