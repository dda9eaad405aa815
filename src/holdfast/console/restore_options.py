"""What of the mail a restore is asked for: options of ``holdfast restore``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
SHAPES = ("files", "maildir", "messages")


class MailWish(NamedTuple):
    """Accounts, folders, messages, calendars; where to, and how."""

    account: str
    folder: str
    messages: tuple[str, ...]
    collection: str
    items: tuple[str, ...]
    into_server: bool
    into_folder: str
    into_account: str
    copies: bool
    shape: str

    @property
    def asked(self) -> bool:
        """Whether it is about mail at all, and not about trees and paths."""
        return any(self)


def mail_options(function: F) -> F:
    """The command gets them as ``wish``."""

    @wraps(function)
    def with_wish(*args: Any, **kwargs: Any) -> Any:
        wish = MailWish(**{name: kwargs.pop(name) for name in MailWish._fields})
        return function(*args, wish=wish, **kwargs)

    options = (
        click.option("--account", default="", help="An account's mail: alice@example.org; a pattern: '*@example.org'."),
        click.option("--folder", default="", help="With --account: this folder and those below it."),
        click.option(
            "--message",
            "messages",
            multiple=True,
            metavar="ID",
            help="A message, by the id that `vault find` shows.",
        ),
        click.option("--collection", default="", help="With --account: a calendar or address book; '*' is all."),
        click.option(
            "--item", "items", multiple=True, metavar="ID", help="An event, task or contact, by the id that find shows."
        ),
        click.option(
            "--into-server",
            is_flag=True,
            help="Into the running server, beside what is there: nothing is replaced, nothing comes twice.",
        ),
        click.option("--into-folder", default="", help="With --into-server: into this folder (or calendar) instead."),
        click.option("--into-account", default="", help="With --into-server: into another account's mail."),
        click.option(
            "--copies", is_flag=True, help="With --into-folder: also messages that are still in their own folder."
        ),
        click.option(
            "--as",
            "shape",
            type=click.Choice(SHAPES),
            default=None,
            callback=lambda _context, _option, value: value or "",
            help="With --to: exact files, a Maildir, or a file for each message.  [default: files for an account, "
            "maildir for a folder, messages for messages]",
        ),
    )
    for option in reversed(options):
        with_wish = option(with_wish)
    return with_wish  # type: ignore[return-value]
