"""Probes: small SMTP, IMAP and CalDAV clients that do one real transaction and say how long it took.

Certificates are not verified here: the probe goes to an address, the certificate is for a name; whether it is valid is
a question of its own. Passwords go out only over TLS or to a loopback address.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from holdfast.mail.port import ProbeResult

PROBE_SECONDS_MAX: Final = 5.0
LINE_BYTES_MAX: Final = 64 << 10
"""RFC 5321 allows 512 bytes a reply line, IMAP servers send a few KB in CAPABILITY; 64 KB is nobody's answer."""
LINES_MAX: Final = 1000


class Account(Struct, frozen=True):
    """A mailbox that exists for probing."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Account({self.user!r})"


class ProbeStopped(Exception):
    """The transaction failed at a step; the text says which, and what was answered. Stays inside this module."""


class _Talk:
    """One connection, line by line."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.secure = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self, *, tls: bool) -> None:
        context = _unverified() if tls else None
        try:
            self._reader, self._writer = await asyncio.open_connection(
                self.address, self.port, ssl=context, limit=LINE_BYTES_MAX
            )
        except OSError as error:
            raise ProbeStopped(f"connect to port {self.port}: {error.strerror or error}") from error
        self.secure = self.secure or tls

    async def start_tls(self) -> None:
        try:
            await self._writer.start_tls(_unverified())
        except (OSError, ssl.SSLError) as error:
            raise ProbeStopped(f"TLS on port {self.port}: {error}") from error
        self.secure = True

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def line(self, step: str) -> str:
        try:
            raw = await self._reader.readline()
        except ValueError as error:
            raise ProbeStopped(f"{step}: a line longer than {LINE_BYTES_MAX} bytes") from error
        except OSError as error:
            raise ProbeStopped(f"{step}: {error.strerror or error}") from error
        if not raw.endswith(b"\n"):
            raise ProbeStopped(f"{step}: the server closed the connection")
        return raw.decode("utf-8", "replace").rstrip("\r\n")

    def close(self) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _probe(
    service: str, address: str, port: int, transaction: Callable[[_Talk], Awaitable[str]], seconds_max: float
) -> ProbeResult:
    began = time.monotonic()
    talk = _Talk(address, port)
    try:
        async with asyncio.timeout(seconds_max):
            words = await transaction(talk)
        ok = True
    except ProbeStopped as stopped:
        ok, words = False, str(stopped)
    except TimeoutError:
        ok, words = False, f"no answer on port {port} within {seconds_max:.1f} s"
    finally:
        talk.close()
    return ProbeResult(service, address, ok, time.monotonic() - began, words)


async def smtp(
    address: str, port: int, *, recipient: str = "", name: str = "postfix", seconds_max: float = PROBE_SECONDS_MAX
) -> ProbeResult:
    """Banner, EHLO, and with a *recipient* MAIL FROM:<> and RCPT TO, taken back by RSET (RFC 5321, 4.1.1)."""

    async def transaction(talk: _Talk) -> str:
        await talk.open(tls=False)
        banner = await _smtp_reply(talk, "banner", "220")
        await _smtp_command(talk, "EHLO holdfast.invalid", "250")
        words = f"{banner[4:]}: EHLO answered"
        if recipient:
            await _smtp_command(talk, "MAIL FROM:<>", "250")
            await _smtp_command(talk, f"RCPT TO:<{recipient}>", "250")
            await _smtp_command(talk, "RSET", "250")
            words += f", {recipient} accepted"
        talk.write(b"QUIT\r\n")
        return words

    if any(c in recipient for c in "\r\n<>"):
        return ProbeResult(name, address, False, 0.0, f"probe recipient {recipient!r} is no address")
    return await _probe(name, address, port, transaction, seconds_max)


async def _smtp_command(talk: _Talk, command: str, wanted: str) -> str:
    talk.write(command.encode() + b"\r\n")
    return await _smtp_reply(talk, command.split(":")[0], wanted)


async def _smtp_reply(talk: _Talk, step: str, wanted: str) -> str:
    for _ in range(LINES_MAX):
        line = await talk.line(step)
        if line[3:4] != "-":
            if line[:3] != wanted:
                raise ProbeStopped(f"{step}: {line}")
            return line
    raise ProbeStopped(f"{step}: an answer without end")


async def imap(
    address: str,
    port: int,
    *,
    account: Account | None = None,
    tls: bool = False,
    name: str = "dovecot",
    seconds_max: float = PROBE_SECONDS_MAX,
    alone: bool = False,
) -> ProbeResult:
    """Greeting, and with an *account* LOGIN and SELECT INBOX (RFC 9051); STARTTLS first where needed and offered.

    *alone*: nobody else is on this network, so TLS is tried where it is offered, and not asked for where it is not.
    """

    async def transaction(talk: _Talk) -> str:
        await talk.open(tls=tls)
        greeting = await talk.line("greeting")
        if not greeting.startswith("* OK"):
            raise ProbeStopped(f"greeting: {greeting}")
        capabilities = (await _imap_command(talk, "CAPABILITY", "a"))[0].upper().split()
        if account is None:
            await _imap_command(talk, "LOGOUT", "z")
            return "greeting and CAPABILITY; no probe account is configured, so no login was tried"
        if (alone or not talk.secure or "LOGINDISABLED" in capabilities) and "STARTTLS" in capabilities:
            await _imap_command(talk, "STARTTLS", "b")
            await talk.start_tls()
        if not talk.secure and not alone:
            raise ProbeStopped("login: not tried, because the server offers no TLS on this port")
        await _imap_login(talk, account)
        lines = await _imap_command(talk, "SELECT INBOX", "d")
        exists = next((line.split()[1] for line in lines if line.upper().endswith(" EXISTS")), "?")
        talk.write(b"z LOGOUT\r\n")
        return f"{account.user} logged in, INBOX selected, {exists} messages"

    return await _probe(name, address, port, transaction, seconds_max)


async def _imap_login(talk: _Talk, account: Account) -> None:
    """By literals (LITERAL+, RFC 7888, is not assumed), so any user name and password can be sent."""
    user, password = account.user.encode(), account.password.encode()
    talk.write(b"c LOGIN {%d}\r\n" % len(user))
    for value in (user + b" {%d}\r\n" % len(password), password + b"\r\n"):
        line = await talk.line("login")
        while line.startswith("* "):
            line = await talk.line("login")
        if not line.startswith("+"):
            raise ProbeStopped(f"login of {account.user}: {line}")
        talk.write(value)
    await _imap_answer(talk, f"login of {account.user}", "c")


async def _imap_command(talk: _Talk, command: str, tag: str) -> list[str]:
    talk.write(f"{tag} {command}\r\n".encode())
    return await _imap_answer(talk, command, tag)


async def _imap_answer(talk: _Talk, step: str, tag: str) -> list[str]:
    """The untagged lines before the tagged OK."""
    lines: list[str] = []
    while len(lines) < LINES_MAX:
        line = await talk.line(step)
        if line.startswith(tag + " "):
            if not line.upper().startswith(f"{tag.upper()} OK"):
                raise ProbeStopped(f"{step}: {line}")
            return lines or [line]
        lines.append(line)
    raise ProbeStopped(f"{step}: an answer without end")


async def caldav(
    address: str,
    port: int,
    *,
    account: Account | None = None,
    path: str = "/",
    tls: bool = False,
    name: str = "radicale",
    seconds_max: float = PROBE_SECONDS_MAX,
) -> ProbeResult:
    """PROPFIND of *path*, depth 0 (RFC 4918, 9.1), with an *account* by Basic authentication; 207 is the good answer.

    Without an account, or without TLS to send its password through, being asked for one (401) shows that the service
    is there.
    """

    async def transaction(talk: _Talk) -> str:
        await talk.open(tls=tls)
        body = b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop><current-user-principal/></prop></propfind>'
        host = f"[{address}]" if ":" in address else address
        head = [f"PROPFIND {path} HTTP/1.1", f"Host: {host}:{port}", "Depth: 0", "Connection: close"]
        head += ["Content-Type: application/xml; charset=utf-8", f"Content-Length: {len(body)}"]
        shown = account if talk.secure else None
        if shown is not None:
            secret = base64.b64encode(f"{shown.user}:{shown.password}".encode()).decode()
            head.append(f"Authorization: Basic {secret}")
        talk.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        status = await talk.line("PROPFIND")
        code = status.split(" ")[1] if status.startswith("HTTP/") and " " in status else ""
        if code == "207":
            return f"PROPFIND {path} answered" + (f" to {shown.user}" if shown else "")
        if code == "401" and shown is None:
            why = "no probe account is configured" if account is None else "none was sent, because this port has no TLS"
            return f"PROPFIND asked for a login; {why}"
        raise ProbeStopped(f"PROPFIND {path}: {status}")

    return await _probe(name, address, port, transaction, seconds_max)


async def accepts(address: str, port: int, *, seconds_max: float) -> bool:
    """Whether a connection is accepted within *seconds_max*; tries again until then."""
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return True
