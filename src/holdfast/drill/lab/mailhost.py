"""Mail software on a machine of the lab: configured as a Debian administrator would, started, stopped and asked
directly.

For tests and benchmarks without Holdfast, and for the machine a demonstration begins with. A standby gets its
configuration from Holdfast; only :func:`prepare` is done there by hand, as on a real one. Needs machines with an
``/etc`` of their own (the namespaces backend).

===========  ==============================  ======================================
program      ports                           data
===========  ==============================  ======================================
postfix      25, 587                         /var/spool/postfix
dovecot      143, 993, 24 (LMTP), 4190       /var/vmail/DOMAIN/USER
radicale     5232                            /var/lib/radicale/collections
===========  ==============================  ======================================
"""

from __future__ import annotations

import datetime
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from holdfast.drill.lab import certificate, mail_files, probes, tools
from holdfast.drill.lab.installation import fqdn, numbers
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.mail_files import MailFormat, Site
from holdfast.drill.lab.network import INTERFACE
from holdfast.drill.lab.spec import LabError
from holdfast.errors import EnvironmentUnfit

Service = Literal["dovecot", "postfix", "radicale"]
SERVICES: Final[tuple[Service, ...]] = ("dovecot", "radicale", "postfix")
"""In the order they are started: Postfix last, when what it delivers to is there."""
READY_SECONDS_MAX: Final = 30.0
REPLICATOR_SECONDS_MAX: Final = 120.0
REPLICATOR_POLL_SECONDS: Final = 1.0
"""A run takes less; asked again during a run it begins anew."""
STOP_SECONDS_MAX: Final = 15.0
CONFIG_PATHS: Final = (
    "/etc/postfix",
    "/etc/dovecot",
    "/etc/radicale",
    "/etc/aliases",
    "/etc/ssl/certs",
    "/etc/ssl/private",
)
"""What the tree ``config`` of a site like this protects (of ``/etc/ssl`` the two files named after the service)."""
PROGRAMS: Final = {"postfix": "postfix", "dovecot": "dovecot-imapd dovecot-lmtpd dovecot-sieve dovecot-managesieved"}
"""Debian packages."""
POSTFIX_TRUST_SECONDS: Final = 10.0
"""A configuration file of this age is believed to be whole at the first reading."""
LOCKS: Final = ("*.lock", "*.newlock")
RADICALE_PID: Final = "/run/radicale.pid"


class MailSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``plaintext``: allow logins without TLS, for benchmarks that are not to measure TLS."""

    format: MailFormat = "maildir"
    plaintext: bool = False
    deliver_to: str = mail_files.DOVECOT_LMTP
    """Where Postfix delivers (the next hop of lmtp(8)): Dovecot, or a gate before it."""
    milter: str = ""
    """Whom Postfix asks before it accepts a message (smtpd_milters)."""
    dovecot_more: str = ""
    """Lines at the end of dovecot.conf."""
    services: tuple[Service, ...] = SERVICES


def site(lab: Lab, settings: MailSettings) -> Site:
    """The lab's site with *settings*."""
    state = lab.state
    return Site(
        domain=state.domain,
        service_name=state.service_name,
        accounts=tuple(state.users()),
        format=settings.format,
        plaintext=settings.plaintext,
        deliver_to=settings.deliver_to,
        milter=settings.milter,
    )


def site_certificate(lab: Lab) -> Path:
    """The certificate clients are to trust, on the host; made at the first call, and gone with the lab."""
    return _certificate_and_key(lab)[0]


def configure(machine: Machine, settings: MailSettings | None = None) -> Site:
    """Write the whole configuration of mail software on *machine*, which is on. May be repeated. Raises LabError."""
    settings = settings or MailSettings()
    _check_programs(settings)
    made = site(machine.lab, settings)
    prepare(machine)
    hashes = _hashes(made, machine.lab.state.seed)
    public, private = _certificate_and_key(machine.lab)
    put(machine, made.certificate, public.read_text())
    put(machine, made.key, private.read_text(), mode=0o600)
    if "dovecot" in settings.services:
        put(machine, "/etc/dovecot/dovecot.conf", mail_files.dovecot_conf(made) + settings.dovecot_more)
        put(machine, "/etc/dovecot/users", mail_files.dovecot_users(made, hashes), mode=0o640, group="dovecot")
    if "radicale" in settings.services:
        put(machine, "/etc/radicale/config", mail_files.radicale_config())
        put(machine, "/etc/radicale/users", mail_files.radicale_users(made, hashes), mode=0o640, group="vmail")
    if "postfix" in settings.services:
        own = mail_files.postfix_overrides(fqdn(machine.lab.state, machine.state)).splitlines()[1]
        put(machine, "/etc/postfix/main.cf", f"{mail_files.main_cf(made)}\n# This machine's own:\n{own}\n")
        put(machine, "/etc/postfix/master.cf", mail_files.master_cf())
        put(machine, "/etc/postfix/vmailbox", mail_files.vmailbox(made))
        put(machine, "/etc/postfix/virtual", mail_files.virtual(made))
        machine.run(["postmap", "/etc/postfix/vmailbox", "/etc/postfix/virtual"])
        if not machine.path("/etc/aliases.db").exists():
            machine.run(["newaliases"])
    machine.sync()
    return made


def prepare(machine: Machine) -> None:
    """What every machine of a site needs of its own, a standby too: the overrides that are never copied.

    Raises LabError.
    """
    if machine.lab.state.backend != "namespaces":
        raise EnvironmentUnfit(
            "mail software needs a machine with an /etc of its own", hint="This lab is made of mere processes."
        )
    name = fqdn(machine.lab.state, machine.state)
    put(machine, "/etc/holdfast/overrides/postfix.cf", mail_files.postfix_overrides(name))
    put(machine, "/etc/holdfast/overrides/dovecot.conf", mail_files.dovecot_overrides(name))
    if not machine.path("/var/log/mail.log").exists():
        # After a power cut postsuper renames queue files, and logs that as the user postfix before postlogd runs.
        put(machine, "/var/log/mail.log", "", mode=0o640, owner="postfix", group="adm")
    machine.sync()


def replicator(first: Machine, second: Machine, seconds_max: float = REPLICATOR_SECONDS_MAX) -> None:
    """Have Dovecot's own replicator keep *first* and *second* equal, both ways: the thing to compare with.

    Both are configured already. On return Dovecot runs on both, and every account has been brought over once. Raises
    LabError.
    """
    secret = mail_files.salt(f"{first.lab.state.seed}/doveadm").replace("/", "x")
    for machine, peer in ((first, second), (second, first)):
        stop(machine, ["dovecot"])
        put(machine, "/etc/dovecot/local.conf", mail_files.dovecot_replicator(peer.state.ipv4, secret), mode=0o600)
    # Every INBOX is made on one side only. Made on both in one second they have the same UIDVALIDITY and different
    # GUIDs, and the replicator never gets over that (measured).
    start(first, ["dovecot"])
    first.run(["doveadm", "mailbox", "status", "-A", "guid", "INBOX"])
    start(second, ["dovecot"])
    for machine in (first, second):
        _settle_replicator(machine, seconds_max)


def _settle_replicator(machine: Machine, seconds_max: float) -> None:
    """Measured: an account whose first run fails (the other server is not up yet) is tried again only after five
    minutes, others may not be tried at all. Here they are asked again.
    """
    left: list[str] = []

    def settled() -> bool:
        rows = [row.split() for row in machine.run(["doveadm", "replicator", "status", "*"]).stdout.splitlines()[1:]]
        left[:] = [row[0] for row in rows if row[4] == "-" or row[5] == "y"]
        for address in left:
            machine.run(["doveadm", "replicator", "replicate", "-f", address])
        return bool(rows) and not left

    try:
        tools.wait_until(settled, seconds_max, "Dovecot's replicator to settle", REPLICATOR_POLL_SECONDS)
    except LabError as error:
        raise LabError(error.message, hint=f"Accounts not copied yet: {', '.join(left[:5])}") from error


def start(machine: Machine, services: Sequence[Service] = SERVICES) -> dict[str, float]:
    """Start *services* and wait until each answers in its protocol. Seconds each took. Raises LabError."""
    took: dict[str, float] = {}
    for service in services:
        began = time.monotonic()
        if not is_running(machine, service):
            if service == "dovecot":
                remove_stale_locks(machine)
            machine.run(start_command(machine, service))
        wait_ready(machine, service)
        took[service] = time.monotonic() - began
    return took


def remove_stale_locks(machine: Machine) -> None:
    """Remove lock files a power cut has left; Dovecot is not running, so nobody holds them. Raises LabError.

    Measured: with ``/var/lib/dovecot/instances.lock`` left behind Dovecot starts 10 s late; a
    ``dovecot-uidlist.lock`` that reached the disk with the message it was held for keeps each SELECT of that mailbox
    waiting for half a minute.
    """
    tests = [part for pattern in LOCKS for part in ("-o", "-name", pattern)][1:]
    machine.run(["find", "/var/vmail", "/var/lib/dovecot", "-type", "f", "(", *tests, ")", "-delete"])


def stop(machine: Machine, services: Sequence[Service] = SERVICES) -> None:
    """Stop *services*, the last started first, and wait until they are gone. Raises LabError."""
    for service in reversed(services):
        if is_running(machine, service):
            machine.run(stop_command(service))
            tools.wait_until(lambda: not is_running(machine, service), STOP_SECONDS_MAX, f"{service} to end")  # noqa: B023


def start_command(machine: Machine, service: Service) -> list[str]:
    """The command that starts *service* in the background."""
    if service == "dovecot":
        return ["dovecot"]
    if service == "postfix":
        return ["postfix", "start"]
    radicale = machine.run(["sh", "-c", "command -v radicale"]).stdout.strip()
    options = [
        "--start",
        "--oknodo",
        "--background",
        "--make-pidfile",
        "--pidfile",
        RADICALE_PID,
        "--chuid",
        "vmail:vmail",
    ]
    daemon = ["--startas", radicale, "--", "--config", "/etc/radicale/config"]
    return ["start-stop-daemon", *options, "--chdir", "/", "--output", "/var/log/radicale.log", *daemon]


def stop_command(service: Service) -> list[str]:
    """The command that stops *service*."""
    if service == "dovecot":
        return ["doveadm", "stop"]
    if service == "postfix":
        return ["postfix", "stop"]
    return ["start-stop-daemon", "--stop", "--oknodo", "--retry", "5", "--remove-pidfile", "--pidfile", RADICALE_PID]


def is_running(machine: Machine, service: Service) -> bool:
    """By its pid file, as the programs themselves do."""
    files = {
        "dovecot": "/run/dovecot/master.pid",
        "postfix": "/var/spool/postfix/pid/master.pid",
        "radicale": RADICALE_PID,
    }
    script = f'read pid <{files[service]} && test -d /proc/"$pid"'
    return machine.run(["sh", "-c", script], check=False).returncode == 0


def wait_ready(machine: Machine, service: Service, seconds_max: float = READY_SECONDS_MAX) -> None:
    """Until *service* answers on the machine itself, on all its ports. Raises LabError with the last failure."""
    certificate_file = site_certificate(machine.lab)
    state = machine.lab.state
    here = "127.0.0.1"

    def dovecot() -> None:
        users = state.users()
        for port in (24, 143, 4190):
            probes.greeting(machine, here, port)
        if users:
            # Log in, but select nothing: that would make an INBOX (see replicator()).
            probes.open_imap(machine, here, users[0], certificate_file, state.service_name).shutdown()

    def postfix() -> None:
        for port in (25, 587):
            probes.smtp(machine, here, port)

    def radicale() -> None:
        probes.dav(machine, here, None, "OPTIONS", "/")

    _retry({"dovecot": dovecot, "postfix": postfix, "radicale": radicale}[service], seconds_max)


def hold_service_address(machine: Machine) -> None:
    """Give the service address to *machine* (the agent's job; here for work without one). Raises LabError."""
    _service_address(machine, "replace")


def release_service_address(machine: Machine) -> None:
    """Take the service address from *machine*, if it has it. Raises LabError."""
    held = machine.run(["ip", "-o", "address", "show", "dev", INTERFACE]).stdout
    if f" {machine.lab.state.service_ipv4}/" in held:
        _service_address(machine, "delete")


def put(machine: Machine, path: str, text: str, *, mode: int = 0o644, owner: str = "root", group: str = "root") -> None:
    """Write a file in *machine*, dated ten seconds back. Users and groups are the machine's. Raises LabError.

    Measured: while main.cf is younger than two seconds, every Postfix program reads it again each 0.3 s until it is
    older.
    """
    target = machine.path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    temporary.write_text(text)
    users, groups = numbers(machine.path("/etc/passwd")), numbers(machine.path("/etc/group"))
    os.chown(temporary, users[owner], groups[group])
    temporary.chmod(mode)
    written = time.time() - POSTFIX_TRUST_SECONDS
    os.utime(temporary, (written, written))
    temporary.rename(target)


def _service_address(machine: Machine, verb: str) -> None:
    state = machine.lab.state
    machine.run(["ip", "address", verb, f"{state.service_ipv4}/32", "dev", INTERFACE])
    if state.service_ipv6 is not None:
        # Not preferred: what this machine itself sends keeps its own address (RFC 6724 section 5, rule 3).
        options = ["nodad", "preferred_lft", "0"] if verb == "replace" else []
        machine.run(["ip", "address", verb, f"{state.service_ipv6}/128", "dev", INTERFACE, *options])


def _certificate_and_key(lab: Lab) -> tuple[Path, Path]:
    state = lab.state
    addresses = [address for address in (state.service_ipv4, state.service_ipv6) if address]
    return certificate.make(lab.folder, state.service_name, addresses, datetime.datetime.now(datetime.UTC))


def _hashes(made: Site, seed: str) -> list[str]:
    """SHA512-CRYPT of every password, by openssl-passwd(1)."""
    if not made.accounts:
        return []
    passwords = "".join(f"{account.password}\n" for account in made.accounts)
    return tools.run_tool(["openssl", "passwd", "-6", "-salt", mail_files.salt(seed), "-stdin"], text=passwords).split()


def _check_programs(settings: MailSettings) -> None:
    missing = [
        package for program, package in PROGRAMS.items() if program in settings.services and not _installed(program)
    ]
    if missing:
        raise EnvironmentUnfit("mail software is not installed on this host", hint=f"apt install {' '.join(missing)}")


def _installed(program: str) -> bool:
    return shutil.which(program, path="/usr/sbin:/usr/bin") is not None


def _retry(probe: Callable[[], None], seconds_max: float) -> None:
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            probe()
            return
        except LabError:
            if time.monotonic() > deadline:
                raise
        time.sleep(tools.POLL_SECONDS)
