"""Users and groups that the trees' files belong to, made as they were: by number too, because programs compare numbers
(Dovecot's ``first_valid_uid``)."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterable
from typing import Final, NamedTuple

from holdfast.errors import HoldfastError
from holdfast.mail.inventory import Group, Inventory, User
from holdfast.mail.port import Commands

COMMAND_SECONDS_MAX: Final = 30.0
PEOPLE_FIRST_ID: Final = 1000
_POWERFUL: Final = frozenset({"root", "sudo", "wheel", "adm", "disk", "docker", "lxd", "shadow", "systemd-journal"})
"""Membership of these is a person's decision, never a restore's."""


class UserFailed(HoldfastError):
    """A user or a group could not be made."""


class UserPlan(NamedTuple):
    groups: tuple[Group, ...] = ()
    users: tuple[User, ...] = ()
    memberships: tuple[tuple[str, str], ...] = ()
    """(user, group)"""
    differences: tuple[str, ...] = ()


class Here(NamedTuple):
    """This machine's users and groups: names to numbers, groups to members."""

    users: dict[str, int]
    groups: dict[str, int]
    members: dict[str, tuple[str, ...]]


def here() -> Here:
    groups = grp.getgrall()
    return Here(
        {p.pw_name: p.pw_uid for p in pwd.getpwall()},
        {g.gr_name: g.gr_gid for g in groups},
        {g.gr_name: tuple(g.gr_mem) for g in groups},
    )


def plan_users(inventory: Inventory, owners: Iterable[str], groups: Iterable[str], found: Here) -> UserPlan:
    """Who is to be made on a machine that has *found*. Names the inventory does not know are differences."""
    known_users = {user.name: user for user in inventory.users}
    known_groups = {group.name: group for group in inventory.groups}
    numbers = {group.gid: group for group in inventory.groups}
    wanted = [name for name in owners if name not in found.users and not name.startswith("#")]
    users = [known_users[name] for name in sorted(wanted) if name in known_users]
    names = {name for name in groups if not name.startswith("#")}
    names |= {numbers[user.gid].name for user in users if user.gid in numbers}
    new_groups = [known_groups[name] for name in sorted(names) if name not in found.groups and name in known_groups]
    unknown = sorted({*wanted, *(name for name in names if name not in found.groups)} - {u.name for u in users})
    unknown = [name for name in unknown if name not in {group.name for group in new_groups}]
    differences = [f"nobody knows who {name} was: root will own those files" for name in unknown]
    for user in users:
        if taken := _holder(found.users, user.uid):
            differences.append(f"user {user.name} had number {user.uid}, which is {taken}'s here: it gets another")
    for name, uid in sorted(found.users.items()):
        if name in known_users and name in owners and known_users[name].uid != uid and name != "root":
            differences.append(f"user {name} has number {uid} here, it had {known_users[name].uid}")
    there = set(found.users) | {user.name for user in users}
    ready = set(found.groups) | {group.name for group in new_groups}
    memberships = [
        (member, group.name)
        for group in inventory.groups
        if group.name in ready and group.name not in _POWERFUL
        for member in group.members
        if member in there and member not in found.members.get(group.name, ())
        if member in known_users and (known_users[member].uid < PEOPLE_FIRST_ID or member in {u.name for u in users})
    ]
    return UserPlan(tuple(new_groups), tuple(users), tuple(memberships), tuple(differences))


def _holder(numbers: dict[str, int], number: int) -> str:
    return next((name for name, taken in numbers.items() if taken == number), "")


async def make_users(plan: UserPlan, commands: Commands, found: Here) -> None:
    """By groupadd(8), useradd(8), usermod(8). No home is made and no password set. Raises UserFailed."""
    for group in plan.groups:
        number = [] if _holder(found.groups, group.gid) else ["--gid", str(group.gid)]
        await _run(commands, ["groupadd", *number, group.name])
    for user in plan.users:
        number = [] if _holder(found.users, user.uid) else ["--uid", str(user.uid)]
        primary = next((g.gr_name for g in grp.getgrall() if g.gr_gid == user.gid), "")
        belongs = ["--gid", primary] if primary else ["--user-group"]
        rest = ["--no-create-home", "--home-dir", user.home, "--shell", user.shell, "--comment", user.comment]
        await _run(commands, ["useradd", *number, *belongs, *rest, user.name])
    for member, group_name in plan.memberships:
        await _run(commands, ["usermod", "--append", "--groups", group_name, member])


async def _run(commands: Commands, argv: list[str]) -> None:
    result = await commands.run(argv, timeout_seconds=COMMAND_SECONDS_MAX)
    if not result.ok:
        raise UserFailed(result.words, hint="Make it by hand, then repeat the command: it goes on here.")
