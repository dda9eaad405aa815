"""The configuration of a mail server, as a Debian administrator would write it: these files are also our worked
example.

Postfix takes mail on 25 and 587 and hands it to Dovecot by LMTP; Dovecot keeps it and serves IMAP and ManageSieve to
virtual users; Radicale keeps calendars and address books. Every function is pure and gives one file's text. What
differs from machine to machine is not in these files but in ``/etc/holdfast/overrides/``, so they are the same, byte
for byte, on every machine of the site.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from holdfast.drill.lab.spec import Account
from holdfast.mail.master_cf import COLUMNS, processes

MailFormat = Literal["maildir", "sdbox", "mdbox"]
DOVEADM_PORT: Final = 12345
"""The port in Dovecot's replication guide."""


DOVECOT_LMTP: Final = "inet:[127.0.0.1]:24"


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What the files are written from. ``service_name`` is the name clients use and the certificate is for."""

    domain: str
    service_name: str
    accounts: tuple[Account, ...]
    format: MailFormat = "maildir"
    plaintext: bool = False
    """Allow logins without TLS: for benchmarks that are not to measure TLS."""
    deliver_to: str = DOVECOT_LMTP
    """The next hop of Postfix's lmtp(8)."""
    milter: str = ""

    @property
    def certificate(self) -> str:
        return f"/etc/ssl/certs/{self.service_name}.pem"

    @property
    def key(self) -> str:
        return f"/etc/ssl/private/{self.service_name}.key"


def dovecot_conf(site: Site) -> str:
    """``/etc/dovecot/dovecot.conf`` (Dovecot 2.3)."""
    folder = {"maildir": "Maildir", "sdbox": "sdbox", "mdbox": "mdbox"}[site.format]
    return f"""\
# /etc/dovecot/dovecot.conf -- IMAP, LMTP and ManageSieve for virtual users. See dovecot.conf(5).
# Check with: doveconf -n

!include_try /usr/share/dovecot/protocols.d/*.protocol
listen = *, ::

# No syslog daemon here; with one, leave this line out.
log_path = /var/log/dovecot.log

# --- Where mail lies -------------------------------------------------------------------------------------
# Everything of one user, mail, indexes, Sieve scripts and subscriptions, is below their home.
mail_location = {site.format}:~/{folder}
mail_uid = vmail
mail_gid = vmail
first_valid_uid = 5000
last_valid_uid = 5000
mail_max_userip_connections = 50

namespace inbox {{
  inbox = yes
  separator = /
  mailbox Drafts {{
    auto = subscribe
    special_use = \\Drafts
  }}
  mailbox Junk {{
    auto = subscribe
    special_use = \\Junk
  }}
  mailbox Sent {{
    auto = subscribe
    special_use = \\Sent
  }}
  mailbox Trash {{
    auto = subscribe
    special_use = \\Trash
  }}
}}

# --- Who may log in ----------------------------------------------------------------------------------------
auth_mechanisms = plain login
disable_plaintext_auth = {"no" if site.plaintext else "yes"}

passdb {{
  driver = passwd-file
  args = scheme=SHA512-CRYPT username_format=%u /etc/dovecot/users
}}

userdb {{
  driver = passwd-file
  args = username_format=%u /etc/dovecot/users
  default_fields = uid=vmail gid=vmail home=/var/vmail/%d/%n
}}

# --- TLS -----------------------------------------------------------------------------------------------------
ssl = yes
ssl_cert = <{site.certificate}
ssl_key = <{site.key}
ssl_min_protocol = TLSv1.2

# --- Services --------------------------------------------------------------------------------------------------
service imap-login {{
  inet_listener imap {{
    port = 143
  }}
  inet_listener imaps {{
    port = 993
    ssl = yes
  }}
}}

# Postfix delivers here. On a server with its feet in the Internet, keep it to 127.0.0.1.
service lmtp {{
  inet_listener lmtp {{
    address = *, ::
    port = 24
  }}
}}

service managesieve-login {{
  inet_listener sieve {{
    port = 4190
  }}
}}

# Postfix asks here whether a password is right (SASL).
service auth {{
  unix_listener /var/spool/postfix/private/auth {{
    mode = 0660
    user = postfix
    group = postfix
  }}
}}

# The administrator's additions; before the protocols, so that plugins named there count for them too.
!include_try local.conf

# --- Protocols ----------------------------------------------------------------------------------------------------
protocol lmtp {{
  postmaster_address = postmaster@{site.domain}
  mail_plugins = $mail_plugins sieve
}}

plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
}}

# Settings of this machine only, never copied to another.
!include_try /etc/holdfast/overrides/dovecot.conf
"""


def dovecot_gates(imap: str = "/run/holdfast/imap-gate", sieve: str = "/run/holdfast/sieve-gate") -> str:
    """``/etc/dovecot/local.conf``: every IMAP and ManageSieve client passes the gate behind its login.

    *imap*, *sieve*: the gates' sockets.
    """
    return f"""\
# Holdfast's gates: who has logged in is handed over to them, as to a post-login script.
service imap {{
  executable = imap {imap}
}}
service managesieve {{
  executable = managesieve {sieve}
}}
"""


def dovecot_replicator(peer: str, secret: str) -> str:
    """``/etc/dovecot/local.conf``: Dovecot's own replication (dsync over TCP) to *peer*. Dovecot 2.3 only."""
    return f"""\
# Every change is sent to the other server by Dovecot's replicator (doc.dovecot.org/2.3: "Replication with dsync").
mail_plugins = $mail_plugins notify replication

service aggregator {{
  fifo_listener replication-notify-fifo {{
    user = vmail
    mode = 0600
  }}
  unix_listener replication-notify {{
    user = vmail
    mode = 0600
  }}
}}

service replicator {{
  process_min_avail = 1
  unix_listener replicator-doveadm {{
    user = vmail
    mode = 0600
  }}
}}

service doveadm {{
  inet_listener {{
    port = {DOVEADM_PORT}
  }}
}}
doveadm_port = {DOVEADM_PORT}
doveadm_password = {secret}

plugin {{
  mail_replica = tcp:{peer}:{DOVEADM_PORT}
}}
"""


def dovecot_users(site: Site, hashes: Sequence[str]) -> str:
    """``/etc/dovecot/users``, in passwd(5) form; uid, gid and home come from dovecot.conf."""
    rows = zip(site.accounts, hashes, strict=True)
    return "".join(f"{account.address}:{{SHA512-CRYPT}}{hashed}::::::\n" for account, hashed in rows)


def main_cf(site: Site) -> str:
    """``/etc/postfix/main.cf`` (Postfix 3.7). myhostname is each machine's own: see :func:`postfix_overrides`."""
    return f"""\
# /etc/postfix/main.cf -- takes mail for {site.domain} and gives it to Dovecot. See postconf(5).
# Check with: postfix check

compatibility_level = 3.6
smtpd_banner = $myhostname ESMTP $mail_name (Debian/GNU)
biff = no
append_dot_mydomain = no
readme_directory = no

myorigin = {site.domain}
mydestination = $myhostname, localhost.$mydomain, localhost
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
inet_interfaces = all
inet_protocols = all
relayhost =
recipient_delimiter = +
message_size_limit = 52428800
mailbox_size_limit = 0
alias_maps = hash:/etc/aliases
alias_database = hash:/etc/aliases

# No syslog daemon here; with one, leave this line out.
maillog_file = /var/log/mail.log

# Mailboxes are Dovecot's; what is not listed is refused at RCPT TO.
virtual_mailbox_domains = {site.domain}
virtual_mailbox_maps = hash:/etc/postfix/vmailbox
virtual_alias_maps = hash:/etc/postfix/virtual
virtual_transport = lmtp:{site.deliver_to}

smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated reject_unauth_destination
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtpd_tls_cert_file = {site.certificate}
smtpd_tls_key_file = {site.key}
smtpd_tls_security_level = may
smtpd_tls_auth_only = {"no" if site.plaintext else "yes"}
smtp_tls_security_level = may
smtp_tls_CAfile = /etc/ssl/certs/ca-certificates.crt
{_milters(site.milter)}"""


def _milters(milter: str) -> str:
    if not milter:
        return ""
    return f"""
# A message is accepted when Holdfast has a copy of it on a second machine; else its sender tries again.
smtpd_milters = {milter}
non_smtpd_milters = $smtpd_milters
milter_default_action = tempfail
enable_long_queue_ids = yes
smtputf8_autodetect_classes = verify
"""


def master_cf() -> str:
    """``/etc/postfix/master.cf``: Debian's, with the submission service switched on."""
    head = "# /etc/postfix/master.cf -- Postfix's processes. See master(5).\n"
    listening = """\
smtp      inet  n       -       y       -       -       smtpd
submission inet n       -       y       -       -       smtpd
  -o syslog_name=postfix/submission
  -o smtpd_tls_security_level=encrypt
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_client_restrictions=permit_sasl_authenticated,reject
  -o milter_macro_daemon_name=ORIGINATING
"""
    return head + COLUMNS + listening + processes()


def vmailbox(site: Site) -> str:
    """``/etc/postfix/vmailbox``: the addresses there are (the right side means nothing: Dovecot decides)."""
    return "".join(f"{account.address} -\n" for account in site.accounts)


def virtual(site: Site) -> str:
    """``/etc/postfix/virtual``: aliases (RFC 2142 wants postmaster and abuse)."""
    if not site.accounts:
        return ""
    return "".join(f"{name}@{site.domain} {site.accounts[0].address}\n" for name in ("postmaster", "abuse"))


def postfix_overrides(hostname: str) -> str:
    """``/etc/holdfast/overrides/postfix.cf``: this machine's own settings, put into main.cf on this machine only."""
    return f"# What is this machine's own in /etc/postfix/main.cf.\nmyhostname = {hostname}\n"


def dovecot_overrides(hostname: str) -> str:
    """``/etc/holdfast/overrides/dovecot.conf``: this machine's own settings, included by dovecot.conf."""
    return f"# What is this machine's own in /etc/dovecot/dovecot.conf.\nhostname = {hostname}\n"


def radicale_config() -> str:
    """``/etc/radicale/config``."""
    return """\
# /etc/radicale/config -- CalDAV and CardDAV. See radicale.org.
# Plain HTTP: put a web server with TLS before it where it faces the Internet.

[server]
hosts = 0.0.0.0:5232, [::]:5232
max_connections = 100

[auth]
type = htpasswd
htpasswd_filename = /etc/radicale/users
htpasswd_encryption = sha512
cache_logins = True
delay = 0

[rights]
type = owner_only

[storage]
filesystem_folder = /var/lib/radicale/collections

[logging]
level = warning
"""


def radicale_users(site: Site, hashes: Sequence[str]) -> str:
    """``/etc/radicale/users``, as htpasswd(1) writes it."""
    return "".join(f"{account.address}:{hashed}\n" for account, hashed in zip(site.accounts, hashes, strict=True))


def salt(seed: str) -> str:
    """16 characters for SHA512-CRYPT that follow from *seed*, so that a configuration made twice is the same."""
    digest = hashlib.blake2b(seed.encode(), digest_size=12, person=b"holdfast-salt").digest()
    return base64.b64encode(digest, altchars=b"./").decode()
