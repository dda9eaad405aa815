"""Postfix's lookup tables: which files ``main.cf`` and ``master.cf`` name, which are compiled, and compiling them.

Compiled tables are not copied but made on each machine from their copied sources: their format depends on the
machine's libraries, and a copy in the middle of ``postmap`` would be torn. Whether a table is up to date is told by a
digest of its source as last compiled, not by times alone: times come from two machines' clocks.
See DATABASE_README and postmap(1).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.mail.files import read_or_none, write_whole
from holdfast.mail.port import Commands, ServiceFailed

COMPILED: Final = {
    "hash": (".db",),
    "btree": (".db",),
    "lmdb": (".lmdb",),
    "cdb": (".cdb",),
    "dbm": (".pag", ".dir"),
    "sdbm": (".pag", ".dir"),
}
"""Table types that postmap compiles, and the endings of what it makes."""
_TABLE: Final = re.compile(r"\b([a-z]+):((?:/|\./)[^\s,{}()]+)")
_PATH: Final = re.compile(r"(?:^|[\s,=<])(/[^\s,:{}()]+)")
_ALIASES: Final = frozenset({"alias_maps", "alias_database"})
COMPILE_SECONDS_MAX: Final = 120.0
"""postmap of a million lines takes about ten seconds."""


class Table(Struct, frozen=True, order=True):
    """One compiled table: its source, and whether ``postalias`` makes it (aliases(5) have a syntax of their own)."""

    kind: str
    source: str
    aliases: bool

    @property
    def compiled(self) -> tuple[str, ...]:
        return tuple(self.source + ending for ending in COMPILED[self.kind])


def tables(settings: dict[str, str]) -> tuple[Table, ...]:
    """Compiled tables and their sources, from expanded settings (``postconf -x``), without Postfix's own caches."""
    found: dict[tuple[str, str], Table] = {}
    for key, value in settings.items():
        if key.endswith(("_cache_database", "_cache_map", "_cache_maps")) or key == "address_verify_map":
            continue  # written by Postfix itself, in its data directory
        for kind, path in _TABLE.findall(value):
            if kind in COMPILED:
                aliases = key in _ALIASES
                known = found.get((kind, path))
                found[(kind, path)] = Table(kind, path, aliases or (known is not None and known.aliases))
    return tuple(sorted(found.values()))


def named_files(values: Iterable[str]) -> set[str]:
    """Every absolute path the settings name: table sources, certificates, ``myorigin = /etc/mailname``."""
    found: set[str] = set()
    for value in values:
        found |= {path for _, path in _TABLE.findall(value) if path.startswith("/")}
        found |= set(_PATH.findall(value))
    return {path.rstrip("/") for path in found}


class Compiler:
    """Compiles tables whose source changed; remembers digests in *memory* (a JSON file)."""

    def __init__(self, commands: Commands, memory: Path, config_directory: str) -> None:
        self._commands = commands
        self._memory = memory
        self._config_directory = config_directory

    async def bring_up_to_date(self, wanted: tuple[Table, ...]) -> tuple[str, ...]:
        """Compile what is stale. Returns what was done. Raises ServiceFailed when a source does not compile."""
        digests = self._load()
        done: list[str] = []
        for table in wanted:
            content = read_or_none(Path(table.source))
            if content is None:
                continue  # postfix check names it
            digest = hashlib.sha256(content).hexdigest()
            identity = f"{table.kind}:{table.source}"
            if digests.get(identity) == digest and not _older_than_source(table):
                continue
            await self._compile(table)
            done.append(f"compiled {identity}")
            digests[identity] = digest
        if done:
            write_whole(self._memory, json.dumps(digests, indent=1, sort_keys=True).encode() + b"\n")
        return tuple(done)

    async def _compile(self, table: Table) -> None:
        program = "postalias" if table.aliases else "postmap"
        argv = [program, "-c", self._config_directory, f"{table.kind}:{table.source}"]
        result = await self._commands.run(argv, timeout_seconds=COMPILE_SECONDS_MAX)
        if not result.ok:
            raise ServiceFailed(result.words, hint=f"Correct {table.source}; the last compiled table is still there.")

    def _load(self) -> dict[str, str]:
        try:
            known = json.loads(read_or_none(self._memory) or b"{}")
        except ValueError:
            return {}  # then everything whose times are in doubt is compiled anew
        return known if isinstance(known, dict) else {}


def _older_than_source(table: Table) -> bool:
    """Whether a compiled file is missing, or older than its source."""
    source = Path(table.source).stat().st_mtime_ns
    for compiled in table.compiled:
        try:
            if Path(compiled).stat().st_mtime_ns < source:
                return True
        except FileNotFoundError:
            return True
    return False
