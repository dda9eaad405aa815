"""Real protocol transactions, spoken from one machine of a lab to another: what a client would see.

Every function makes its socket in the network namespace of *source*. All raise LabError with the server's words.
"""

from __future__ import annotations

import http.client
import imaplib
import smtplib
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import Account, LabError

PROBE_SECONDS_MAX: Final = 10.0
_FAILURES: Final = (OSError, EOFError, smtplib.SMTPException, imaplib.IMAP4.error, http.client.HTTPException)


def tls(certificate: Path) -> ssl.SSLContext:
    """Trusts the site's certificate and nothing else."""
    return ssl.create_default_context(cafile=certificate)


def connect(source: Machine, host: str, port: int, *, timeout: float = PROBE_SECONDS_MAX) -> socket.socket:
    """A TCP connection from *source* to address *host*."""
    try:
        with source.network():
            return socket.create_connection((host, port), timeout=timeout)
    except OSError as error:
        raise LabError(f"from {source.name} to {host} port {port}: {error}", retry=True) from error


def greeting(source: Machine, host: str, port: int) -> str:
    """The first line a server says (SMTP, LMTP, IMAP, ManageSieve)."""
    with connect(source, host, port) as connection:
        try:
            line = connection.makefile("rb").readline(4096)
        except OSError as error:
            raise LabError(f"{host} port {port} took the connection and said nothing: {error}", retry=True) from error
    if not line:
        raise LabError(f"{host} port {port} took the connection and closed it", retry=True)
    return line.decode(errors="replace").strip()


class _Imap(imaplib.IMAP4):
    """imaplib over a connection that is there already."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        super().__init__()

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._connection


def open_imap(
    source: Machine, host: str, account: Account, certificate: Path, name: str, *, port: int = 993
) -> imaplib.IMAP4:
    """A logged-in IMAP session over TLS, the certificate checked against *name*."""
    raw = connect(source, host, port)
    try:
        session = _Imap(tls(certificate).wrap_socket(raw, server_hostname=name))
        session.login(account.address, account.password)
    except _FAILURES as error:
        raw.close()
        raise LabError(f"IMAP on {host} as {account.address}: {error}", retry=True) from error
    return session


def imap(source: Machine, host: str, account: Account, certificate: Path, name: str) -> int:
    """Log in and select INBOX; how many messages it has."""
    session = open_imap(source, host, account, certificate, name)
    try:
        word, data = session.select("INBOX", readonly=True)
        if word != "OK" or data[0] is None:
            raise LabError(f"IMAP on {host}: SELECT INBOX: {word} {data!r}")
        return int(data[0])
    except _FAILURES as error:
        raise LabError(f"IMAP on {host}: {error}", retry=True) from error
    finally:
        session.shutdown()


class _Smtp(smtplib.SMTP):
    """smtplib from a machine of the lab; its host name is the client's word for itself."""

    def __init__(self, source: Machine, host: str, port: int) -> None:
        self._source = source
        super().__init__(host, port, local_hostname=source.name, timeout=PROBE_SECONDS_MAX)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return connect(self._source, host, port, timeout=timeout)


def smtp(source: Machine, host: str, port: int = 25) -> None:
    """Banner and EHLO."""
    try:
        with _Smtp(source, host, port) as session:
            code, text = session.ehlo()
            if code != 250:
                raise LabError(f"SMTP on {host} port {port}: EHLO: {code} {text!r}")
    except _FAILURES as error:
        raise LabError(f"SMTP on {host} port {port}: {error}", retry=True) from error


def send(
    source: Machine, host: str, recipients: Sequence[str], message: bytes, *, sender: str = "sender@elsewhere.test"
) -> None:
    """Send *message* by SMTP to port 25. On return the server has taken it for all *recipients*."""
    try:
        with _Smtp(source, host, 25) as session:
            refused = session.sendmail(sender, list(recipients), message)
    except _FAILURES as error:
        raise LabError(f"SMTP on {host}: {error}", retry=True) from error
    if refused:
        raise LabError(f"SMTP on {host} refused {refused}")


def submit(
    source: Machine,
    host: str,
    account: Account,
    recipients: Sequence[str],
    message: bytes,
    certificate: Path,
    name: str,
) -> None:
    """Send *message* by submission (RFC 6409): port 587, STARTTLS, AUTH."""
    try:
        with _Smtp(source, host, 587) as session:
            session._host = name  # type: ignore[attr-defined]  # the name starttls() checks the certificate against
            session.starttls(context=tls(certificate))
            session.login(account.address, account.password)
            session.sendmail(account.address, list(recipients), message)
    except _FAILURES as error:
        raise LabError(f"submission on {host}: {error}", retry=True) from error


class _Http(http.client.HTTPConnection):
    def __init__(self, connection: socket.socket, host: str) -> None:
        super().__init__(host)
        self._connection = connection

    def connect(self) -> None:
        self.sock = self._connection


def dav(
    source: Machine,
    host: str,
    account: Account | None,
    method: str,
    path: str,
    body: str = "",
    headers: Sequence[str] = (),
) -> tuple[int, str]:
    """One request to the CalDAV and CardDAV server: status and body. *headers* are ``Name: value``."""
    import base64

    asked = dict(header.split(": ", 1) for header in headers)
    if account is not None:
        pair = f"{account.address}:{account.password}".encode()
        asked["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    with connect(source, host, 5232) as raw:
        try:
            session = _Http(raw, host)
            session.request(method, path, body.encode(), asked)
            response = session.getresponse()
            return response.status, response.read().decode(errors="replace")
        except _FAILURES as error:
            raise LabError(f"{method} {path} on {host}: {error}", retry=True) from error


def caldav(source: Machine, host: str, account: Account) -> None:
    """PROPFIND on the account's own collection (RFC 4918 section 9.1)."""
    status, body = dav(source, host, account, "PROPFIND", f"/{account.address}/", headers=["Depth: 0"])
    if status != http.client.MULTI_STATUS:
        raise LabError(f"CalDAV on {host}: PROPFIND: {status} {body[:200]}", retry=True)
