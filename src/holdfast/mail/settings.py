"""The ``[mail]`` table of ``/etc/holdfast/holdfast.toml``. Everything has a default; most is discovered."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from holdfast.errors import ConfigurationError
from holdfast.mail.outputs import OutputSpec
from holdfast.mail.probes import Account
from holdfast.trees.spec import TreeSpec

ServiceName = Literal["dovecot", "postfix", "radicale"]


class ProbeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The account that probes log in to. Without it, probes stop at the greeting, and say so."""

    user: str = ""
    password_file: str = ""
    """A file with the password in its first line, readable by root alone."""
    recipient: str = ""
    """Address offered to Postfix by RCPT TO; nothing is sent to it. Default: *user*, when it is an address."""

    def account(self) -> Account | None:
        """Raises ConfigurationError when the password file cannot be read."""
        if not self.user:
            return None
        try:
            with open(self.password_file, encoding="utf-8") as file:
                return Account(self.user, file.readline().rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"mail.probe.password_file {self.password_file!r} cannot be read: {error}",
                hint="Put the password of the probe account in its first line; mode 0600, owner root.",
            ) from error

    @property
    def smtp_recipient(self) -> str:
        return self.recipient or (self.user if "@" in self.user else "")


class DovecotSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    config: str = "/etc/dovecot/dovecot.conf"
    units: tuple[str, ...] = ("dovecot.service",)
    overrides: str = "/etc/holdfast/overrides/dovecot.conf"
    """This machine's own settings. ``!include_try`` it in the last line of dovecot.conf; it is never copied."""


class PostfixSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    config_directory: str = "/etc/postfix"
    units: tuple[str, ...] = ("postfix.service",)
    """Where this is a wrapper, as on Debian 12, ``postfix@-.service`` behind it is started and stopped too."""
    overrides: str = "/etc/holdfast/overrides/postfix.cf"
    """This machine's own ``key = value`` lines (``inet_interfaces``, ``smtp_bind_address``, ...), put into main.cf."""
    protect_queue: bool = False
    """Copy the queue directory as the tree ``queue``. A relay protects queued mail better; see docs/systems."""


class RadicaleSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    config: str = "/etc/radicale/config"
    units: tuple[str, ...] = ("radicale.service",)
    command: tuple[str, ...] = ()
    """How to start it where there is no systemd. Default: the ``radicale`` found on PATH, with this configuration."""
    user: str = ""
    """The user it runs as when started by *command*. Default: the owner of the storage folder."""


class MailSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[mail]``."""

    services: tuple[ServiceName, ...] | None = None
    """Which services this site has. Default: those whose programs and configuration are there."""
    store_paths: tuple[str, ...] = ()
    """Directories that hold the mail store, instead of what discovery finds."""
    store_exclude: tuple[str, ...] = ()
    """More patterns to leave out of the store, for example search indexes (``fts-flatcurve/``)."""
    copy_cache: bool = False
    """Copy dovecot.index.cache too: it saves re-reading headers after a takeover, and costs what the docs say."""
    config_paths: tuple[str, ...] = ()
    """More files and directories of configuration, absolute."""
    config_exclude: tuple[str, ...] = ()
    """Absolute paths of configuration that are not copied."""
    trees: tuple[TreeSpec, ...] = ()
    """Further trees of the site's own."""
    outputs: tuple[OutputSpec, ...] = ()
    software_packages: tuple[str, ...] = ()
    """More packages whose versions matter to mail: patterns with ``*``."""
    state_directory: str = "/var/lib/holdfast"
    probe: ProbeSettings = ProbeSettings()
    dovecot: DovecotSettings = DovecotSettings()
    postfix: PostfixSettings = PostfixSettings()
    radicale: RadicaleSettings = RadicaleSettings()
