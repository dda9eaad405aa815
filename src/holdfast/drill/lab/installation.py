"""What is on a machine's disk before anyone has configured it: a Debian system as its packages leave it.

``/etc`` is a copy of the parts of the host's that programs need, chosen by name so that no secret of the host gets
in; accounts of people, password hashes and private keys stay outside. ``/var`` is made, with the owners the packages
would give.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.drill.lab.rootfs import OWN_TREES
from holdfast.drill.lab.spec import LabState, MachineState
from holdfast.drill.lab.tools import run_tool

VMAIL_ID: Final = 5000
"""User and group that own all mail, as in most Dovecot guides. On the machines only."""
PEOPLE_FIRST_ID: Final = 1000
NOBODY_ID: Final = 65534

ETC_COPIED: Final = """
adduser.conf aliases aliases.db bash.bashrc bindresvport.blacklist ca-certificates ca-certificates.conf
debian_version default deluser.conf dovecot dpkg environment ethertypes gai.conf group host.conf inputrc
insserv.conf.d iproute2 issue issue.net ld.so.cache ld.so.conf ld.so.conf.d locale.alias localtime
login.defs mailcap mime.types mke2fs.conf nail.rc networks os-release pam.conf pam.d passwd postfix profile
profile.d protocols resolvconf rpc rsyslog.d securetty security services shells skel ssl/certs
ssl/openssl.cnf sysctl.conf sysctl.d terminfo timezone ufw xattr.conf
"""
"""Names under ``/etc``, separated by blanks; those the host lacks are left out."""


class Folder(NamedTuple):
    """A folder under ``/var`` and how the package makes it. Users unknown to the host become root."""

    path: str
    mode: int
    user: str = "root"
    group: str = "root"


POSTFIX_QUEUES: Final = (
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "private",
    "saved",
    "trace",
)
VAR_FOLDERS: Final = (
    Folder("cache", 0o755),
    Folder("lib", 0o755),
    Folder("lib/dovecot", 0o755),
    Folder("lib/misc", 0o755),
    Folder("lib/postfix", 0o755, "postfix", "postfix"),
    Folder("lib/radicale", 0o750, "vmail", "vmail"),
    Folder("lib/radicale/collections", 0o750, "vmail", "vmail"),
    Folder("local", 0o2775, "root", "staff"),
    Folder("log", 0o755),
    Folder("mail", 0o2775, "root", "mail"),
    Folder("opt", 0o755),
    Folder("spool", 0o755),
    Folder("spool/cron", 0o755),
    Folder("spool/postfix", 0o755),
    *(Folder(f"spool/postfix/{queue}", 0o700, "postfix") for queue in POSTFIX_QUEUES),
    *(Folder(f"spool/postfix/{name}", 0o755) for name in ("dev", "etc", "lib", "pid", "usr")),
    Folder("spool/postfix/maildrop", 0o1730, "postfix", "postdrop"),
    Folder("spool/postfix/public", 0o2710, "postfix", "postdrop"),
    Folder("tmp", 0o1777),
    Folder("vmail", 0o770, "vmail", "vmail"),
)
"""Postfix's own folders as its postfix-files has them: made here, so that the first start does not take two seconds."""
POSTFIX_CHROOT_FILES: Final = ("host.conf", "hosts", "localtime", "nsswitch.conf", "resolv.conf", "services")
"""Debian's Postfix runs in a chroot; its service copies these there at every start (configure-instance.sh)."""
VAR_LINKS: Final = (("run", "/run"), ("lock", "/run/lock"), ("spool/mail", "../mail"))
BASHRC: Final = """PS1='\\u@\\h:\\w\\$ '\n"""


def install(disk: Path, state: LabState, machine: MachineState) -> None:
    """Fill the empty filesystem at *disk*. Raises LabError, OSError."""
    for name in OWN_TREES:
        (disk / name).mkdir()
        (disk / name).chmod(
            0o711 if name == "root" else 0o755
        )  # daemons reach their Python through /root where pyenv lives there
    (disk / "root/.bashrc").write_text(BASHRC)
    etc = disk / "etc"
    _copy_etc(etc)
    _write_users(etc)
    _write_identity(etc, state, machine)
    _name_postfix(etc, state, machine)
    users = numbers(etc / "passwd")
    groups = numbers(etc / "group")
    for folder in VAR_FOLDERS:
        path = disk / "var" / folder.path
        path.mkdir()
        os.chown(path, users.get(folder.user, 0), groups.get(folder.group, 0))
        path.chmod(folder.mode)
    for name in POSTFIX_CHROOT_FILES:
        if (etc / name).is_file():
            shutil.copy(etc / name, disk / "var/spool/postfix/etc" / name)
    for name, target in VAR_LINKS:
        (disk / "var" / name).symlink_to(target)


def fqdn(state: LabState, machine: MachineState) -> str:
    return f"{machine.name}.{state.domain}"


def hosts_file(state: LabState) -> str:
    """``/etc/hosts``: every machine, and the service name at the service address. There is no name server."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for machine in state.machines.values():
        names = f"{fqdn(state, machine)} {machine.name}"
        lines += [f"{address} {names}" for address in (machine.ipv4, machine.ipv6) if address]
    lines += [f"{address} {state.service_name}" for address in (state.service_ipv4, state.service_ipv6) if address]
    return "\n".join(lines) + "\n"


def _copy_etc(etc: Path) -> None:
    present = [name for name in ETC_COPIED.split() if os.path.lexists(f"/etc/{name}")]
    (etc / "ssl").mkdir()
    (etc / "ssl/private").mkdir(mode=0o710)
    run_tool(["cp", "-a", "--", *(f"/etc/{name}" for name in present if "/" not in name), str(etc)])
    for name in present:
        if "/" in name:
            run_tool(["cp", "-a", "--", f"/etc/{name}", str(etc / name)])
    shutil.rmtree(etc / "dovecot/private", ignore_errors=True)
    (etc / "mtab").symlink_to("../proc/self/mounts")


def _write_users(etc: Path) -> None:
    """The packages' users, without people; nobody can log in with a password. And vmail."""
    for name in ("passwd", "group"):
        kept = [line for line in (etc / name).read_text().splitlines() if _is_of_a_package(line)]
        if name == "passwd":
            kept.append(f"vmail:x:{VMAIL_ID}:{VMAIL_ID}:Virtual mail:/var/vmail:/usr/sbin/nologin")
        else:
            kept.append(f"vmail:x:{VMAIL_ID}:")
        (etc / name).write_text("\n".join(kept) + "\n")
    for source, target, rest in (("passwd", "shadow", ":*:19000:0:99999:7:::"), ("group", "gshadow", ":*::")):
        names = [line.partition(":")[0] for line in (etc / source).read_text().splitlines()]
        (etc / target).write_text("".join(f"{name}{rest}\n" for name in names))
        (etc / target).chmod(0o640)


def _is_of_a_package(line: str) -> bool:
    fields = line.split(":")
    if len(fields) < 3 or not fields[2].isdigit() or fields[0] == "vmail":
        return False
    return int(fields[2]) < PEOPLE_FIRST_ID or int(fields[2]) == NOBODY_ID


def _write_identity(etc: Path, state: LabState, machine: MachineState) -> None:
    (etc / "hostname").write_text(f"{machine.name}\n")
    (etc / "mailname").write_text(f"{fqdn(state, machine)}\n")
    (etc / "hosts").write_text(hosts_file(state))
    (etc / "resolv.conf").write_text("# No name server in the lab: see /etc/hosts.\nnameserver 127.0.0.1\n")
    (etc / "nsswitch.conf").write_text(
        "".join(
            f"{base}: files\n" for base in ("passwd", "group", "shadow", "hosts", "networks", "protocols", "services")
        )
    )
    (etc / "fstab").write_text("# The lab mounts the disk.\n")
    machine_id = hashlib.blake2b(f"{state.disks}/{machine.name}".encode(), digest_size=16).hexdigest()
    (etc / "machine-id").write_text(f"{machine_id}\n")


def _name_postfix(etc: Path, state: LabState, machine: MachineState) -> None:
    """The package asks for the machine's name when it is installed; the copy has the host's."""
    main_cf = etc / "postfix/main.cf"
    if not main_cf.exists():
        return
    name = fqdn(state, machine)
    own = {"myhostname": name, "mydestination": f"$myhostname, {machine.name}, localhost.localdomain, localhost"}
    lines = []
    for line in main_cf.read_text().splitlines():
        key = line.partition("=")[0].strip()
        lines.append(f"{key} = {own[key]}" if key in own else line)
    main_cf.write_text("\n".join(lines) + "\n")


def numbers(path: Path) -> dict[str, int]:
    """Names and numbers of a machine's passwd or group file."""
    rows = (line.split(":") for line in path.read_text().splitlines())
    return {row[0]: int(row[2]) for row in rows}
