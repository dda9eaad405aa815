"""Putting a relay's configuration in place: what would change, and doing it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.gate.tables import KIND
from holdfast.mail.files import read_or_none, write_whole
from holdfast.mail.postfix import SETTLED_SECONDS
from holdfast.mail.postfix_render import canonical, parse_overrides, render
from holdfast.node.relay_files import TABLES, main_cf, master_cf
from holdfast.node.settings import Settings

KEPT: Final = ".before-holdfast"
TABLE_NAMES: Final = ("domains", "recipients", "straight", "unlisted")
OF_THE_LIST: Final = ("recipient_delimiter", "message_size_limit")
"""Settings that the agent keeps as the primary has them."""


class Change(NamedTuple):
    """One file that is to be another."""

    path: Path
    before: str
    after: str

    def carry_out(self) -> None:
        """Raises HoldfastError, OSError."""
        kept = self.path.with_name(self.path.name + KEPT)
        if self.before and not kept.exists():
            write_whole(kept, self.before.encode())
        write_whole(self.path, self.after.encode(), dated_back_seconds=SETTLED_SECONDS)
        if self.path.parent == Path(TABLES):
            argv = ["postmap", f"{KIND}:{self.path}"]
            made = subprocess.run(argv, capture_output=True, text=True, check=False)
            if made.returncode:
                raise HoldfastError(f"postmap: {made.stderr.strip()}", hint="Is Postfix installed?")


def planned(settings: Settings, hostname: str | None) -> list[Change]:
    """In the order to be written: the tables before who reads them. Raises ConfigurationError."""
    postfix = settings.mail.postfix
    folder = Path(postfix.config_directory)
    overrides = read_or_none(Path(postfix.overrides)) or b""
    own = parse_overrides(overrides.decode("utf-8", "replace"), postfix.overrides)
    before = _text(folder / "main.cf")
    name = hostname or own.get("myhostname") or _said(before, "myhostname") or socket.getfqdn()
    if "." not in name:
        raise ConfigurationError(f"{name!r} is no full host name", hint="Say --hostname mx1.example.org")
    text = main_cf(settings, name)
    if "holdfast relay configure" in before:
        for parameter in OF_THE_LIST:
            text = _with(text, parameter, _said(before, parameter))
    wanted = {
        folder / "master.cf": master_cf(),
        folder / "main.cf": render(text.encode(), own).decode(),
    }
    tables = [Change(Path(TABLES) / each, "", "# nobody yet\n") for each in TABLE_NAMES]
    changes = [change for change in tables if not change.path.exists()]
    changes += [Change(path, _text(path), text) for path, text in wanted.items() if _text(path) != text]
    return changes


def _text(path: Path) -> str:
    return (read_or_none(path) or b"").decode("utf-8", "replace")


def _said(main: str, parameter: str) -> str:
    lines = canonical(main.encode()).decode().splitlines()
    values = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == parameter]
    return values[-1] if values else ""


def _with(main: str, parameter: str, value: str) -> str:
    lines = main.splitlines(keepends=True)
    return "".join(f"{parameter} = {value}\n" if line.startswith(f"{parameter} =") else line for line in lines)
