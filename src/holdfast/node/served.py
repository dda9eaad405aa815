"""``served.json`` in the run directory: what this machine serves with, written down before it serves.

For ``holdfast release``, which must be able to stop all of it when the agent has died and the configuration cannot be
read, or says something else by now. It goes when serving ends: while an agent serves and the file is not there,
somebody released the machine under it. The run directory is empty when a machine starts, as its interfaces are.

Standard library only: it is read before anything else is imported.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from holdfast.errors import HoldfastError
from holdfast.files import PRIVATE, write_once

RUN_DIRECTORY: Final = Path("/run/holdfast")
NAME: Final = "served.json"


class Served(NamedTuple):
    """*mail* is the table ``[mail]``, as builtins. *command*: what moves the addresses, instead of the interface."""

    interface: str
    addresses: tuple[str, ...]
    mail: dict[str, Any]
    command: tuple[str, ...] = ()
    command_seconds: float = 0.0
    environment: tuple[tuple[str, str], ...] = ()


class ServedFile:
    """The file, and what this agent writes into it."""

    def __init__(self, run: Path, served: Served) -> None:
        self._path = run / NAME
        self._served = served

    @property
    def present(self) -> bool:
        return self._path.exists()

    def write(self) -> None:
        """Raises HoldfastError."""
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise HoldfastError(f"{self._path.parent} cannot be made: {error.strerror}") from error
        write_once(self._path, json.dumps(self._served._asdict(), indent=1).encode(), PRIVATE)

    def forget(self) -> None:
        """Nothing is served any more."""
        forget(self._path.parent)


def read(run: Path) -> Served | None:
    """What was written down; None when nothing was. Raises HoldfastError when it cannot be read."""
    path = run / NAME
    try:
        value = json.loads(path.read_bytes())
        return Served(
            str(value["interface"]),
            tuple(map(str, value["addresses"])),
            dict(value["mail"]),
            tuple(map(str, value.get("command", ()))),
            float(value.get("command_seconds", 0.0)),
            tuple((str(name), str(text)) for name, text in value.get("environment", ())),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HoldfastError(f"{path} cannot be read: {error}", hint="Look at the addresses: ip address.") from None


def forget(run: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (run / NAME).unlink()


def run_directory(configuration: Path) -> Path:
    """Where it is, by a configuration that may be broken elsewhere, or not be there at all."""
    with contextlib.suppress(OSError):
        text = configuration.read_bytes().decode("utf-8", "replace")
        if found := re.search(r"""(?m)^\s*run_directory\s*=\s*["']([^"'\n]+)["']""", text):
            return Path(found[1])
    return RUN_DIRECTORY
