"""A lab with all gates on: what stands in the configuration of Holdfast, Postfix and Dovecot for them."""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.drill.lab import mail_files
from holdfast.drill.lab.mailhost import MailSettings
from holdfast.drill.site import AGENT, ProtectedLab

CONFIGURATION: Final = """
[gate]
lmtp = "unix:/var/spool/postfix/private/holdfast-lmtp"
lmtp_server = "127.0.0.1:24"
milter = "unix:/var/spool/postfix/private/holdfast-milter"
imap = "unix:/run/holdfast/imap-gate"
sieve = "unix:/run/holdfast/sieve-gate"
dav = "0.0.0.0:5233"
"""
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


def switch_off(site: ProtectedLab, primary: str, standby: str) -> None:
    """As an administrator would: Postfix and Dovecot on the primary first, then the agents. Raises LabError."""
    main = site.lab.machine(primary)
    dovecot = main.path("/etc/dovecot/dovecot.conf")
    dovecot.write_text(dovecot.read_text().replace(mail_files.dovecot_gates(), ""))
    plain = MailSettings()
    lines = [f"virtual_transport=lmtp:{plain.deliver_to}", "smtpd_milters=", "non_smtpd_milters="]
    main.run(["postconf", "-e", *lines])
    main.run(["postfix", "reload"])
    site.settle(primary, standby)
    for name in (standby, primary):
        machine = site.lab.machine(name)
        path = machine.path("/etc/holdfast/holdfast.toml")
        text = path.read_text()
        assert CONFIGURATION.strip() in text, text
        path.write_text(text.replace(CONFIGURATION.strip(), ""))
        machine.stop_unit(AGENT.name)
        machine.start_unit(AGENT.name)
        site.wait_role(name, "primary" if name == primary else "standby")
    site.wait_for(primary, lambda facts: bool(facts["serving"]), "serving")
