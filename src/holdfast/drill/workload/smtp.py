"""A small SMTP and LMTP client (RFC 5321, RFC 2033): one message at a time, and exact about what an error means."""

from __future__ import annotations

import base64

from msgspec import Struct

from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, Line, NotSent, Patience


class Reply(Struct, frozen=True):
    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return " / ".join(self.lines)


class SmtpClient:
    """A session after its greeting and EHLO. ``answered_by`` is the host name the server greeted with."""

    def __init__(self, endpoint: Endpoint, patience: Patience, *, name: str, login: tuple[str, str] | None) -> None:
        """Connect, greet as *name*, and authenticate when *login* (user, password) is given (RFC 4954).

        Raises NotSent (nothing can have been accepted yet, whatever broke) or Declined.
        """
        self._line = Line(endpoint, patience)
        try:
            greeting = self._expect("greeting", 220)
            self.answered_by = greeting.lines[0].split(" ")[0] if greeting.lines else ""
            self._command(f"EHLO {name}", 250)
            if endpoint.tls == "starttls":
                self._command("STARTTLS", 220)
                self._line.start_tls()
                self._command(f"EHLO {name}", 250)
            if login is not None:
                token = base64.b64encode(f"\0{login[0]}\0{login[1]}".encode()).decode()
                self._command(f"AUTH PLAIN {token}", 235)
        except AnswerLost as error:
            raise NotSent(error.message, retry=True) from error

    def send(self, sender: str, recipients: tuple[str, ...], content: bytes) -> str:
        """Hand one message over; the server's own words on acceptance (its queue ID).

        *content* has CRLF line ends and a final one. All recipients must be accepted. Raises NotSent (not accepted),
        Declined, AnswerLost (only once the final dot has left: it may have been accepted).
        """
        try:
            self._command(f"MAIL FROM:<{sender}> BODY=8BITMIME SIZE={len(content)}", 250)
            for recipient in recipients:
                self._command(f"RCPT TO:<{recipient}>", 250)
            self._command("DATA", 354)
        except AnswerLost as error:
            raise NotSent(error.message, retry=True) from error
        self._line.send(dot_stuffed(content), b".\r\n")
        return self._expect("end of DATA", 250).text

    def reset(self) -> None:
        """Forget a half-made transaction after Declined, so that the session can go on."""
        self._command("RSET", 250)

    def quit(self) -> None:
        """Take leave; errors no longer matter: nothing is under way."""
        try:
            self._command("QUIT", 221)
        except (NotSent, AnswerLost, Declined):
            pass
        finally:
            self.close()

    def close(self) -> None:
        self._line.close()

    def _command(self, command: str, expected: int) -> Reply:
        self._line.send(command.encode() + b"\r\n")
        return self._expect(command.split(" ")[0], expected)

    def _expect(self, step: str, expected: int) -> Reply:
        lines: list[str] = []
        while True:
            line = self._line.line().decode("utf-8", "replace")
            if len(line) < 3 or not line[:3].isdigit():
                self.close()
                raise AnswerLost(f"{self._line.endpoint}: {step}: not an SMTP reply: {line[:80]!r}")
            lines.append(line[4:])
            if line[3:4] != "-":
                break
        reply = Reply(int(line[:3]), tuple(lines))
        if reply.code != expected:
            raise Declined(str(reply.code), f"{step}: {reply.text}", temporary=400 <= reply.code < 500)
        return reply


def dot_stuffed(content: bytes) -> bytes:
    """*content* with a second dot before each line that begins with one (RFC 5321 4.5.2)."""
    stuffed = content.replace(b"\r\n.", b"\r\n..") if b"\r\n." in content else content
    return b"." + stuffed if stuffed.startswith(b".") else stuffed
