"""Which files are secrets: without them a restored server signs, serves, decrypts or lets in nobody.

Read out of configurations as the programs see them; pure, but for :func:`of_filters`, which reads the filters' files.
Whether a file is there, and in which tree, is the inventory's question (``inventory``).
"""

from __future__ import annotations

import glob
import os.path
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from holdfast.mail.doveconf import Section
from holdfast.mail.dovecot_layout import passwd_files
from holdfast.mail.files import read_or_none


class SecretKind(StrEnum):
    """What it is for; the words stand in reports and in the inventory's file."""

    DKIM = "DKIM key"
    TLS = "TLS key"
    MAIL_CRYPT = "mail_crypt key"
    PASSWORDS = "password database"
    CREDENTIALS = "credentials"
    """What this server logs in to other servers with: relays, databases, directories."""
    OWN = "Holdfast's own key"


LOSS: Final = {
    SecretKind.DKIM: "outgoing mail is not signed",
    SecretKind.TLS: "clients are served without their certificate, or not at all",
    SecretKind.MAIL_CRYPT: "stored mail cannot be decrypted, ever",
    SecretKind.PASSWORDS: "nobody can log in",
    SecretKind.CREDENTIALS: "this server cannot log in there",
    SecretKind.OWN: "the machine cannot rejoin its site: `holdfast init` makes a new one",
}
"""What it means to be without."""


class Secret(Struct, frozen=True, order=True):
    """A file that a configuration names."""

    kind: SecretKind
    path: str
    """Absolute, as configured; may be a symbolic link."""
    named_by: str
    """Program and setting."""


_TABLE: Final = re.compile(r"\b[a-z]+:(/[^\s,{}()]+)")
_TABLE_LOGIN: Final = re.compile(r"\b(?:mysql|pgsql|ldap):(/[^\s,{}()]+)")
_ABSOLUTE: Final = re.compile(r"(?:^|[\s<=])(/[^\s;:,\"%]+)")
_DOVECOT_TLS: Final = re.compile(r"^ssl_(server_|client_)?(alt_)?key(_file)?$")
_LOGIN_DRIVERS: Final = frozenset({"sql", "ldap", "dict", "oauth2", "lua"})
_SYSTEM_DRIVERS: Final = frozenset({"passwd", "pam", "shadow", "bsdauth"})
SHADOW: Final = "/etc/shadow"
_OPENDKIM_KEY: Final = re.compile(r"^\s*KeyFile\s+(/\S+)", re.MULTILINE)
_OPENDKIM_TABLE: Final = re.compile(r"^\s*KeyTable\s+(?:(?:re)?file:)?(/\S+)", re.MULTILINE)
_KEYTABLE_ROW: Final = re.compile(r"^[^#\s]\S*\s+[^\s:]+:[^\s:]+:(/\S+)", re.MULTILINE)
_RSPAMD_PATH: Final = re.compile(r"^\s*path\s*=\s*\"?(/[^\"\s;]+)", re.MULTILINE)
_RSPAMD_FILES: Final = ("local.d/dkim_signing.conf", "override.d/dkim_signing.conf", "local.d/arc.conf")


def of_postfix(settings: Mapping[str, str]) -> tuple[Secret, ...]:
    """*settings*: as ``postconf -n -x`` and ``-P -x`` give them."""
    found: set[Secret] = set()
    for key, value in settings.items():
        name = key.rpartition("/")[2]
        by = f"postfix {key}"
        if re.search(r"_tls_(e?c?d?s?a?)?key_file$|_tls_eckey_file$|_tls_dkey_file$|_tls_chain_files$", name):
            found |= {Secret(SecretKind.TLS, path, by) for path in _paths([value])}
        elif name.endswith("_tls_cert_file") and name.replace("_cert_", "_key_") not in settings:
            # postconf(5): without a key file of its own, the key stands in the certificate's.
            found |= {Secret(SecretKind.TLS, path, by) for path in _paths([value])}
        elif name.endswith("_sasl_password_maps"):
            found |= {Secret(SecretKind.CREDENTIALS, path, by) for path in _TABLE.findall(value)}
        else:
            found |= {Secret(SecretKind.CREDENTIALS, path, by) for path in _TABLE_LOGIN.findall(value)}
    return tuple(sorted(found))


def of_dovecot(root: Section) -> tuple[Secret, ...]:
    """*root*: the parsed output of ``doveconf -n``."""
    found = set(_dovecot_settings(root))
    found |= {Secret(SecretKind.PASSWORDS, path, "dovecot passdb or userdb") for path in passwd_files(root)}
    for section in root.of("passdb"):
        driver = section.value("driver") or section.name
        if driver in _LOGIN_DRIVERS:
            paths = _ABSOLUTE.findall(section.value("args"))
            found |= {Secret(SecretKind.CREDENTIALS, path, f"dovecot passdb {driver}") for path in paths}
        elif driver in _SYSTEM_DRIVERS:
            found.add(Secret(SecretKind.PASSWORDS, SHADOW, f"dovecot passdb {driver}"))
    for section in root.of("userdb"):
        if (driver := section.value("driver") or section.name) in _LOGIN_DRIVERS:
            paths = _ABSOLUTE.findall(section.value("args"))
            found |= {Secret(SecretKind.CREDENTIALS, path, f"dovecot userdb {driver}") for path in paths}
    return tuple(sorted(found))


def _dovecot_settings(root: Section) -> Iterator[Secret]:
    """2.3 writes ``ssl_key = </path`` and ``mail_crypt_global_private_key = </path``, 2.4 ``..._file = /path``."""
    for section in root.all():
        prefixed = section.kind.startswith("ssl_")
        for key, value in section.settings.items():
            full = f"{section.kind}_{key}" if prefixed and not key.startswith("ssl_") else key
            paths = _paths([value.lstrip("<")])
            if _DOVECOT_TLS.match(full):
                yield from (Secret(SecretKind.TLS, path, f"dovecot {full}") for path in paths)
            elif "crypt" in f"{section.kind}_{key}" and "private_key" in f"{section.kind}_{key}":
                yield from (Secret(SecretKind.MAIL_CRYPT, path, f"dovecot {key}") for path in paths)
            elif section.kind == "dict":
                yield from (
                    Secret(SecretKind.CREDENTIALS, path, f"dovecot dict {key}") for path in _TABLE_LOGIN.findall(value)
                )


def of_filters(etc: Path) -> tuple[Secret, ...]:
    """DKIM keys of OpenDKIM (opendkim.conf(5): KeyFile, KeyTable) and rspamd (modules dkim_signing, arc: path)."""
    found = {
        Secret(SecretKind.DKIM, path, "opendkim KeyFile") for path in _OPENDKIM_KEY.findall(_text(etc, "opendkim.conf"))
    }
    for table in _OPENDKIM_TABLE.findall(_text(etc, "opendkim.conf")):
        rows = _KEYTABLE_ROW.findall(_text(Path("/"), table.lstrip("/")))
        found |= {Secret(SecretKind.DKIM, path, f"opendkim KeyTable {table}") for path in rows}
    for name in _RSPAMD_FILES:
        for template in _RSPAMD_PATH.findall(_text(etc / "rspamd", name)):
            # "$domain.$selector.key": the keys there are; none is one that is missing.
            paths = sorted(glob.glob(re.sub(r"\$\w+", "*", template))) or [template]
            found |= {Secret(SecretKind.DKIM, path, f"rspamd {name}") for path in paths}
    return tuple(sorted(found))


def _text(folder: Path, name: str) -> str:
    content = read_or_none(folder / name)
    return "" if content is None else content.decode("utf-8", "replace")


def _paths(values: Iterable[str]) -> set[str]:
    return {os.path.normpath(path) for value in values for path in re.split(r"[\s,]+", value) if path.startswith("/")}
