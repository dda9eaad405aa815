"""A rehearsal of the mail software: started on a sample of the copy, asked as clients ask. Runs on a prepared stage.

The stage (``node.stage``) is a network of its own that leads nowhere, with everything read-only but what is thrown away
afterwards: ``/etc`` and the sampled accounts are copies, ``/run``, ``/var/log``, the mail queue and the like are empty.
So this module may write configuration where it stands.

*Logging in without anybody's password*: the rehearsal's own main file of Dovecot includes the copied one, and adds a
master user (https://doc.dovecot.org/2.3/configuration_manual/authentication/master_users/) whose password is made for
this one performance. It exists in the private ``/etc`` of the stage and nowhere else.

*What is changed in Postfix's configuration*, because what it names is not on the stage: milters, content filters,
policies and restrictions that ask others are left out, nothing is relayed, and a gate before Dovecot is stepped over.
Which addresses there are, aliases, transports and maps are the copied ones: the probe message goes their way.
"""

from __future__ import annotations

import asyncio
import base64
import configparser
import http.client
import os
import secrets
import smtplib
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3
from msgspec import Struct

from holdfast.errors import HoldfastError
from holdfast.mail.commands import SystemCommands
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.imap_exchange import bytes_of
from holdfast.mail.imap_session import ImapSession, session_command
from holdfast.mail.mailboxes import Format
from holdfast.mail.postfix import Postfix
from holdfast.mail.postfix_render import render
from holdfast.mail.probes import Account
from holdfast.mail.radicale import Radicale
from holdfast.mail.secrets import Secret, SecretKind
from holdfast.mail.settings import MailSettings, ProbeSettings
from holdfast.mail.site import MailSite
from holdfast.mail.stored import DboxMessage, Unreadable, dbox_message, over_the_wire, plain

MASTER: Final = "holdfast-rehearsal"
SEPARATOR: Final = "*"
STATE: Final = "/tmp/holdfast-rehearsal"
"""On the stage ``/tmp`` is empty memory."""
ANYBODY: Final = f"{STATE}/password"
"""For Radicale, which lets anybody in here."""
LOGS: Final = ("/var/log/holdfast-dovecot.log", "/var/log/holdfast-mail.log", f"{STATE}/mail/radicale.log")
LOG_LINES: Final = 3
DELIVERY_SECONDS: Final = 20.0
"""From Postfix's 250 to the mailbox; a fraction of a second on an idle machine."""
ANSWER_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.1


class Sampled(Struct, frozen=True):
    """One account on the stage. *directory*: its mail, absolute."""

    account: str
    format: Format
    directory: str


class Item(Struct, frozen=True):
    """One calendar object or address book card on the stage. *path*: below the server; *file*: where it stands."""

    user: str
    path: str
    file: str


class Play(Struct, frozen=True):
    """What is to be performed."""

    mail: MailSettings
    addresses: tuple[str, ...] = ()
    """The service addresses, with prefix lengths: where clients would come to."""
    accounts: tuple[Sampled, ...] = ()
    items: tuple[Item, ...] = ()
    gate: str = ""
    """What Postfix hands deliveries to (``[gate] lmtp``) ..."""
    behind_gate: str = ""
    """... and the LMTP server behind it, to which they go in a rehearsal."""
    imap_gate: bool = False
    """Whether Dovecot hands its IMAP clients over to a gate (``[gate] imap``), which a rehearsal has not."""


class Part(Struct, frozen=True):
    """One step: what was seen, or what was wrong."""

    name: str
    seconds: float
    words: str
    problem: str = ""


class Performance(Struct, frozen=True):
    """What came of it. *notes*: what could not be shown here, and is no fault of the copy."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    messages: int = 0
    """Fetched, and equal to the store's files."""

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f"{part.name}: {part.problem}" for part in self.parts if part.problem)


class Wrong(Exception):
    """Something is not as it must be; stays inside this module."""


class Company:
    """Performs a :class:`Play`, once."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._password = secrets.token_urlsafe(24)
        self._notes: list[str] = []
        self._parts: list[Part] = []
        self._messages = 0
        self._elsewhere: list[str] = []
        """By what accounts are looked up in a server that is not on the stage."""
        mail = play.mail
        self._dovecot_config = os.path.join(os.path.dirname(mail.dovecot.config), "holdfast-rehearsal.conf")
        self._site = MailSite(
            msgspec.structs.replace(
                mail,
                state_directory=STATE,
                probe=ProbeSettings(user=play.accounts[0].account, password_file=ANYBODY)
                if play.accounts
                else ProbeSettings(),
                dovecot=msgspec.structs.replace(mail.dovecot, config=self._dovecot_config),
                services=mail.services
                if mail.services is not None
                else tuple(MailSite(mail, SystemCommands()).services),
            ),
            SystemCommands(),
            systemd=Path(STATE) / "no-systemd",
        )

    @property
    def address(self) -> str:
        """Where clients would ask; everything is on the stage's loopback interface."""
        return self._play.addresses[0].partition("/")[0] if self._play.addresses else "127.0.0.1"

    async def perform(self) -> Performance:
        """Never raises HoldfastError: what goes wrong is in the answer, and what needs it is left out."""
        expected = {each.account: messages_of(each) for each in self._play.accounts}
        done = await self._part("prepare", self._prepare)
        done = done and await self._part("check", self._check)
        done = done and await self._part("start", self._start)
        if done:
            dovecot = self._site.services.get("dovecot")
            if self._elsewhere:
                asked = " and ".join(self._elsewhere)
                self._notes.append(
                    f"nobody logged in, nothing was fetched or delivered: {asked} ask a server elsewhere"
                )
            elif isinstance(dovecot, Dovecot):
                await self._part("login", lambda: self._log_in(dovecot))
                await self._part("fetch", lambda: asyncio.to_thread(self._fetch, expected))
            if "radicale" in self._site.services:
                await self._part("calendar", self._calendar)
            if "postfix" in self._site.services and not self._elsewhere:
                await self._part("delivery", self._deliver)
        return Performance(tuple(self._parts), tuple(self._notes), self._messages)

    async def _part(self, name: str, act: Callable[[], Awaitable[str]]) -> bool:
        began = time.monotonic()
        words, problem = "", ""
        try:
            words = await act()
        except Wrong as wrong:
            problem = str(wrong)
        except HoldfastError as error:
            problem = error.message
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem and (said := last_words()):
            problem += f" ({said})"
        self._parts.append(Part(name, time.monotonic() - began, words, problem))
        return not problem

    # -- before ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> str:
        Path(STATE).mkdir(parents=True, exist_ok=True)
        Path(ANYBODY).write_text(self._password)
        if "dovecot" in self._site.services:
            copied = MailSite(self._play.mail, SystemCommands()).services["dovecot"]
            assert isinstance(copied, Dovecot)
            syntax = (await copied.layout()).syntax
            main = os.path.basename(self._play.mail.dovecot.config)
            self._elsewhere = sorted({each.named_by for each in await copied.secrets() if _is_lookup(each)})
            Path(self._dovecot_config).write_text(
                dovecot_conf(main, syntax, self._password, imap_gate=self._play.imap_gate)
            )
        if "radicale" in self._site.services:
            path = Path(self._play.mail.radicale.config)
            path.write_text(radicale_conf(path.read_text()))
        done = await self._site.prepare()
        postfix = self._site.services.get("postfix")
        if isinstance(postfix, Postfix):
            found = await postfix.layout()
            main_cf = Path(found.config_directory) / "main.cf"
            lines = postfix_lines(found.settings, self._play.gate, self._play.behind_gate)
            # In place of what is there, and not after it: each setting given twice is a warning of each daemon, and at
            # their start postlogd, which warns too, can then wait for room in its own full socket, for ever.
            main_cf.write_bytes(render(main_cf.read_bytes(), {**postfix.own_values(), **lines}))
            _date_back(main_cf)
            left = sorted({key for key in _ASK_OTHERS if found.settings.get(key)})
            if left:
                self._notes.append(f"not rehearsed, because what they ask is not on the stage: {', '.join(left)}")
        return "; ".join(done)

    async def _check(self) -> str:
        results = await self._site.check()
        if errors := [f"{result.service}: {error}" for result in results for error in result.errors]:
            raise Wrong("; ".join(errors))
        return f"{' and '.join(result.service for result in results)} accept the rendered configuration"

    async def _start(self) -> str:
        await self._site.start()
        return f"{', '.join(self._site.services)} run"

    # -- mail ------------------------------------------------------------------------------------------------------

    async def _log_in(self, dovecot: Dovecot) -> str:
        if not self._play.accounts:
            self._notes.append("no account was found in the copy: nobody logged in, and nothing was fetched")
            return "nobody: no account is in the copy"
        words = []
        for each in self._play.accounts:
            account = Account(f"{each.account}{SEPARATOR}{MASTER}", self._password)
            result = await dovecot.log_in(self.address, account, alone=True)
            if not result.ok:
                raise Wrong(f"{each.account}: {result.words}")
            words.append(each.account)
        return ", ".join(words)

    def _session(self, account: str) -> ImapSession:
        return ImapSession(account, session_command(account, self._dovecot_config), answer_seconds=ANSWER_SECONDS)

    def _fetch(self, expected: dict[str, tuple[Counter[bytes], int]]) -> str:
        for each in self._play.accounts:
            wanted, unreadable = expected[each.account]
            found: Counter[bytes] = Counter()
            with self._session(each.account) as session:
                for folder in session.folders():
                    if session.examine(folder):
                        fetched = session.fetch("1:*", "(BODY.PEEK[])").values()
                        found.update(blake3(bytes_of(items, "BODY[]")).digest() for items in fetched)
            if unreadable:
                self._notes.append(f"{each.account}: {unreadable} stored messages can only be read by Dovecot itself")
            elif each.format is Format.MDBOX:  # its files hold a copied message once, and what was expunged still
                if strange := len(set(found) - set(wanted)):
                    raise Wrong(
                        f"{each.account}: {strange} of {sum(found.values())} messages are in no file of the store"
                    )
            elif missing := sum((wanted - found).values()):
                raise Wrong(
                    f"{each.account}: {missing} of {sum(wanted.values())} messages did not come as they are stored"
                )
            self._messages += sum((found & wanted).values())
        return f"{self._messages} messages of {len(self._play.accounts)} accounts, equal to the store's files"

    async def _deliver(self) -> str:
        postfix = self._site.services["postfix"]
        assert isinstance(postfix, Postfix)
        port = (await postfix.layout(fresh=False)).smtp_port()
        probe = self._play.mail.probe
        recipients = [(each.account, each.account) for each in self._play.accounts if "@" in each.account]
        recipients += [(probe.smtp_recipient, probe.user)] if probe.smtp_recipient and probe.user else []
        if port is None or not recipients or "dovecot" not in self._site.services:
            self._notes.append("no delivery was rehearsed: set [mail.probe] recipient and user")
            return "none"
        refused = []
        for recipient, account in recipients:
            name = f"{secrets.token_hex(8)}@holdfast-rehearsal.invalid"
            try:
                await asyncio.to_thread(self._send, port, recipient, name)
            except smtplib.SMTPException as error:
                refused.append(f"{recipient}: {error}")
                continue
            seconds = await asyncio.to_thread(self._arrives, account, name)
            return f"a probe for {recipient} was in the mailbox after {seconds:.2f} s"
        raise Wrong(
            f"Postfix takes no message for {'; '.join(refused)} (set [mail.probe] recipient, if these are no addresses)"
        )

    def _send(self, port: int, recipient: str, name: str) -> None:
        text = f"Message-ID: <{name}>\r\nSubject: Holdfast rehearsal\r\nTo: {recipient}\r\n\r\nA rehearsal.\r\n"
        with smtplib.SMTP(self.address, port, "holdfast.invalid", ANSWER_SECONDS) as talk:
            talk.sendmail("", [recipient], text)

    def _arrives(self, account: str, name: str) -> float:
        began = time.monotonic()
        while (took := time.monotonic() - began) < DELIVERY_SECONDS:
            with self._session(account) as session:
                for folder in session.folders():
                    session.examine(folder)
                    found = session.command(f'UID SEARCH HEADER Message-ID "{name}"').untagged
                    if any(len(words) > 1 for words in found if words and words[0] == b"SEARCH"):
                        return took
            time.sleep(_LOOK_SECONDS)
        raise Wrong(
            f"Postfix took the probe, and it was not in the mailbox of {account} {DELIVERY_SECONDS:.0f} s later"
        )

    # -- calendars -------------------------------------------------------------------------------------------------

    async def _calendar(self) -> str:
        radicale = self._site.services["radicale"]
        assert isinstance(radicale, Radicale)
        result = await radicale.probe(self.address)
        if not result.ok:
            raise Wrong(result.words)
        found = radicale.layout()
        for item in self._play.items:
            body = await asyncio.to_thread(_get, self.address, found.hosts[0][1], item, tls=found.tls)
            if _lines(body) != _lines(Path(item.file).read_bytes()):
                raise Wrong(f"{item.path} did not come as it is stored")
        return f"{len(self._play.items)} items equal to their files; {result.words}"


_ASK_OTHERS: Final = ("smtpd_milters", "non_smtpd_milters", "content_filter")
_RESTRICTIONS: Final = ("client", "helo", "sender", "recipient", "data", "end_of_data", "etrn")


def _is_lookup(secret: Secret) -> bool:
    databases = ("dovecot passdb", "dovecot userdb")
    return secret.kind is SecretKind.CREDENTIALS and secret.named_by.startswith(databases)


def dovecot_conf(main: str, syntax: str, password: str, *, imap_gate: bool = False) -> str:
    """The rehearsal's main file, beside the copied one called *main*."""
    secret = f"password = {password}" if syntax == "2.4" else f"args = password={password}"
    opening = "passdb static {" if syntax == "2.4" else "passdb {\n  driver = static"
    return (
        f"!include {main}\n"
        f"log_path = {LOGS[0]}\ninfo_log_path =\ndebug_log_path =\n"
        f"auth_master_user_separator = {SEPARATOR}\n"
        f"{opening}\n  master = yes\n  {secret}\n}}\n"
        + ("service imap {\n  executable = imap\n}\n" if imap_gate else "")
    )


def radicale_conf(copied: str) -> str:
    """The copied configuration with anybody let in: there is nobody on the stage but us."""
    parser = configparser.RawConfigParser()
    parser.read_string(copied)
    if not parser.has_section("auth"):
        parser.add_section("auth")
    parser.set("auth", "type", "none")
    lines = []
    for section in parser.sections():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in parser.items(section)), ""]
    return "\n".join(lines)


def postfix_lines(settings: dict[str, str], gate: str, behind_gate: str) -> dict[str, str]:
    """What stands in the stage's main.cf beside this machine's own values, in place of what was copied."""
    lines = dict.fromkeys(_ASK_OTHERS, "")
    lines |= {f"smtpd_{each}_restrictions": "" for each in _RESTRICTIONS}
    lines |= {
        "smtpd_relay_restrictions": "reject_unauth_destination",
        "smtpd_peername_lookup": "no",
        "maillog_file": LOGS[1],
        "default_transport": "error:rehearsal",
        "relay_transport": "error:rehearsal",
        "relayhost": "",
        "disable_dns_lookups": "yes",
    }
    if gate:
        for key in ("virtual_transport", "mailbox_transport", "local_transport"):
            if gate.removeprefix("unix:") in settings.get(key, "") or _same_port(gate, settings.get(key, "")):
                lines[key] = f"lmtp:{_next_hop(behind_gate)}"
    return lines


def _same_port(gate: str, transport: str) -> bool:
    return not gate.startswith("unix:") and gate.rpartition(":")[2] == transport.rpartition(":")[2]


def _next_hop(server: str) -> str:
    """``unix:/path`` or ``HOST:PORT`` as lmtp(8) wants it."""
    if server.startswith("unix:"):
        return server
    host, _, port = server.rpartition(":")
    return f"inet:[{host.strip('[]')}]:{port}"


def messages_of(sampled: Sampled) -> tuple[Counter[bytes], int]:
    """Digests of the messages in an account's files, as IMAP gives them, and how many can only be read by Dovecot."""
    found: Counter[bytes] = Counter()
    unreadable = 0
    for stored in _stored(Path(sampled.directory), sampled.format):
        content = plain(stored)
        if isinstance(content, Unreadable):
            unreadable += 1
        else:
            found[blake3(over_the_wire(content)).digest()] += 1
    return found, unreadable


def _stored(directory: Path, kind: Format) -> Iterator[bytes]:
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        if kind is Format.MAILDIR:
            if path.parent.name in ("cur", "new"):
                yield path.read_bytes()
        elif path.name.startswith(("u.", "m.")):
            data, at = path.read_bytes(), 0
            while at < len(data) and isinstance(message := dbox_message(data, at), DboxMessage):
                yield message.stored
                at = message.end


def last_words() -> str:
    """What the programs wrote last of errors, for whoever has to mend it."""
    said: list[str] = []
    for path in LOGS:
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        bad = [line for line in lines if any(word in line for word in ("rror", "fatal", "panic", "warning"))]
        said += bad[-LOG_LINES:]
    return " | ".join(said)


def _date_back(path: Path) -> None:
    """Postfix reads a main.cf younger than two seconds again and again (see ``postfix``)."""
    then = time.time() - 10
    os.utime(path, (then, then))


def _get(address: str, port: int, item: Item, *, tls: bool) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(address, port, timeout=ANSWER_SECONDS, context=context)
        if tls
        else http.client.HTTPConnection(address, port, timeout=ANSWER_SECONDS)
    )
    try:
        login = base64.b64encode(f"{item.user}:x".encode()).decode()
        connection.request("GET", item.path, headers={"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise Wrong(f"GET {item.path}: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Wrong(f"GET {item.path}: {answer.status} {answer.reason}")
    return body


def _lines(text: bytes) -> list[bytes]:
    return text.replace(b"\r\n", b"\n").strip().split(b"\n")
