"""Groups of commands whose modules are imported when they are used: help must answer at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import ClassVar, NamedTuple

import click


class Late(NamedTuple):
    """One command: where it is, and what the list says of it."""

    module: str
    attribute: str
    short: str

    def command(self) -> click.Command:
        command = getattr(import_module(self.module), self.attribute)
        assert isinstance(command, click.Command)
        return command


class LateGroup(click.Group):
    """A group with a table of late commands, beside those that are registered as usual; listed in the table's order."""

    late: ClassVar[Mapping[str, Late]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.late, *(name for name in self.commands if name not in self.late)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.late:
            return self.late[cmd_name].command()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.short(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def short(self, name: str) -> str:
        """The line in the list; nothing late is imported for it."""
        return self.late[name].short if name in self.late else self.commands[name].get_short_help_str(90)
