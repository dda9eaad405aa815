"""Where a Dovecot keeps what: read out of its parsed configuration, without touching a disk or a process.

Sources: doveconf's output (2.3: ``mail_location``, ``args``, ``plugin``; 2.4: ``mail_path``, ``fields`` and so on),
and the text of passwd-files. A path may hold variables (``%d``, ``%{user | domain}``) and stand on the home (``~``).
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from holdfast.mail.doveconf import Section, truth

_KEYED: Final = re.compile(r"([A-Za-z_]+)=((?:%\{[^}]*\}|\S)*)")
_ABSOLUTE: Final = re.compile(r"(?:^|[\s<:=;])(/(?:%\{[^}]*\}|[^\s;:,\"%]|%[A-Za-z0-9])+)")
_TLS_FILE: Final = re.compile(r"^(ssl_|ssl_server_|ssl_client_)?(alt_)?(cert|key|ca|dh)(_file)?$")
_NAMES_FILES: Final = re.compile(
    r"(^|_)(args|sieve.*|acl.*|.*dict|quota.*|passwd_file_path|trash.*|config_file|config_path|uris|path)$"
)
_OWN_SECTIONS: Final = frozenset({"service", "unix_listener", "fifo_listener", "inet_listener", "mailbox", "namespace"})
_NOT_DATA: Final = ("/usr", "/bin", "/sbin", "/lib", "/proc", "/dev", "/run", "/var/run", "/sys", "/tmp")
_LISTENERS: Final = {"imap": (("imap-login", "imap", 143, False), ("imap-login", "imaps", 993, True))}


class Location(Struct, frozen=True):
    """One place of mail. Paths may hold variables; empty where the setting is not given."""

    driver: str
    path: str
    inbox: str = ""
    index: str = ""
    control: str = ""
    alternative: str = ""

    def paths(self) -> tuple[str, ...]:
        return tuple(p for p in (self.path, self.inbox, self.index, self.control, self.alternative) if p)


class Listener(Struct, frozen=True):
    service: str
    name: str
    port: int
    tls: bool


class Layout(Struct, frozen=True):
    """What :func:`layout` found."""

    syntax: str
    """``2.3`` or ``2.4``."""
    homes: tuple[str, ...]
    """Templates of home directories, the first that applies first."""
    locations: tuple[Location, ...]
    roots: tuple[str, ...]
    """Absolute directories that together hold all mail; none below another."""
    config_paths: tuple[str, ...]
    tls_files: tuple[str, ...]
    passwd_files: tuple[str, ...]
    listeners: tuple[Listener, ...]
    base_directory: str
    state_directory: str
    library_directory: str
    system_users: bool
    warnings: tuple[str, ...]
    past_gates: tuple[str, ...] = ()
    """One sentence for each protocol by which people change something past Holdfast's gates, where IMAP passes them."""

    @property
    def drivers(self) -> frozenset[str]:
        return frozenset(location.driver for location in self.locations if location.driver)


def layout(root: Section, passwd_texts: Mapping[str, str] | None = None) -> Layout:
    """*root*: the parsed output of ``doveconf -n`` and of ``doveconf protocols base_dir state_dir libexec_dir``.

    *passwd_texts*: contents of :func:`passwd_files`, by path; homes of accounts are read from them.
    """
    syntax = "2.4" if root.value("dovecot_config_version") else "2.3"
    locations = tuple(dict.fromkeys(_locations(root, syntax)))
    homes = tuple(dict.fromkeys(_homes(root)))
    account_homes = [home for text in (passwd_texts or {}).values() for home in homes_in(text)]
    system_users = any(_driver(s) == "passwd" for s in root.of("userdb"))
    warnings: list[str] = []
    if not locations:
        warnings.append("no mail location is set: Dovecot looks for ~/Maildir, /var/mail and ~/mail by itself")
        locations = (Location("", "~/Maildir", inbox="/var/mail/%u"),)
    if any(location.driver == "mbox" for location in locations):
        warnings.append("mbox files are copied whole after every expunge; Maildir, sdbox or mdbox are cheaper to copy")
    at_home = any(s.value("sieve").removeprefix("file:").startswith("~") for s in root.of("plugin"))
    at_home = at_home or any(s.value("path").startswith("~") for s in root.of("sieve_script"))
    found_roots = _roots(locations, homes, account_homes, at_home=at_home, system_users=system_users, warnings=warnings)
    fixed, templates = _other_paths(root)
    roots = merged([*found_roots, *(p for p in map(static_prefix, templates) if p)])
    config = tuple(sorted(p for p in fixed if not any(_below(p, r) for r in roots)))
    return Layout(
        syntax=syntax,
        homes=homes,
        locations=locations,
        roots=roots,
        config_paths=config,
        tls_files=tuple(sorted(_tls_files(root))),
        passwd_files=passwd_files(root),
        listeners=_listeners(root),
        base_directory=root.value("base_dir", "/run/dovecot"),
        state_directory=root.value("state_dir", "/var/lib/dovecot"),
        library_directory=root.value("libexec_dir", "/usr/lib/dovecot"),
        system_users=system_users,
        warnings=tuple(warnings),
        past_gates=tuple(_past_gates(root)),
    )


def parse_location(text: str) -> Location:
    """A 2.3 ``mail_location``: ``driver:path[:KEY=value]...``, a literal colon doubled.

    https://doc.dovecot.org/2.3/configuration_manual/mail_location/
    """
    parts = [part.replace("\0", ":") for part in text.replace("::", "\0").split(":")]
    if len(parts) == 1:
        return Location("", parts[0])
    keys = dict(part.split("=", 1) for part in parts[2:] if "=" in part)
    index = keys.get("INDEX", "")
    return Location(
        driver=parts[0],
        path=parts[1],
        inbox=keys.get("INBOX", ""),
        index="" if index == "MEMORY" else index,
        control=keys.get("CONTROL", ""),
        alternative=keys.get("ALT", ""),
    )


def _locations(root: Section, syntax: str) -> Iterator[Location]:
    if syntax == "2.4":
        base = _location_24(root, root)
        if base.path:
            yield base
        for section in root.of("namespace"):
            own = _location_24(section, root)
            if own.path and own != base:
                yield own
        return
    texts = [root.value("mail_location")]
    texts += [section.value("location") for section in root.of("namespace")]
    texts += [fields["mail"] for section in root.of("userdb") if "mail" in (fields := _userdb_fields(section))]
    yield from (parse_location(text) for text in texts if text)


def _location_24(section: Section, root: Section) -> Location:
    def setting(name: str) -> str:
        return section.settings.get(f"mail_{name}", root.settings.get(f"mail_{name}", ""))

    index = setting("index_path")
    return Location(
        driver=setting("driver"),
        path=setting("path"),
        inbox=setting("inbox_path"),
        index="" if index == "MEMORY" else index,
        control=setting("control_path"),
        alternative=setting("alt_path"),
    )


def _driver(section: Section) -> str:
    """Of a passdb or userdb: 2.3 has a setting, 2.4 a setting or the section's name."""
    return section.value("driver") or section.name


def _userdb_fields(section: Section) -> dict[str, str]:
    """Fields a userdb gives to every account."""
    found: dict[str, str] = {}
    for key in ("args", "default_fields", "override_fields"):
        found |= {k: v for k, v in _KEYED.findall(section.value(key)) if k != "username_format"}
    for below in section.sections:
        if below.kind in ("fields", "userdb_fields", "default_fields", "override_fields"):
            found |= below.settings
    return found


def _homes(root: Section) -> Iterator[str]:
    for section in root.of("userdb"):
        if home := _userdb_fields(section).get("home"):
            yield home
    if home := root.value("mail_home"):
        yield home


def passwd_files(root: Section) -> tuple[str, ...]:
    """The passwd-files of all passdbs and userdbs, without those whose name depends on the user."""
    found: list[str] = []
    for kind in ("passdb", "userdb"):
        for section in root.of(kind):
            if _driver(section) == "passwd-file":
                explicit = section.value("passwd_file_path")
                found += [explicit] if explicit else _ABSOLUTE.findall(section.value("args"))
    return tuple(dict.fromkeys(path for path in found if "%" not in path))


def homes_by_account(passwd_text: str) -> dict[str, str]:
    """Home directories in a passwd-file: the sixth field, or ``userdb_home`` among the extra ones."""
    homes = {}
    for line in passwd_text.splitlines():
        fields = line.split(":", 7)
        if line.startswith("#") or len(fields) < 2:
            continue
        extra = dict(_KEYED.findall(fields[7])) if len(fields) > 7 else {}
        home = extra.get("userdb_home") or (fields[5] if len(fields) > 5 else "")
        if home.startswith("/"):
            homes[fields[0]] = home.replace("/./", "/")
    return homes


def homes_in(passwd_text: str) -> list[str]:
    """The homes alone."""
    return list(homes_by_account(passwd_text).values())


def accounts_in(passwd_text: str) -> list[str]:
    """User names in a passwd-file, in its order."""
    lines = (line for line in passwd_text.splitlines() if line and not line.startswith("#"))
    return [line.split(":", 1)[0] for line in lines if ":" in line]


def static_prefix(path: str) -> str:
    """The directory part before the first variable: ``/srv/mail/%d/%n`` is ``/srv/mail``. Empty for ``/`` and ``~``."""
    if not path.startswith("/"):
        return ""
    fixed, variable, _ = path.partition("%")
    if variable:
        fixed = fixed.rpartition("/")[0]
    prefix = os.path.normpath(fixed) if fixed else ""
    return "" if prefix in ("/", ".", "//") else prefix


def expand(template: str, user: str) -> str:
    """*template* with the variables that depend on the user name alone; empty when it holds any other.

    2.3 (``%u %n %d``, modifiers L and U) and 2.4 (``%{user | domain | lower}``).
    """
    local, _, domain = user.partition("@")
    values = {"u": user, "n": local, "d": domain, "user": user, "username": local, "domain": domain}
    known = True

    def replace(match: re.Match[str]) -> str:
        nonlocal known
        if match[0] == "%%":
            return "%"
        words = [w.strip() for w in (match["long"] or match["short"]).split("|")]
        value = values.get(words[0], "")
        known = known and words[0] in values
        for word in [*words[1:], {"L": "lower", "U": "upper"}.get(match["modifier"] or "", "")]:
            if word in ("domain", "username"):
                value = value.partition("@")[2 if word == "domain" else 0]
            elif word in ("lower", "upper"):
                value = value.lower() if word == "lower" else value.upper()
            elif word:
                known = False
        return value

    text = re.sub(r"%%|%(?P<modifier>[LU])?(?:\{(?P<long>[^}]*)\}|(?P<short>[a-z]))", replace, template)
    return text if known else ""


def _roots(
    locations: tuple[Location, ...],
    homes: tuple[str, ...],
    account_homes: list[str],
    *,
    at_home: bool,
    system_users: bool,
    warnings: list[str],
) -> list[str]:
    found: list[str] = []
    for path in (p for location in locations for p in location.paths()):
        if path.startswith(("~", "%h", "%{home}")):
            at_home = True
        elif prefix := static_prefix(path):
            found.append(prefix)
        else:
            warnings.append(f"mail path {path!r} begins with a variable: name its directory in mail.store_paths")
    home_roots = [p for p in map(static_prefix, homes) if p]
    if account_homes:
        home_roots += _parents(account_homes)
    if system_users and at_home and not home_roots:
        home_roots.append("/home")
        warnings.append("accounts are system users: all of /home is protected; use mail.store_paths to narrow it")
    if at_home and not home_roots:
        warnings.append("mail is kept in home directories, and no home is known: name them in mail.store_paths")
    # Sieve scripts and other things of an account live in its home, even where its mail does not.
    return found + home_roots


def _parents(homes: list[str]) -> list[str]:
    """The directories that homes stand in: one if they have one in common, so that new accounts are within it."""
    parents = {os.path.dirname(home.rstrip("/")) for home in homes} - {"/", ""}
    if not parents:
        return homes
    common = os.path.commonpath(parents)
    if common == "/":
        return sorted(parents)
    above, _, last = common.rpartition("/")
    return [above if "." in last and above else common]  # a domain: the next one will stand beside it


def merged(paths: Iterable[str]) -> tuple[str, ...]:
    """Sorted, without what lies below another."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(_below(path, other) for other in kept):
            kept.append(path)
    return tuple(kept)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _tls_files(root: Section) -> set[str]:
    """2.3 writes ``ssl_cert = </path``, 2.4 ``ssl_server_cert_file = /path``; both also per ``local_name``."""
    found = set()
    for section in root.all():
        prefixed = section.kind.startswith("ssl_")
        for key, value in section.settings.items():
            full = key if key.startswith("ssl_") else f"{section.kind}_{key}" if prefixed else ""
            if full and _TLS_FILE.match(full) and value.lstrip("<").strip().startswith("/"):
                found.add(value.lstrip("<").strip())
    return {path for path in found if not path.startswith("/usr/")}


def _other_paths(root: Section) -> tuple[set[str], set[str]]:
    """Absolute paths in settings of user databases, plugins, dictionaries, Sieve: fixed ones, and with variables."""
    fixed: set[str] = set()
    templates: set[str] = set()
    for section in root.all():
        if section.kind in _OWN_SECTIONS:
            continue
        for key, value in section.settings.items():
            full = f"{section.kind}_{key}"
            if key.endswith(("_socket_path", "_plugin_dir")) or full in _HANDLED or not _NAMES_FILES.search(full):
                continue
            for path in _ABSOLUTE.findall(value.replace("home=/", "home=")):
                if not any(_below(path, skipped) for skipped in _NOT_DATA):
                    (templates if "%" in path else fixed).add(path.rstrip("/"))
    return fixed, templates


_HANDLED: Final = frozenset(
    {"_mail_path", "_mail_index_path", "_mail_control_path", "_mail_alt_path", "_mail_inbox_path"}
)


def _protocols(root: Section) -> frozenset[str]:
    listed = root.value("protocols").split()
    return frozenset([*listed, *(k for s in root.of("protocols") for k, v in s.settings.items() if truth(v))])


def _past_gates(root: Section) -> Iterator[str]:
    gated = {service.name for service in root.of("service") if "holdfast" in service.value("executable")}
    if "imap" not in gated:
        return
    if "pop3" in _protocols(root):
        yield "POP3 has no gate: what its clients delete is acknowledged before the log has it, or without a log"
    if "sieve" in _protocols(root) and "managesieve" not in gated:
        yield "ManageSieve passes no gate, as IMAP does: docs/concepts/imap-gate.md"


def _listeners(root: Section) -> tuple[Listener, ...]:
    protocols = _protocols(root)
    configured = {
        (service.name, listener.name): listener
        for service in root.of("service")
        for listener in service.of("inet_listener")
    }
    found = []
    for protocol in sorted(protocols):
        for service, name, port, tls in _LISTENERS.get(protocol, ()):
            section = configured.get((service, name))
            if section is not None:
                port = int(section.value("port", str(port)) or 0)
                tls = truth(section.value("ssl", "yes" if tls else "no"))
            if port and not (tls and root.value("ssl") == "no"):
                found.append(Listener(protocol, name, port, tls))
    return tuple(found)
