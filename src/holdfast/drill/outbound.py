"""Mail to another site: users who send it by submission, and that site's mail server, which counts what comes.

Recipients are at the client machine's address (``far@[192.0.2.14]``, RFC 5321 4.1.3), so Postfix needs no more
configuration, and its smtp(8) delivers to a real SMTP server, here a small one that knows no errors.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Final

from holdfast.drill.workload import messages
from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, NotSent, Patience
from holdfast.drill.workload.plan import Login
from holdfast.drill.workload.smtp import SmtpClient

PORT: Final = 25
STREAM: Final = "out"
BACKOFF_SECONDS: Final = 0.2
SENDER: Final = "user@example.test"


class Arrivals:
    """What has come, by Message-ID: the delivery id of each copy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came: dict[str, list[str]] = {}

    def add(self, message_id: str, delivery: str) -> None:
        with self._lock:
            self._came.setdefault(message_id, []).append(delivery)

    def copies(self, message_id: str) -> list[str]:
        with self._lock:
            return list(self._came.get(message_id, ()))


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    timeout = 60

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self._say(b"220 far.example ESMTP")
            while line := self.rfile.readline(4096):
                verb = line[:4].upper()
                if verb == b"DATA":
                    self._say(b"354 go on")
                    self._take()
                elif verb == b"QUIT":
                    self._say(b"221 bye")
                    break
                else:
                    self._say(b"250 far.example")

    def _take(self) -> None:
        header: dict[bytes, bytes] = {}
        inside = True
        while (line := self.rfile.readline(65536)) not in (b".\r\n", b""):
            inside = inside and line != b"\r\n"
            name, colon, value = line.partition(b":")
            if inside and colon:
                header.setdefault(name.lower(), value.strip())
        if line:
            message_id = header.get(b"message-id", b"").decode("ascii", "replace").strip("<>")
            self.server.arrivals.add(message_id, header.get(b"holdfast-delivery", b"").decode("ascii", "replace"))
            self._say(b"250 taken")

    def _say(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        super().__init__(("", PORT), _Handler)


@contextlib.contextmanager
def far_site(arrivals: Arrivals) -> Iterator[None]:
    """The other site's server, on the machine whose network this thread is in."""
    server = _Server(arrivals)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Senders:
    """One user who sends to the other site, a message after the other, each until it is accepted."""

    def __init__(self, endpoint: Endpoint, login: Login, recipient: str, seed: int, patience: Patience) -> None:
        self._endpoint, self._login, self._recipient = endpoint, login, recipient
        self._seed, self._patience = seed, patience
        self.acknowledged: list[str] = []
        self.doubtful: set[str] = set()
        """Sent again after no answer: two copies of these are its sender's."""

    def run(self, stop: threading.Event, every_seconds: float) -> None:
        client: SmtpClient | None = None
        number = 0
        while not stop.wait(every_seconds):
            mail = messages.make(self._seed, number, stream=STREAM, sender=SENDER, recipient=self._recipient)
            number += 1
            while not stop.is_set():
                try:
                    client = client or self._connect()
                    client.send(SENDER, (self._recipient,), mail.content)
                    self.acknowledged.append(mail.message_id)
                    break
                except AnswerLost:
                    self.doubtful.add(mail.message_id)
                except (NotSent, Declined):
                    pass
                if client is not None:
                    client.close()
                    client = None
                stop.wait(BACKOFF_SECONDS)
        if client is not None:
            client.quit()

    def _connect(self) -> SmtpClient:
        login = (self._login.name, self._login.password)
        return SmtpClient(self._endpoint, self._patience, name="client.drill.example", login=login)
