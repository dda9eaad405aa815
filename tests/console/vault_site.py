"""The vault commands in this process, on folders of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from holdfast.console.main import main


class Desk:
    """Somebody's terminal: configuration, cache and a mail folder below *base*."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mail = base / "Maildir"
        self.location = base / "vault"
        self.environment = {
            "HOLDFAST_VAULTS": str(base / "vaults"),
            "HOLDFAST_CACHE": str(base / "cache"),
            "HOLDFAST_CONFIG": str(base / "holdfast.toml"),
        }

    def run(self, *arguments: str, text: str = "", **environment: str) -> Result:
        runner = CliRunner(env={**self.environment, **environment})
        result = runner.invoke(main, [str(argument) for argument in arguments], input=text)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def done(self, *arguments: str, status: int = 0, text: str = "") -> str:
        """What was printed; the exit status must be *status*."""
        result = self.run(*arguments, text=text)
        assert result.exit_code == status, (arguments, result.exit_code, result.output)
        return result.output

    def json(self, *arguments: str, status: int = 0) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == status, (arguments, result.exit_code, result.output)
        return json.loads(result.stdout)

    def write(self, name: str, text: str = "Subject: hello\n\nhello\n") -> Path:
        path = self.mail / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def ready(self) -> Desk:
        """A mail folder with two messages, and a vault that was just made."""
        self.write("cur/1.host:2,S", "Subject: one\n\nfirst\n")
        self.write("cur/2.host:2,", "Subject: two\n\nsecond\n")
        self.done("vault", "init", str(self.location))
        return self

    def backup(self, status: int = 0) -> Any:
        return self.json("vault", "backup", str(self.mail), status=status)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Root's rights put aside."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
