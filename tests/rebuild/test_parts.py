"""The parts of a rebuild by themselves: what comes back in which order, put in place without replacing anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, Refused
from holdfast.mail.inventory import Account, AccountState, Group, Inventory, ProtectedTree, User
from holdfast.rebuild.book import Book
from holdfast.rebuild.doors import Doors, block, waiting_for
from holdfast.rebuild.place import Ground, build_walls, in_the_way, is_wall, place
from holdfast.rebuild.settle import settle
from holdfast.rebuild.survey import Survey, in_order, survey
from holdfast.rebuild.users import Here, plan_users
from holdfast.trees.stat import Owners
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import backup_trees
from holdfast.vault.repository import Vault
from tests.vault.site import clocks, new_vault, picture, tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and walls need root")


def account(name: str, *places: str, state: AccountState = AccountState.STORED) -> Account:
    return Account(name, places, state)


class Store:
    """A store of domains and accounts, its snapshot, and what was surveyed of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "vmail"
        for number, name in enumerate(("a", "b", "left"), start=1):
            box = self.root / "x.org" / name / "Maildir"
            box.mkdir(parents=True)
            (box / "1").write_text(name)
            for path in (box / "1", box, box.parent):
                os.utime(path, ns=(0, number * 10**9))
        (self.root / "x.org").chmod(0o2770)
        (self.root / "y.org").mkdir()
        (self.root / "note").write_text("beside")
        os.utime(self.root, ns=(0, 10**9))
        at = str(self.root / "x.org")
        self.inventory = Inventory(
            format=1,
            accounts=(
                account("a@x.org", f"{at}/a"),
                account("b@x.org", f"{at}/b"),
                account("c@x.org", f"{at}/c", state=AccountState.UNUSED),
                account("d@x.org", f"{at}/d"),
            ),
        )
        self.vault: Vault = new_vault(MemoryBackend())
        trees = [tree(self.root)]
        self.snapshot = backup_trees(self.vault, trees, "main", clocks=clocks()).snapshot
        self.survey: Survey = survey(self.snapshot.trees, self.inventory, self.vault.content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_accounts_come_back_by_last_activity_others_at_the_end(store: Store) -> None:
    units = in_order(store.survey.units, "")
    assert [Path(unit.target).name for unit in units][:2] == ["b", "a"]
    assert {Path(unit.target).name for unit in units[2:]} == {"left", "y.org", "note"}
    assert in_order(store.survey.units, "a@x.org")[0].name == "a@x.org", "the probes' account comes first"
    assert store.survey.divided
    assert store.survey.lost_accounts == ("d@x.org",), "c never had a store"


def test_an_account_in_two_places_comes_back_in_a_row(tmp_path: Path) -> None:
    for where in ("mail/a", "mail/b", "index/a", "index/b"):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "f").write_text("x")
    os.utime(tmp_path / "index/b/f", ns=(0, 2 * 10**18))
    accounts = tuple(account(f"{n}@x", f"{tmp_path}/mail/{n}", f"{tmp_path}/index/{n}") for n in "ab")
    vault = new_vault(MemoryBackend())
    trees = [tree(tmp_path / "mail"), tree(tmp_path / "index", "store-2")]
    snapshot = backup_trees(vault, trees, "main", clocks=clocks()).snapshot
    found = survey(snapshot.trees, Inventory(format=1, accounts=accounts), vault.content)
    assert [unit.name for unit in in_order(found.units, "")] == ["b@x", "b@x", "a@x", "a@x"]


@needs_root
def test_units_come_into_place_exactly_and_walls_stand_until_then(store: Store, tmp_path: Path) -> None:
    original = tmp_path / "original"
    store.root.rename(original)
    ground = Ground(store.survey.scaffold, Owners())
    ground.make()
    build_walls(store.survey.units)
    assert all(is_wall(unit.target) and not in_the_way(unit) for unit in store.survey.units)
    for unit in store.survey.units:
        restored = place(store.vault, unit, ground.staging_for(unit))
        assert not restored.failures
    ground.finish()
    assert picture(store.root) == picture(original)


def test_what_came_into_the_place_meanwhile_is_not_replaced(store: Store, tmp_path: Path) -> None:
    unit = next(unit for unit in store.survey.units if unit.name == "a@x.org")
    assert in_the_way(unit), "the store itself stands there"
    with pytest.raises(Refused, match="come into being"):
        place(store.vault, unit, Ground(store.survey.scaffold, Owners()).staging_for(unit))
    assert Path(unit.target, "Maildir/1").exists()


def test_configuration_is_made_equal_where_it_is_protected_whole(tmp_path: Path) -> None:
    """What the packages brought is kept aside; compiled tables and other folders of /etc are left alone."""
    restored, etc, aside = tmp_path / "restored", tmp_path / "etc", tmp_path / "aside"
    files = {
        restored: {"postfix/main.cf": "old machine", "dovecot/conf.d/10-own.conf": "own", "ssl/a.pem": "cert"},
        etc: {
            "postfix/main.cf": "package",
            "postfix/virtual.db": "compiled",
            "dovecot/conf.d/10-ssl.conf": "package",
            "ssl/other.pem": "other",
            "holdfast.own": "own",
        },
    }
    for folder, contents in files.items():
        for name, text in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    (restored / "link").symlink_to("postfix/main.cf")
    protected = ProtectedTree("config", str(etc), include=("postfix", "dovecot", "ssl/a.pem", "link"))
    done = settle(restored, etc, protected, aside)
    assert (done.written, sorted(Path(path).name for path in done.aside)) == (4, ["10-ssl.conf", "main.cf"])
    assert (etc / "postfix/main.cf").read_text() == "old machine"
    assert not (etc / "dovecot/conf.d/10-ssl.conf").exists()
    assert (etc / "link").readlink() == Path("postfix/main.cf")
    assert all((etc / name).exists() for name in ("postfix/virtual.db", "ssl/other.pem", "ssl/a.pem", "holdfast.own"))
    assert (aside / (etc / "postfix/main.cf").relative_to("/")).read_text() == "package"
    again = settle(restored, etc, protected, aside)
    assert (again.written, again.equal, again.aside) == (0, 4, ())


def test_users_are_made_as_they_were_and_others_are_named() -> None:
    inventory = Inventory(
        format=1,
        users=(User("vmail", 5000, 5000, "", "/srv", "/bin/false"), User("opendkim", 110, 110, "", "/", "/bin/false")),
        groups=(Group("vmail", 5000, ()), Group("postfix", 105, ("opendkim",)), Group("sudo", 27, ("opendkim",))),
    )
    found = Here({"root": 0, "opendkim": 111, "taken": 5000}, {"root": 0, "postfix": 104, "sudo": 27}, {})
    plan = plan_users(inventory, ["root", "vmail", "ghost", "#77", "opendkim"], ["vmail", "root"], found)
    assert [user.name for user in plan.users] == ["vmail"]
    assert [group.name for group in plan.groups] == ["vmail"]
    assert plan.memberships == (("opendkim", "postfix"),), "never into sudo"
    assert plan.differences == (
        "nobody knows who ghost was: root will own those files",
        "user vmail had number 5000, which is taken's here: it gets another",
        "user opendkim has number 111 here, it had 110",
    )


def test_doors_leave_the_configuration_as_it_was(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    text = "# mine\nprotocols = imap\n"
    config.write_text(text)
    os.utime(config, ns=(5, 5))
    doors = Doors(config, tmp_path)
    doors.close(["A@x.org", "b@x.org"])
    doors.close(["b@x.org"])
    assert config.read_text() == block(tmp_path / "holdfast-rebuild") + text
    with pytest.raises(OSError, match="symbolic links"):
        (tmp_path / "holdfast-rebuild/a@x.org").stat()
    doors.open("A@x.org")
    assert sorted(os.listdir(tmp_path / "holdfast-rebuild")) == ["b@x.org"]
    assert doors.take_out()
    assert (config.read_text(), doors.closed, doors.take_out()) == (text, False, False)


def test_whose_mail_waits_is_read_from_postfix() -> None:
    def line(queue: str, name: str, *addresses: str) -> str:
        recipients = ", ".join(f'{{"address": "{address}", "delay_reason": "451"}}' for address in addresses)
        return f'{{"queue_name": "{queue}", "queue_id": "{name}", "recipients": [{recipients}]}}'

    listing = "\n".join(
        [
            line("deferred", "1", "a@x.org"),
            line("active", "2", "a@x.org"),
            line("deferred", "3", "b@x.org", "a+tag@x.org"),
            line("deferred", "4", "b@x.org"),
            "not json",
        ]
    )
    assert waiting_for(listing, frozenset(["a@x.org"])) == ("1", "3")


def test_an_interrupted_rebuild_goes_on_with_what_it_began(tmp_path: Path) -> None:
    book = Book(tmp_path / "book")
    book.begin("vault", "snapshot", ordered=True, now_ns=1)
    with book.step("store"):
        book.note_placed("/m/a")
    with pytest.raises(OSError, match="full"), book.step("service"):
        raise OSError("full")
    with (tmp_path / "book/placed").open("ab") as file:
        file.write(b"/m/half")  # the line a power cut left
    again = Book(tmp_path / "book")
    assert again.begun
    assert (again.placed, again.done("store"), again.done("service")) == ({"/m/a"}, True, False)
    with pytest.raises(Refused, match="was begun"):
        again.begin("vault", "another", ordered=True, now_ns=2)
    assert again.begin("vault", "snapshot", ordered=True, now_ns=2).runs == 2
    again.finish()
    third = Book(tmp_path / "book")
    assert not third.begun
    third.begin("vault", "another", ordered=False, now_ns=3)
    assert third.placed == set()
    (tmp_path / "book/book.json").write_text("{")
    with pytest.raises(HoldfastError, match="damaged"):
        Book(tmp_path / "book")
