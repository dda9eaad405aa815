"""A session with both peers played from a script: what the pure part does, without sockets."""

from __future__ import annotations

from holdfast.gate.lmtp import (
    AwaitBarrier,
    End,
    LmtpSession,
    Lookup,
    NoteDone,
    NoteIntent,
    Step,
    ToClient,
    ToServer,
)

LHLO = (
    b"250-mail.example.org\r\n250-8BITMIME\r\n250-CHUNKING\r\n250-XCLIENT ADDR\r\n250-ENHANCEDSTATUSCODES\r\n"
    b"250 PIPELINING\r\n"
)


class Talk:
    """Feeds a session and keeps what came out of it, by kind."""

    def __init__(self) -> None:
        self.session = LmtpSession()
        self.client = b""
        self.server = b""
        self.steps: list[Step] = []

    def keep(self, steps: list[Step]) -> list[Step]:
        for step in steps:
            if isinstance(step, ToClient):
                self.client += step.data
            elif isinstance(step, ToServer):
                self.server += step.data
            else:
                self.steps.append(step)
        return steps

    def say(self, data: bytes) -> None:
        """The client says *data*."""
        self.keep(self.session.from_client(data))

    def answer(self, data: bytes) -> None:
        """The server says *data*."""
        self.keep(self.session.from_server(data))

    def heard_by_client(self) -> bytes:
        heard, self.client = self.client, b""
        return heard

    def heard_by_server(self) -> bytes:
        heard, self.server = self.server, b""
        return heard

    def greet(self) -> None:
        self.answer(b"220 ready\r\n")
        self.say(b"LHLO client\r\n")
        self.answer(LHLO)
        self.heard_by_client()
        self.heard_by_server()

    def envelope(self, *recipients: bytes) -> None:
        """MAIL, RCPT ..., DATA in one piece, all accepted; the gate's 354 is out."""
        lines = [b"MAIL FROM:<a@outside.example>", *(b"RCPT TO:<%s>" % address for address in recipients), b"DATA"]
        self.say(b"\r\n".join(lines) + b"\r\n")
        self.answer(b"250 2.1.0 OK\r\n" + b"250 2.1.5 OK\r\n" * len(recipients))
        self.heard_by_client()
        self.heard_by_server()

    def lookup(self) -> Lookup:
        found = [step for step in self.steps if isinstance(step, Lookup)]
        return found[-1]

    def know(self, *have: bytes) -> None:
        self.keep(self.session.known(frozenset(have)))

    @property
    def ended(self) -> End | None:
        return next((step for step in self.steps if isinstance(step, End)), None)

    def waits_for_barrier(self) -> bool:
        return sum(isinstance(step, AwaitBarrier) for step in self.steps) > 0

    def notes(self) -> list[NoteIntent | NoteDone]:
        return [step for step in self.steps if isinstance(step, NoteIntent | NoteDone)]
