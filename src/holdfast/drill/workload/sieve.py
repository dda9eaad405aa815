"""A small ManageSieve client (RFC 5804): put, activate, list and get scripts."""

from __future__ import annotations

import base64

from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, Line, NotSent, Patience
from holdfast.mail import imap_syntax as syntax


class SieveClient:
    """An authenticated session."""

    def __init__(self, endpoint: Endpoint, patience: Patience, user: str, password: str) -> None:
        """Connect and authenticate. Raises NotSent or Declined."""
        self._line = Line(endpoint, patience)
        try:
            self._answer("greeting")
            if endpoint.tls == "starttls":
                self._command("STARTTLS")
                self._line.start_tls()
                self._answer("greeting")
            token = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
            self._command(f'AUTHENTICATE "PLAIN" "{token}"')
        except AnswerLost as error:
            raise NotSent(error.message, retry=True) from error

    def put(self, name: str, script: str) -> None:
        content = script.encode()
        self._line.send(b'PUTSCRIPT "%s" {%d+}\r\n' % (name.encode(), len(content)), content, b"\r\n")
        self._answer("PUTSCRIPT")

    def activate(self, name: str) -> None:
        self._command(f'SETACTIVE "{name}"')

    def scripts(self) -> dict[str, bool]:
        """Name -> whether it is the active one."""
        found: dict[str, bool] = {}
        for parts in self._command("LISTSCRIPTS"):
            values = syntax.parse(parts)
            if isinstance(values[0], bytes):
                found[values[0].decode()] = len(values) > 1 and values[1] == b"ACTIVE"
        return found

    def get(self, name: str) -> str:
        parts = self._command(f'GETSCRIPT "{name}"')[0]
        return parts[1].decode() if len(parts) > 1 else ""

    def logout(self) -> None:
        try:
            self._command("LOGOUT")
        except (NotSent, AnswerLost, Declined):
            pass
        finally:
            self._line.close()

    def _command(self, text: str) -> list[list[bytes]]:
        self._line.send(text.encode() + b"\r\n")
        return self._answer(text.split(" ")[0])

    def _answer(self, step: str) -> list[list[bytes]]:
        """Responses before the OK, each as text and literals in turn."""
        responses: list[list[bytes]] = []
        while True:
            parts = [self._line.line()]
            while (size := syntax.literal_size(parts[-1])) is not None:
                parts.append(self._line.counted(size))
                parts.append(self._line.line())
            word = parts[0].split(b" ", 1)[0].upper()
            if word == b"OK":
                return responses
            if word in (b"NO", b"BYE"):
                raise Declined(word.decode(), f"{step}: {b' '.join(parts).decode('utf-8', 'replace')}")
            responses.append(parts)
