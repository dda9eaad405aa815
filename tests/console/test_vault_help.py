"""Help of the backup commands: an example each, on a terminal of 80 columns, without heavy imports."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from holdfast.console.main import main
from tests.console.test_before_the_agent import HEAVY, modules_after


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, (*path, name))


def backup_commands() -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(main)
    tops = {name: main.get_command(context, name) for name in ("vault", "restore")}
    return [found for name, top in tops.items() if top is not None for found in commands(top, (name,))]


@pytest.mark.parametrize(
    ("path", "command"), backup_commands(), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_fits_a_terminal_and_has_an_example(path: tuple[str, ...], command: click.Command) -> None:
    context = click.Context(command, info_name=" ".join(("holdfast", *path)), terminal_width=80, max_content_width=80)
    text = command.get_help(context)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "Example" in text
    if isinstance(command, click.Group):
        assert "..." not in text.partition("Commands:")[2], "a short help is cut"


@pytest.mark.parametrize("arguments", [("vault", "--help"), ("vault", "backup", "--help"), ("restore", "--help")])
def test_help_of_backups_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not (HEAVY | {"pyrage", "apsw", "holdfast.vault.repository"}) & modules_after(*arguments)
