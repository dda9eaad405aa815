"""The tree ``config``: what of ``/etc`` configures the mail software, and further trees for what lies elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.mail.dovecot_layout import merged
from holdfast.mail.files import PARTIAL_SUFFIX
from holdfast.mail.port import Protection
from holdfast.mail.processes import below
from holdfast.mail.secrets import of_filters
from holdfast.mail.settings import MailSettings
from holdfast.trees.spec import TreeSpec

ETC: Final = "/etc"
COMPANIONS: Final = (
    "opendkim",
    "opendkim.conf",
    "opendmarc",
    "opendmarc.conf",
    "rspamd",
    "dkimkeys",
    "default/opendkim",
)
"""Filters that stand beside Postfix: copied where they are there."""
MACHINES_OWN: Final = frozenset(
    f"{ETC}/{name}"
    for name in (
        *("", "holdfast", "passwd", "shadow", "group", "gshadow", "hostname", "hosts", "resolv.conf", "services"),
        *("localtime", "machine-id", "nsswitch.conf", "fstab", "network", "pam.d", "ssl", "ssl/certs", "ssl/private"),
        *("ssl/certs/ca-certificates.crt", "ssl/openssl.cnf", "protocols", "crypto-policies"),
    )
)
"""Named in many configurations, and never copied whole: they make the machine what it is, or come with its packages."""
NOT_CONFIGURATION: Final = ("/usr", "/bin", "/sbin", "/lib", "/var/log", "/run", "/var/run", "/dev", "/proc", "/tmp")
"""Named in configurations too, and either the packages' own, or written by the programs."""
_EDITORS: Final = ("*" + PARTIAL_SUFFIX, ".*.sw?", "*~", "*.dpkg-new", "*.dpkg-tmp")


def config_trees(
    protections: Iterable[Protection], settings: MailSettings, data: Iterable[TreeSpec], *, etc: str = ETC
) -> list[TreeSpec]:
    """All paths that configure the services, as trees; what the *data* trees hold, or stand in, is left to them."""
    protections = list(protections)
    named = {path for protection in protections for path in protection.config_paths} | set(settings.config_paths)
    named |= {os.path.join(etc, name) for name in COMPANIONS if os.path.exists(os.path.join(etc, name))}
    wanted = {path for path in map(os.path.normpath, _with_targets(named)) if not _own(path, etc)}
    wanted |= {secret.path for secret in of_filters(Path(etc)) if os.path.exists(secret.path)}
    if any(below(path, f"{etc}/letsencrypt") for path in wanted):
        wanted.add(f"{etc}/letsencrypt")  # live/ is links into archive/, and renewal/ belongs to both
    roots = [tree.root for tree in data]
    paths = merged(path for path in wanted if not any(below(path, root) or below(root, path) for root in roots))
    left_out = {path for protection in protections for path in protection.config_exclude}
    left_out |= set(settings.config_exclude)
    overrides = {path for protection in protections for path in protection.overrides}
    trees = [_tree("config", etc, [path for path in paths if below(path, etc)], left_out, overrides)]
    elsewhere: dict[str, list[str]] = {}
    for path in paths:
        if not below(path, etc):
            elsewhere.setdefault(os.path.dirname(path) if not os.path.isdir(path) else path, []).append(path)
    for number, (root, members) in enumerate(sorted(elsewhere.items()), start=2):
        trees.append(_tree(f"config-{number}", root, members, left_out, overrides))
    return [tree for tree in trees if tree.include or tree.root != etc]


def _own(path: str, etc: str) -> bool:
    translated = ETC + path.removeprefix(etc) if below(path, etc) else path
    if any(below(translated, place) for place in NOT_CONFIGURATION):
        return True
    return translated.rstrip("/") in {own.rstrip("/") for own in MACHINES_OWN} or below(translated, f"{ETC}/holdfast")


def _with_targets(paths: set[str]) -> set[str]:
    """The paths, and what symbolic links among them lead to: a link copied without its target is a broken link."""
    found = set(paths)
    for path in paths:
        target = os.path.realpath(path)
        if Path(path).is_symlink() and not below(target, "/usr"):
            found.add(target)
    return found


def _tree(name: str, root: str, paths: list[str], left_out: set[str], overrides: set[str]) -> TreeSpec:
    include = () if paths == [root] else tuple(os.path.relpath(path, root) for path in paths)
    return TreeSpec(
        name=name,
        root=root,
        include=include,
        exclude=(*_EDITORS, *("/" + os.path.relpath(path, root) for path in sorted(left_out) if below(path, root))),
        overrides=tuple(os.path.relpath(path, root) for path in sorted(overrides) if below(path, root)),
    ).checked()
