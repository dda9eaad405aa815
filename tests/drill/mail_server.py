"""A private Postfix, Dovecot and Radicale on loopback, on free ports, in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.drill.workload.net import Endpoint
from holdfast.drill.workload.plan import Login, Service
from holdfast.mail.master_cf import processes

MAIL_ID = 5000
PASSWORD = "secret"
START_SECONDS = 20.0
QUEUE_SECONDS = 60.0
_QUEUE_ID = re.compile(r" postfix/[a-z/]+\[\d+\]: ([0-9A-Za-z]+): ")
_MESSAGE_ID = re.compile(_QUEUE_ID.pattern + r"message-id=<([^>]*)>")

DOVECOT = """
base_dir = {base}/run
log_path = {base}/dovecot.log
protocols = imap lmtp sieve
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
first_valid_uid = {uid}
mail_uid = {uid}
mail_gid = {uid}
mail_location = {location}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={uid} home={base}/mail/%u
}}
namespace inbox {{
  inbox = yes
}}
mail_max_userip_connections = 100
default_vsz_limit = 0
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
service imap-login {{
  service_count = 0
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service imap {{
  process_limit = 200
}}
service managesieve-login {{
  inet_listener sieve {{
    port = {sieve}
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
}}
protocol lmtp {{
  mail_plugins = sieve
  postmaster_address = postmaster@example.org
}}
protocol sieve {{
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
}}
"""

POSTFIX_MAIN = """
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = main.example.org
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
virtual_mailbox_domains = example.org
virtual_transport = lmtp:inet:127.0.0.1:{lmtp}
message_size_limit = 20480000
mailbox_size_limit = 0
maillog_file = {base}/postfix.log
maillog_file_prefixes = {base}
smtpd_peername_lookup = no
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
"""

POSTFIX_LISTENER = "127.0.0.1:{smtp} inet n - n - - smtpd\n"

RADICALE = """
[server]
hosts = 127.0.0.1:{dav}
[auth]
type = none
[rights]
type = authenticated
[storage]
filesystem_folder = {base}/dav
[logging]
level = warning
"""


class MailServer(msgspec.Struct):
    base: Path
    service: Service
    lmtp: Endpoint

    def accounts(self, count: int) -> tuple[Login, ...]:
        return tuple(Login(f"user{index:02d}@example.org", PASSWORD) for index in range(count))

    @property
    def probe(self) -> Login:
        return Login("probe@example.org", PASSWORD)

    def dovecot(self, *command: str) -> None:
        subprocess.run(["doveadm", "-c", str(self.base / "dovecot.conf"), *command], check=True, capture_output=True)

    def stop_dovecot(self) -> None:
        """Stop it, and wait until its master is gone: ``doveadm stop`` returns a little before."""
        pid_file = self.base / "run" / "master.pid"
        if not pid_file.exists():
            return
        master = int(pid_file.read_text())
        self.dovecot("stop")
        deadline = time.monotonic() + START_SECONDS
        while pid_file.exists() or Path(f"/proc/{master}").exists():
            if time.monotonic() > deadline:
                raise TimeoutError("Dovecot does not stop")
            time.sleep(0.01)

    def perhaps_delivered_twice(self) -> frozenset[str]:
        """Message-IDs of which Postfix says that Dovecot had all of the message and did not say what became of it.

        It sends those again; Dovecot may have taken them. In Postfix's words: "while sending end of data -- message may
        be sent more than once", or a 4xx "in reply to end of DATA command".
        """
        ids: dict[str, str] = {}
        found: set[str] = set()
        for line in (self.base / "postfix.log").read_text().splitlines():
            if named := _MESSAGE_ID.search(line):
                ids[named[1]] = named[2]
            elif "status=deferred" in line and "end of data" in line.lower() and (queued := _QUEUE_ID.search(line)):
                found.add(ids[queued[1]])
        return frozenset(found)

    def empty_queue(self) -> None:
        """Until Postfix has nothing left to deliver: what it still has comes into mailboxes that were looked at."""
        deadline = time.monotonic() + QUEUE_SECONDS
        while True:
            asked = subprocess.run(
                ["postqueue", "-c", str(self.base), "-j"], check=True, capture_output=True, text=True, timeout=20
            )
            if not asked.stdout:
                return
            assert time.monotonic() < deadline, asked.stdout
            subprocess.run(["postqueue", "-c", str(self.base), "-f"], check=True, timeout=20)
            time.sleep(0.2)

    def start_dovecot(self) -> None:
        daemon(self.base, "dovecot", "-c", str(self.base / "dovecot.conf"))
        for port in (self.service.imap.port, self.lmtp.port):
            wait_for_port(port)


def fit() -> str:
    """Why this machine cannot run the servers; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("dovecot", "postfix") if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def running(base: Path, location: str = "maildir:~/Maildir") -> Iterator[MailServer]:
    """Servers for as long as the block lasts."""
    smtp, imap, lmtp, sieve, dav = free_ports(5)
    words = {
        "base": base,
        "uid": MAIL_ID,
        "password": PASSWORD,
        "location": location,
        "smtp": smtp,
        "imap": imap,
        "lmtp": lmtp,
        "sieve": sieve,
        "dav": dav,
    }
    base.chmod(0o755)
    for folder in ("mail", "run", "queue", "data", "dav"):
        (base / folder).mkdir()
    os.chown(base / "mail", MAIL_ID, MAIL_ID)
    shutil.chown(base / "data", "postfix")
    (base / "dovecot.conf").write_text(DOVECOT.format(**words))
    (base / "main.cf").write_text(POSTFIX_MAIN.format(**words))
    (base / "master.cf").write_text(POSTFIX_LISTENER.format(**words) + processes(chroot=False))
    (base / "radicale.conf").write_text(RADICALE.format(**words))
    service = Service(
        Endpoint("127.0.0.1", smtp),
        Endpoint("127.0.0.1", imap),
        Endpoint("127.0.0.1", dav),
        Endpoint("127.0.0.1", sieve),
    )
    server = MailServer(base, service, Endpoint("127.0.0.1", lmtp))
    with contextlib.ExitStack() as stack:
        with (base / "radicale.log").open("wb") as log:
            radicale = subprocess.Popen(
                [sys.executable, "-m", "radicale", "--config", str(base / "radicale.conf")], stdout=log, stderr=log
            )
        stack.callback(radicale.wait)
        stack.callback(radicale.terminate)
        server.start_dovecot()
        stack.callback(server.stop_dovecot)
        daemon(base, "postfix", "-c", str(base), "start")
        stack.callback(subprocess.run, ["postfix", "-c", str(base), "stop"], check=True, capture_output=True)
        for port in (smtp, sieve, dav):
            wait_for_port(port)
        yield server


def daemon(base: Path, *command: str) -> None:
    """Run what leaves a daemon behind: it must not inherit a pipe of ours, or waiting for its end never ends."""
    with (base / "start.log").open("ab") as log:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=START_SECONDS)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
