"""Options of the commands that open a vault. Nothing heavy is imported here: help needs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class VaultChoice(NamedTuple):
    """What the command line or the environment gives; empty: nothing."""

    vault: str = ""
    """A name or a location."""
    key: str = ""
    identity: str = ""


def vault_options(function: F) -> F:
    """Options ``--vault``, ``--key``, ``--identity``; the command gets them as ``choice``."""

    @wraps(function)
    def with_choice(*args: Any, vault_text: str, key_file: str, identity_file: str, **kwargs: Any) -> Any:
        return function(*args, choice=VaultChoice(vault_text, key_file, identity_file), **kwargs)

    options = (
        click.option(
            "--vault",
            "vault_text",
            default="",
            envvar="HOLDFAST_VAULT",
            metavar="NAME|LOCATION",
            help="Which vault.  [default: the only one known here; env: HOLDFAST_VAULT]",
        ),
        click.option(
            "--key",
            "key_file",
            default="",
            envvar="HOLDFAST_VAULT_KEY",
            metavar="FILE",
            help="The writer key.  [env: HOLDFAST_VAULT_KEY]",
        ),
        click.option(
            "--identity",
            "identity_file",
            default="",
            envvar="HOLDFAST_VAULT_IDENTITY",
            metavar="FILE",
            help="A reader's age identity.  [env: HOLDFAST_VAULT_IDENTITY]",
        ),
    )
    for option in reversed(options):
        with_choice = option(with_choice)
    return with_choice  # type: ignore[return-value]


class _Bytes(click.ParamType[int]):
    """``500k``, ``20M``: bytes, in powers of 1000."""

    name = "BYTES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)(?:i?b)?(?:/s)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r}: write 500k, 20M or a number of bytes", param, ctx)
        return int(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2]])


class Span(click.ParamType[float]):
    """``36h``, ``14d``, ``8w``: seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", str(value).strip().lower())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r}: write 36h, 14d or 8w", param, ctx)
        return float(match[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[match[2]]


limit_option = click.option(
    "--limit", type=_Bytes(), default=0, metavar="RATE", help="At most so many bytes a second: 500k, 20M."
)
