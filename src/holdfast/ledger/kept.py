"""What the ledger keeps beside its lines: reports, the one that is owed, and the figures that the gates' process leaves
for the agent."""

from __future__ import annotations

import re
from pathlib import Path
from time import gmtime, strftime
from typing import Final

import msgspec
from msgspec import Struct

from holdfast.files import PRIVATE, write_once
from holdfast.ledger.book import ERASED
from holdfast.ledger.report import Report

REPORTS_KEPT: Final = 50
OWED: Final = "owed.json"
OWED_CHARACTERS_MAX: Final = 1000
"""Machines that replace each other before any of them has made the report each add a sentence."""
_NAME: Final = re.compile(r"report-\d{14}\.json")


class Figures(Struct, frozen=True):
    """Messages, since the gates' process began. *waiting*: now in the queue."""

    accepted: int = 0
    refused: int = 0
    waiting: int = 0
    adopted: int = 0


class Owed(Struct, frozen=True):
    """The report of a change that is still to be made: in the ledger's tree, so whoever serves next makes it."""

    why: str = ""


class LedgerView(Struct, frozen=True):
    """For a status: the figures, and the last report's sums."""

    figures: Figures | None
    """None: the gates do not run on this machine."""
    reported_at: float
    """Seconds since 1970; 0: there is no report."""
    why: str
    sums: dict[str, int]


def figures_json(figures: Figures) -> bytes:
    return msgspec.json.encode(figures)


def keep_report(directory: Path, made: Report) -> Path:
    """Among the ledger's files; the oldest beyond REPORTS_KEPT go. Raises HoldfastError, OSError."""
    path = directory / strftime("report-%Y%m%d%H%M%S.json", gmtime(made.at / 1000))
    write_once(path, _report_json(made), PRIVATE)
    for old in kept_reports(directory)[:-REPORTS_KEPT]:
        old.unlink(missing_ok=True)
    return path


def owe_report(directory: Path, why: str) -> str:
    """A report is owed, because of *why*, and of what it was owed for before: all of it. Empty: no new reason; none was
    owed before: none is owed now. Raises HoldfastError."""
    before = _owed(directory)
    whole = "; then ".join(each for each in (before, why) if each)[-OWED_CHARACTERS_MAX:]
    if whole != before:
        write_once(directory / OWED, msgspec.json.encode(Owed(whole)), PRIVATE)
    return whole


def report_made(directory: Path) -> None:
    """None is owed any more. Raises OSError."""
    (directory / OWED).unlink(missing_ok=True)


def _owed(directory: Path) -> str:
    try:
        return msgspec.json.decode((directory / OWED).read_bytes(), type=Owed).why
    except (OSError, msgspec.DecodeError):
        return ""


def _report_json(made: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def kept_reports(directory: Path) -> list[Path]:
    """Oldest first. Raises OSError."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def read_report(path: Path) -> Report:
    """Raises OSError, msgspec.DecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def erase(directory: Path, account: str) -> None:
    """Take *account* out of the reports. Raises OSError, HoldfastError."""
    for path in kept_reports(directory):
        made = read_report(path)
        named = tuple(
            msgspec.structs.replace(entry, recipient=ERASED, message_id="")
            if entry.recipient.lower() == account.lower()
            else entry
            for entry in made.named
        )
        if named != made.named:
            write_once(path, _report_json(msgspec.structs.replace(made, named=named)), PRIVATE)


def view(directory: Path, figures: Path) -> LedgerView | None:
    """None: this machine has no ledger."""
    try:
        reports = kept_reports(directory)
    except OSError:
        return None
    try:
        now: Figures | None = msgspec.json.decode(figures.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError):
        now = None
    try:
        last = read_report(reports[-1]) if reports else None
    except (OSError, msgspec.DecodeError):
        last = None
    if last is None:
        return LedgerView(now, 0.0, "", {})
    return LedgerView(now, last.at / 1000, last.why, last.sums)
