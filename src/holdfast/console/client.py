"""Talks to the agent on its socket. Standard library only: it starts with every command."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from holdfast.errors import ExitStatus, HoldfastError, Refused, Unreachable

SOCKET: Final = Path("/run/holdfast/agent.sock")
CONNECT_SECONDS: Final = 5.0


def person() -> str:
    """Who gives an order, as far as this machine knows: it is written down with it."""
    name = os.environ.get("SUDO_USER") or os.environ.get("LOGNAME") or str(os.getuid())
    away = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    return f"{name} from {away}" if away else name


class AgentFailed(HoldfastError):
    """The agent answered with an error; its exit status is the command's."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body.get("message", "the agent failed"), hint=body.get("hint", ""))
        self.status = ExitStatus(body.get("exit_status", ExitStatus.FAILED))


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("agent", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self.timeout)


class Client:
    """One agent. *seconds*: how long an answer may take."""

    def __init__(self, path: Path = SOCKET, seconds: float = 900.0) -> None:
        self._path = path
        self._seconds = seconds

    def get(self, path: str) -> Any:
        return json.loads(self._call("GET", path, None).read())

    def post(self, path: str, **body: Any) -> Any:
        return json.loads(self._call("POST", path, body).read())

    def lines(self, path: str, **body: Any) -> Iterator[Any]:
        """An answer of JSON lines, as they come. Raises AgentFailed for a line that is an error."""
        response = self._call("POST", path, body)
        for line in response:
            value = json.loads(line)
            if "error" in value:
                raise AgentFailed(value["error"])
            yield value

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        connection = _Connection(self._path, self._seconds)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
        except PermissionError:
            raise Refused(f"{self._path} may only be opened by root", hint="Run the command as root.") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise Unreachable(
                "the agent does not run on this machine",
                hint="Start it: `systemctl start holdfast` (or `holdfast agent` in the foreground). "
                "Its log: `journalctl -u holdfast`.",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the agent did not answer: {error}", hint="Is it busy or stuck? See its log.") from None
        if response.status >= 400:
            raise AgentFailed(json.loads(response.read()))
        return response
