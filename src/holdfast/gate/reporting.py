"""``python -m holdfast.gate.reporting OPTIONS WHY``: the report of a change, made beside the gates. Also what
`holdfast ledger report` does."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from holdfast.errors import ExitStatus, HoldfastError
from holdfast.gate.options import GateOptions
from holdfast.gate.survey import Survey
from holdfast.ledger.book import read
from holdfast.ledger.kept import keep_report, report_made
from holdfast.ledger.report import Kind, Report, entries, report, sums_words, to_look_at
from holdfast.ledger.states import Ledger
from holdfast.mail.commands import SystemCommands

REPORT_HOURS: Final = 24.0
"""Of what was accepted or delivered in so many hours before the change. Older mail is an older matter."""
NICE: Final = 10
_log = logging.getLogger("holdfast.gate")


async def made_report(directory: Path, survey: Survey, now: int, hours: float, why: str, store_at: int = 0) -> Report:
    """Of the last *hours* before *now* (milliseconds). Raises OSError."""
    since = now - int(hours * 3_600_000)
    ledger = Ledger(read(directory, since / 1000))
    surviving = await survey(to_look_at(ledger, since), days=hours / 24, store_at=store_at)
    doubtful = {entry.delivery for entry in entries(ledger, surviving, since) if entry.kind is Kind.LOST}
    if doubtful:  # what left for another site while we looked has said so since
        later = Ledger(read(directory, since / 1000, frozenset(name.encode() for name in doubtful)))
        ledger.messages.update(later.messages)
    return report(ledger, surviving, at=now, since=since, why=why)


def main() -> int:
    options = msgspec.json.decode(sys.argv[1], type=GateOptions)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.nice(NICE)
    directory = Path(options.ledger)
    shadows = Path(options.shadows) if options.milter_fd else None
    survey = Survey(SystemCommands(), options.machine, shadows, log=options.log)
    try:
        made = asyncio.run(made_report(directory, survey, int(time.time() * 1000), REPORT_HOURS, sys.argv[2]))
        keep_report(directory, made)
        report_made(directory)
    except (HoldfastError, OSError) as error:
        _log.error("%s", error)
        return int(ExitStatus.FAILED)
    _log.info("the ledger after the change (%s): %s", made.why, sums_words(made.sums))
    return int(ExitStatus.DONE)


if __name__ == "__main__":
    sys.exit(main())
