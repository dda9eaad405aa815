"""A rebuild that stops when some accounts are back: run in a lab machine, so that a test can look at the others.

``python -m tests.rebuild.paused LOCATION IDENTITY COUNT MARK``: after COUNT units it writes the file MARK (JSON: what
is in place, what is not) and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from holdfast.console.vault_open import identities_in
from holdfast.mail.commands import SystemCommands
from holdfast.rebuild.book import FOLDER, Book
from holdfast.rebuild.machine import Rebuild
from holdfast.rebuild.plan import Plan, Wish, make_plan
from holdfast.rebuild.survey import Unit
from holdfast.vault.instant import Archive, open_instant
from holdfast.vault.location import open_backend
from holdfast.vault.repository import open_vault


class Pausing:
    """Tells nobody, and stops."""

    def __init__(self, plan: Plan, count: int, mark: Path) -> None:
        self._names = [unit.name for unit in plan.units]
        self._count = count
        self._mark = mark
        self._back: list[str] = []

    def step(self, words: str) -> None:
        print("step", words, flush=True)

    def writing(self, done_bytes: int, files: int) -> None:
        pass

    def note(self, words: str) -> None:
        print("note", words, flush=True)

    def usable(self, unit: Unit, after_seconds: float, left_seconds: float) -> None:
        self._back.append(unit.name)
        if len(self._back) == self._count:
            temporary = self._mark.with_suffix(".new")
            temporary.write_text(json.dumps({"back": self._back, "missing": self._names[self._count :]}))
            temporary.rename(self._mark)
            time.sleep(600)


def main(location: str, identity: str, count: str, mark: str) -> None:
    backend = open_backend(location)
    with open_vault(backend, identities=identities_in(Path(identity).read_text(), identity)) as vault:
        target = Archive(vault).latest()
        with open_instant(vault, target) as instant:
            commands, book = SystemCommands(), Book(FOLDER)
            trees, wish = instant.snapshot.trees, Wish(ordered=True, offline=True)
            plan = asyncio.run(make_plan(instant.vault, trees, target.base.short, wish, frozenset(), commands))
            assert not plan.refusals, plan.refusals
            book.begin(vault.codec.secrets.vault.hex(), target.base.short, ordered=True, now_ns=time.time_ns())
            tell = Pausing(plan, int(count), Path(mark))
            Rebuild(instant.vault, plan, book, commands, tell, take_addresses=False).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
