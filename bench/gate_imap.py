"""IMAP through the gate beside IMAP past it, on one Dovecot: two accounts with the same mail, of which one is handed
over to the gate by a field of its own in the users file (``userdb_postlogin``). Interleaved (a b b a).

With TLS, as users come, and without, where the gate's own bytes weigh most: everything runs on the same processors.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import time
from typing import Any, Final

from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import Account
from holdfast.drill.site import ProtectedLab

SOCKET: Final = "/run/holdfast/imap-gate"
CONFIGURATION: Final = f'imap = "unix:{SOCKET}"\n'
HEADERS: Final = 1000
LARGE_BYTES: Final = 20_000_000
LINE: Final = b"y" * 76 + b"\r\n"
HEADER: Final = (
    b"Received: from relay.outside.example by mx.example.test (Postfix) with ESMTPS id 4XyZ%05d\r\n"
    b"\tfor <user@example.test>; Mon, 30 Nov 2026 12:00:00 +0000\r\n"
    * 3
    + b"From: <sender@outside.example>\r\nTo: <user@example.test>\r\nSubject: message %05d\r\n"
    b"Message-ID: <%05d@outside.example>\r\nDate: Mon, 30 Nov 2026 12:00:00 +0000\r\n\r\ntext\r\n"
)
READS: Final = {
    "headers": b"UID FETCH 1:* (UID FLAGS RFC822.SIZE BODY.PEEK[HEADER])",
    "large": b"FETCH 1 BODY.PEEK[]",
}
ROUNDS: Final = 6
READS_OF_ROUND: Final = {"headers": 6, "large": 6}
STORES_OF_ROUND: Final = 40
_BUFFER: Final = bytearray(1 << 20)


class Client:
    """A connection that reads as fast as Python can, and keeps nothing."""

    def __init__(self, machine: Machine, account: Account, *, tls: bool) -> None:
        with machine.network():
            plain = socket.create_connection(("127.0.0.1", 993 if tls else 143), 30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._socket = context.wrap_socket(plain) if tls else plain
        self._until(b"* OK")
        self.command(b"LOGIN %s %s" % (account.address.encode(), account.password.encode()))

    def command(self, text: bytes) -> int:
        """The bytes of its answer."""
        self._socket.sendall(b"x " + text + b"\r\n")
        return self._until(b"x OK")

    def _until(self, begin: bytes) -> int:
        """Until the last line there is begins so."""
        size, tail = 0, b"\n"
        while True:
            count = self._socket.recv_into(_BUFFER)
            size += count
            tail = (tail + _BUFFER[max(0, count - 2000) : count])[-2000:]
            if tail.endswith(b"\r\n") and tail[tail.rfind(b"\n", 0, -1) + 1 :].startswith(begin):
                return size
            if not count or b"\nx NO" in tail or b"\nx BAD" in tail:
                raise SystemExit(f"IMAP: {bytes(tail)!r}")

    def close(self) -> None:
        self._socket.close()


def _fill(client: Client) -> None:
    for folder in ("headers", "large"):
        client.command(b"CREATE " + folder.encode())
    for number in range(HEADERS):
        message = HEADER.replace(b"%05d", b"%05d" % number)
        client.command(b"APPEND headers {%d+}\r\n%s" % (len(message), message))
    message = b"Subject: large\r\n\r\n" + LINE * (LARGE_BYTES // len(LINE))
    client.command(b"APPEND large {%d+}\r\n%s" % (len(message), message))


def measured(site: ProtectedLab) -> dict[str, Any]:
    """Keys for ``build/bench/gate.json``."""
    main = site.lab.machine("main")
    direct, gated = site.lab.accounts[:2]
    users = main.path("/etc/dovecot/users").read_text()
    lines = [
        f"{line}userdb_postlogin={SOCKET}" if line.startswith(gated.address) else line for line in users.split("\n")
    ]
    mailhost.put(main, "/etc/dovecot/users", "\n".join(lines), mode=0o640, group="dovecot")
    ways = {"direct": direct, "gated": gated}
    for account in ways.values():
        client = Client(main, account, tls=False)
        _fill(client)
        client.close()
    made: dict[str, Any] = {}
    for tls in (True, False):
        for what, command in READS.items():
            seconds: dict[str, list[float]] = {"direct": [], "gated": []}
            for number in range(ROUNDS):
                for way in ("direct", "gated") if number % 2 else ("gated", "direct"):
                    seconds[way] += _reads(Client(main, ways[way], tls=tls), what, command)
            made[f"imap_{what}_ms_{'tls' if tls else 'plain'}"] = {
                way: statistics.median(times) * 1e3 for way, times in seconds.items()
            }
    stores: dict[str, list[float]] = {"direct": [], "gated": []}
    for number in range(ROUNDS):
        for way in ("direct", "gated") if number % 2 else ("gated", "direct"):
            stores[way] += _stores(Client(main, ways[way], tls=True))
    made["imap_store_ms"] = {way: statistics.median(times) * 1e3 for way, times in stores.items()}

    def ratio(kind: str) -> float:
        times = [made[f"imap_{what}_ms_{kind}"] for what in READS]
        return float(min(each["direct"] / each["gated"] for each in times))

    made["imap_read_ratio"] = ratio("tls")
    made["imap_read_ratio_without_tls"] = ratio("plain")
    made["imap_store_added_ms_p50"] = made["imap_store_ms"]["gated"] - made["imap_store_ms"]["direct"]
    return made


def _reads(client: Client, folder: str, command: bytes) -> list[float]:
    client.command(b"SELECT " + folder.encode())
    client.command(command)
    times = []
    for _ in range(READS_OF_ROUND[folder]):
        began = time.perf_counter()
        client.command(command)
        times.append(time.perf_counter() - began)
    client.close()
    return times


def _stores(client: Client) -> list[float]:
    client.command(b"SELECT headers")
    times = []
    for number in range(STORES_OF_ROUND):
        began = time.perf_counter()
        client.command(b"STORE %d %sFLAGS (\\Flagged)" % (number // 2 + 1, b"-" if number % 2 else b"+"))
        times.append(time.perf_counter() - began)
    client.close()
    return times
