"""The tables of a relay's Postfix, and the two settings that must be the primary's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.files import PUBLIC, write_once
from holdfast.gate.recipients import Recipients, tables
from holdfast.mail.port import Commands

COMMAND_SECONDS_MAX: Final = 120.0
KIND: Final = "hash"


class RelayTables:
    """In *folder*, which main.cf names; *configuration* chooses another Postfix than the machine's."""

    def __init__(self, commands: Commands, folder: Path, configuration: str = "", *, straight: bool = False) -> None:
        """*straight*: whether there is a way past the primary's Postfix."""
        self._commands, self._folder, self._straight = commands, folder, straight
        self._options = ["-c", configuration] if configuration else []

    async def write(self, recipients: Recipients) -> None:
        """Postfix takes a changed table up by itself. Raises HoldfastError."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, text in tables(recipients, straight=self._straight).items():
            path = self._folder / name
            if not (path.exists() and path.read_text(encoding="utf-8") == text):
                write_once(path, text.encode(), PUBLIC)
            await self._run(["postmap", *self._options, f"{KIND}:{path}"])
        wanted = {
            "recipient_delimiter": recipients.delimiter,
            "message_size_limit": str(recipients.message_bytes_max),
        }
        shown = await self._run(["postconf", *self._options, *wanted])
        if [line.partition("=")[2].strip() for line in shown.splitlines()] != list(wanted.values()):
            await self._run(
                ["postconf", *self._options, "-e", *(f"{name} = {value}" for name, value in wanted.items())]
            )
            await self._commands.run(["postfix", *self._options, "reload"], timeout_seconds=COMMAND_SECONDS_MAX)

    async def _run(self, argv: list[str]) -> str:
        result = await self._commands.run(argv, timeout_seconds=COMMAND_SECONDS_MAX)
        if not result.ok:
            hint = "Run: postfix check. Until then the tables are those of the list before."
            raise HoldfastError(f"the tables cannot be made: {result.words}", hint=hint, retry=True)
        return result.output
