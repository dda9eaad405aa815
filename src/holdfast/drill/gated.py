"""A lab with all gates on and a relay: what stands in the configuration of Holdfast, Postfix and Dovecot for them."""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.drill.lab import mail_files
from holdfast.drill.lab.mailhost import MailSettings

CONFIGURATION: Final = """
[gate]
lmtp = "unix:/var/spool/postfix/private/holdfast-lmtp"
lmtp_server = "127.0.0.1:24"
milter = "unix:/var/spool/postfix/private/holdfast-milter"
imap = "unix:/run/holdfast/imap-gate"
sieve = "unix:/run/holdfast/sieve-gate"
dav = "0.0.0.0:5233"
"""
RELAYS: Final = {"relay": "front"}
"""The machine that takes mail, and how."""
DAV_PORT: Final = 5233
"""The gate's: clients must not reach Radicale past it."""


def gated(mail: MailSettings) -> MailSettings:
    """*mail*, with Postfix and Dovecot told of the gates."""
    return msgspec.structs.replace(
        mail,
        deliver_to="unix:private/holdfast-lmtp",
        milter="unix:private/holdfast-milter",
        dovecot_more=mail_files.dovecot_gates(),
    )
