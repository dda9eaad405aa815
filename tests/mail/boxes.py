"""Private instances of the real mail software on loopback: own configuration, own folders, own ports."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from holdfast.mail.commands import SystemCommands
from holdfast.mail.dovecot import Dovecot
from holdfast.mail.postfix import Postfix
from holdfast.mail.radicale import Radicale
from holdfast.mail.settings import DovecotSettings, PostfixSettings, ProbeSettings, RadicaleSettings

NO_SYSTEMD = Path("/nonexistent")
MAIL_UID = 5000
USER = "alice@example.org"
PASSWORD = "correct horse"
LOCATIONS = {"maildir": "maildir:~/Maildir", "sdbox": "sdbox:~/sdbox", "mdbox": "mdbox:~/mdbox"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def probe_settings(folder: Path) -> ProbeSettings:
    secret = folder / "probe-password"
    secret.write_text(PASSWORD + "\n")
    return ProbeSettings(user=USER, password_file=str(secret))


class DovecotBox:
    """A Dovecot of one mailbox format below *folder*."""

    def __init__(self, folder: Path, driver: str = "maildir", *, location: str = "", extra: str = "") -> None:
        self.folder = folder
        self.imap_port = free_port()
        self.lmtp_port = free_port()
        self.store = folder / "store"
        self.config = folder / "dovecot" / "dovecot.conf"
        self.config.parent.mkdir(parents=True)
        self.store.mkdir()
        os.chown(self.store, MAIL_UID, MAIL_UID)
        folder.chmod(0o755)
        users = self.config.parent / "users"
        users.write_text(f"{USER}:{{PLAIN}}{PASSWORD}\nbob@example.org:{{PLAIN}}{PASSWORD}\n")
        self.config.write_text(
            f"""
base_dir = {folder}/run
state_dir = {folder}/run/state
log_path = {folder}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = {location or LOCATIONS[driver]}
mail_home = {self.store}/%d/%n
mail_uid = {MAIL_UID}
mail_gid = {MAIL_UID}
passdb {{
  driver = passwd-file
  args = {users}
}}
userdb {{
  driver = static
  args = uid={MAIL_UID} gid={MAIL_UID}
}}
namespace inbox {{
  inbox = yes
}}
service imap-login {{
  inet_listener imap {{
    port = {self.imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {self.lmtp_port}
  }}
}}
{extra}
"""
        )
        self.service = self.build()

    def build(self, *, systemd: Path = NO_SYSTEMD) -> Dovecot:
        return Dovecot(
            DovecotSettings(config=str(self.config)),
            SystemCommands(),
            probe=probe_settings(self.folder),
            systemd=systemd,
        )


class PostfixBox:
    """A Postfix below *folder* that accepts for example.org and delivers nowhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "postfix"
        self.config.mkdir(parents=True)
        for name in ("queue", "data"):
            (folder / name).mkdir()
        shutil.chown(folder / "data", "postfix")
        folder.chmod(0o755)
        (self.config / "aliases").write_text("root: alice\n")
        (self.config / "virtual").write_text("postmaster@example.org alice@example.org\n")
        (self.config / "main.cf").write_text(
            f"""
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
myhostname = mail.example.org
inet_interfaces = 127.0.0.1
mydestination = example.org
local_recipient_maps =
alias_maps = hash:{self.config}/aliases
alias_database = hash:{self.config}/aliases
virtual_alias_maps = hash:$config_directory/virtual
smtpd_tls_cert_file = {folder}/elsewhere/cert.pem
"""
        )
        stock = Path("/etc/postfix/master.cf").read_text().splitlines()
        kept = [line for line in stock if not line.startswith(("#", " ", "smtp ")) and " inet " not in line]
        kept = [" ".join([*line.split()[:4], "n", *line.split()[5:]]) for line in kept if line.strip()]
        kept = [line for line in kept if " pipe" not in line]
        smtp = f"127.0.0.1:{self.port} inet n - n - - smtpd"
        (self.config / "master.cf").write_text("\n".join([smtp, "smtp unix - - n - - smtp", *kept]) + "\n")
        self.settings = PostfixSettings(config_directory=str(self.config), overrides=str(folder / "own.cf"))
        self.service = self.build()

    def build(self, *, systemd: Path = NO_SYSTEMD) -> Postfix:
        return Postfix(
            self.settings,
            SystemCommands(),
            state_directory=str(self.folder / "state"),
            probe=probe_settings(self.folder),
            systemd=systemd,
        )


class RadicaleBox:
    """A Radicale below *folder* with one account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.storage = folder / "collections"
        self.storage.mkdir(parents=True)
        (folder / "radicale").mkdir()
        self.config = folder / "radicale" / "config"
        users = folder / "radicale" / "users"
        users.write_text(f"{USER}:{PASSWORD}\n")
        self.config.write_text(
            f"[server]\nhosts = 127.0.0.1:{self.port}\n[auth]\ntype = htpasswd\nhtpasswd_filename = {users}\n"
            f"htpasswd_encryption = plain\ndelay = 0\n[storage]\nfilesystem_folder = {self.storage}\n"
        )
        self.service = Radicale(
            RadicaleSettings(config=str(self.config)),
            SystemCommands(),
            state_directory=str(folder / "state"),
            probe=probe_settings(folder),
            systemd=NO_SYSTEMD,
        )
