"""The configuration of a relay's Postfix, whole: ``main.cf`` and ``master.cf``. Pure: from settings to text.

Written by `holdfast relay configure`. Each setting is in postconf(5); why it has its value stands beside it, because an
administrator reads the file first.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from holdfast.gate.serve import Place
from holdfast.gate.tables import KIND
from holdfast.mail.master_cf import COLUMNS, processes
from holdfast.node.settings import Settings

QUEUE: Final = "/var/spool/postfix/"
TABLES: Final = "/etc/postfix/holdfast"
STRAIGHT: Final = f"unix:{QUEUE}private/holdfast-straight"
"""Where the relay's Postfix hands over what goes straight into the primary's gate."""
RETRY_SECONDS: Final = (30, 300)
"""First and longest pause between two tries to hand a message on; when the primary is heard again, it is told at once.
Postfix's own are 300 and 4000."""
HAND_ON_SECONDS: Final = {"connect": 10, "helo": 30, "mail": 30, "rcpt": 30, "data_init": 30, "data_done": 60}
"""How long an answer of the primary is waited for. A machine that loses its power in the middle of a conversation ends
none: what waits for its answer would lie here for Postfix's 300 s, or 600 s after the message. RFC 5321, 4.5.3.2,
asks for so much, lest messages come twice; here the second copy has the first one's delivery id and goes no further.
Not less: a scanner of the primary's may take its time."""


def main_cf(settings: Settings, hostname: str) -> str:
    relay = settings.relay
    certificate = relay.certificate or "/etc/holdfast/tls/machine.pem"
    key = relay.key or "/etc/holdfast/tls/machine.key"
    return f"""\
# /etc/postfix/main.cf -- the relay of site {settings.site}: takes mail in, keeps it safe, hands it on. See postconf(5).
# Written by `holdfast relay configure` from /etc/holdfast/holdfast.toml; check with: postfix check

compatibility_level = 3.6
myhostname = {hostname}
myorigin = $myhostname
smtpd_banner = $myhostname ESMTP $mail_name
biff = no
append_dot_mydomain = no
readme_directory = no
inet_interfaces = all
inet_protocols = all
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128

# No mailboxes and no aliases here: everything is handed on.
mydestination =
local_recipient_maps =
local_transport = error:5.1.1 this machine has no mailboxes
alias_maps =
alias_database =

# --- For whom ----------------------------------------------------------------------------------------------------
# The tables are made by the agent, from the primary's list: who is not in it is refused at RCPT TO.
relay_domains = {KIND}:{TABLES}/domains
relay_recipient_maps = {KIND}:{TABLES}/recipients
# {_mode_words(relay.mode)}
smtpd_client_restrictions = check_policy_service unix:{_inside(relay.policy)}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = reject_unlisted_recipient, check_recipient_access {KIND}:{TABLES}/unlisted
# Where recipients cannot be listed, the primary is asked; while it is away, what it said before counts for a month.
unverified_recipient_reject_code = 550
address_verify_positive_expire_time = 31d
address_verify_negative_refresh_time = 1h
# The two below are the primary's: the agent sets them with the list. What it would not take would go back.
recipient_delimiter =
message_size_limit = 52428800

# --- Accepted means: on two machines --------------------------------------------------------------------------------
# The answer to a message waits for its copy in the log. No log, no agent: 451. No room, here or there: 452.
smtpd_milters = unix:{_inside(relay.milter)}
non_smtpd_milters = $smtpd_milters
milter_default_action = tempfail
milter_protocol = 6
# What another machine has taken over is thrown out by its queue id: no id may come a second time.
enable_long_queue_ids = yes
# What this machine itself sends back to senders has a copy, too.
internal_mail_filter_classes = bounce
# Room that is kept free: two of the largest messages.
queue_minfree = 125829120
smtpd_soft_error_limit = 10
smtpd_hard_error_limit = 20

# --- Handing on -----------------------------------------------------------------------------------------------------
# Several: one after the other is tried.
relay_transport = relay:{", ".join(hand_on_to(settings))}
# Mailboxes for which the primary's Postfix has nothing to do go straight into its gate (relay.straight_port).
transport_maps = {KIND}:{TABLES}/straight
minimal_backoff_time = {RETRY_SECONDS[0]}s
maximal_backoff_time = {RETRY_SECONDS[1]}s
queue_run_delay = {RETRY_SECONDS[0]}s
maximal_queue_lifetime = {relay.hold_days}d
bounce_queue_lifetime = {relay.hold_days}d
delay_warning_time = 0h

# --- TLS -----------------------------------------------------------------------------------------------------------
smtpd_tls_security_level = may
smtpd_tls_cert_file = {certificate}
smtpd_tls_key_file = {key}
smtpd_tls_mandatory_protocols = >=TLSv1.2
smtpd_tls_loglevel = 1
smtp_tls_security_level = may
smtp_tls_CAfile = /etc/ssl/certs/ca-certificates.crt
smtp_tls_loglevel = 1
# Many messages over one connection: without it each costs a TLS handshake here and on the primary. Needs tlsproxy(8).
smtp_tls_connection_reuse = yes
"""


def _mode_words(mode: str) -> str:
    if mode == "front":
        return "All mail from outside comes through here. Before the first list has come: 450."
    return "Backup MX: 450 while the primary serves, or while the others do not say that it does not."


def _inside(place: str) -> str:
    """A socket's path as a chrooted Postfix sees it."""
    return Place.parse(place).path.removeprefix(QUEUE)


def hand_on_to(settings: Settings) -> tuple[str, ...]:
    """Next hops, as in transport(5)."""
    if settings.relay.hand_on_to:
        return settings.relay.hand_on_to
    found = []
    for text in settings.service.addresses:
        address = ipaddress.ip_interface(text).ip
        found.append(f"[{address}]:25" if address.version == 4 else f"[ipv6:{address}]:25")
    return tuple(found)


def straight_to(settings: Settings) -> tuple[str, ...]:
    """Where the primary's gate takes mail from relays; empty: nowhere."""
    port = settings.relay.straight_port
    addresses = [ipaddress.ip_interface(text).ip for text in settings.service.addresses]
    return tuple(f"[{one}]:{port}" if one.version == 6 else f"{one}:{port}" for one in addresses) if port else ()


def master_cf() -> str:
    about = "Postfix's processes on a relay. See master(5). Written by `holdfast relay configure`."
    smtpd = "smtp      inet  n       -       y       -       -       smtpd\n"
    tlsproxy = "tlsproxy  unix  -       -       y       -       0       tlsproxy\n"
    patience = {f"smtp_{step}_timeout": f"{seconds}s" for step, seconds in HAND_ON_SECONDS.items()}
    patient = {name.replace("smtp_", "lmtp_").replace("helo", "lhlo"): value for name, value in patience.items()}
    services = processes(without=("virtual",), options={"relay": patience, "lmtp": patient})
    return f"# /etc/postfix/master.cf -- {about}\n" + COLUMNS + smtpd + tlsproxy + services
