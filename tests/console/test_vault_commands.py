"""The vault on the command line, as somebody with a mail folder and a disk meets it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pyrage
import pytest

from holdfast.errors import ExitStatus
from tests.console.vault_site import Desk
from tests.vault.site import make_store, picture


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path).ready()


def test_a_folder_goes_in_and_comes_back_exactly(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    make_store(desk.mail)
    desk.done("vault", "init", str(desk.location))
    made = desk.backup()
    assert made["gaps_total"] == 0
    assert made["trees"] == {"maildir": str(desk.mail)}
    before = picture(desk.mail)
    restored = desk.json("restore", "--to", str(tmp_path / "back"))
    assert picture(tmp_path / "back" / "maildir") == before
    assert (restored["restored_files"], restored["failures_total"]) == (made["files"], 0)


def test_init_says_that_the_identity_is_here_only_and_backups_repeat_it_until_the_page_was_typed_back(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    desk.write("cur/1.host:2,S")
    assert "ON THIS MACHINE ONLY" in desk.done("vault", "init", str(desk.location))
    assert "ON THIS MACHINE ONLY" in desk.done("vault", "backup", str(desk.mail))
    page = desk.done("vault", "keys", "export", "--paper")
    typed = "\n".join(line.strip()[2:] for line in page.splitlines() if line.strip()[:2] in ("A1", "A2", "A3"))
    assert "cur/1.host:2,S" in desk.done("vault", "keys", "check", text=typed)
    assert "ON THIS MACHINE ONLY" not in desk.done("vault", "backup", str(desk.mail))
    assert desk.backup()["identity_only_here"] is False


def test_a_line_mistyped_is_named(desk: Desk) -> None:
    page = desk.done("vault", "keys", "export", "--paper")
    lines = [line for line in page.splitlines() if line.strip()[:2] in ("A1", "A2", "A3")]
    lines[1] = lines[1].replace(lines[1].split()[1], "QQQQ")
    said = desk.done("vault", "keys", "check", "--from", "-", text="\n".join(lines), status=ExitStatus.WRONG_KEY)
    assert "line A2" in said
    assert desk.backup()["identity_only_here"] is True


def test_the_page_and_the_vault_are_enough_on_a_new_machine(desk: Desk, tmp_path: Path) -> None:
    page = desk.done("vault", "keys", "export", "--paper")
    desk.backup()
    new = Desk(tmp_path / "new")
    new.base.mkdir()
    identity = str(new.base / "identity.txt")
    where = ("--vault", str(desk.location))
    assert "opens" in new.done(
        "vault", "keys", "check", *where, "--from", "-", "--writer", "--save", identity, text=page
    )
    new.done("restore", *where, "--identity", identity, "--to", str(new.base / "back"))
    assert picture(new.base / "back" / "maildir") == picture(desk.mail)
    new.done("vault", "keys", "recover", *where, "--identity", identity, "--out", str(new.base / "writer.key"))
    new.done("vault", "backup", *where, "--key", str(new.base / "writer.key"), str(desk.mail))


def test_with_a_recipient_the_machine_cannot_read_what_it_wrote(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("cur/1.host:2,S")
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity.txt").write_text(f"# a comment\n{identity}\n")
    desk.done("vault", "init", str(desk.location), "--recipient", str(identity.to_public()))
    assert not list((tmp_path / "vaults").glob("*.identity"))
    assert desk.backup()["identity_only_here"] is False
    listed = desk.done("vault", "list")
    assert "takes an identity" in listed
    assert "no identity is known" in desk.done("vault", "show", status=ExitStatus.WRONG_KEY)
    assert "maildir" in desk.done("vault", "list", "--identity", str(tmp_path / "identity.txt"))


def test_a_key_in_use_is_never_written_over(desk: Desk, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "vaults").iterdir()}
    said = desk.done("vault", "init", str(tmp_path / "other" / "vault"), status=ExitStatus.REFUSED)
    assert "vault.key is there already" in said
    said = desk.done("vault", "init", str(desk.location), "--name", "second", status=ExitStatus.REFUSED)
    assert "there is a vault at this place already" in said
    assert {path: path.read_bytes() for path in (tmp_path / "vaults").iterdir()} == before


def test_keys_are_private(desk: Desk, tmp_path: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "vaults").iterdir()}
    assert modes == {"vault.key": 0o600, "vault.identity": 0o600, "vault.json": 0o600}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "cache").rglob("*"))


def test_of_two_vaults_one_must_be_named(desk: Desk, tmp_path: Path) -> None:
    desk.done("vault", "init", str(tmp_path / "second"))
    said = desk.done("vault", "list", status=ExitStatus.CONFIGURATION)
    assert "several vaults are known here: second, vault" in said
    desk.done("vault", "backup", "--vault", "second", str(desk.mail))
    assert desk.json("vault", "list", "--vault", str(tmp_path / "second"))["total"] == 1
    assert desk.run("vault", "list", "--json", HOLDFAST_VAULT="vault").exit_code == 0
    assert "'third'" in desk.done("vault", "list", "--vault", "third", status=ExitStatus.CONFIGURATION)


def test_nothing_known_says_how_to_begin(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert "vault init LOCATION" in desk.done("vault", "list", status=ExitStatus.CONFIGURATION)
    desk.ready()
    assert "Say what to back up" in desk.done("vault", "backup", status=ExitStatus.CONFIGURATION)


def test_show_lists_a_directory_and_gives_a_files_bytes(desk: Desk) -> None:
    desk.write("cur/\x1b[31m", "an escape sequence for a name")
    desk.backup()
    listed = desk.done("vault", "show", "maildir/cur")
    assert "1.host:2,S" in listed
    assert "\x1b" not in listed
    assert "\\x1b[31m" in listed
    for path in ("maildir/cur/1.host:2,S", "cur/1.host:2,S", str(desk.mail / "cur/1.host:2,S")):
        assert desk.done("vault", "show", path) == "Subject: one\n\nfirst\n"
    entries = desk.json("vault", "show", "cur")["entries"]
    assert [entry["name"] for entry in entries] == ["\\x1b[31m", "1.host:2,S", "2.host:2,"]
    assert "nothing stands at" in desk.done("vault", "show", "cur/3", status=ExitStatus.USAGE)
    assert "is in no tree" in desk.done("vault", "show", "/elsewhere", status=ExitStatus.USAGE)


def test_diff_names_what_changed(desk: Desk) -> None:
    desk.backup()
    desk.write("cur/3.host:2,")
    (desk.mail / "cur/1.host:2,S").unlink()
    desk.backup()
    found = desk.json("vault", "diff", status=ExitStatus.DIFFERENCES)["differences"]
    kinds = {one["path"]: one["kind"] for one in found}
    assert kinds == {"cur": "meta", "cur/1.host:2,S": "removed", "cur/3.host:2,": "added"}
    assert "- maildir/cur/1.host:2,S" in desk.done("vault", "diff", status=ExitStatus.DIFFERENCES)
    desk.backup()
    assert desk.json("vault", "diff")["differences"] == []


def test_restore_takes_names_and_times(desk: Desk, tmp_path: Path) -> None:
    first = desk.backup()
    moment = time.time_ns()
    (desk.mail / "cur/1.host:2,S").unlink()
    second = desk.backup()
    assert desk.json("restore", "--dry-run")["snapshot"] == second["snapshot"]
    for at in (first["snapshot"], first["snapshot"][:8], f"@{moment / 1e9:.9f}"):
        assert desk.json("restore", "--at", at, "--dry-run")["snapshot"] == first["snapshot"]
    said = desk.done("restore", "--at", "2001-01-01 00:00", "--dry-run", status=ExitStatus.USAGE)
    assert first["snapshot"][:8] in said
    said = desk.done("restore", "--at", "2026-02-30 10:00", "--dry-run", status=ExitStatus.USAGE)
    assert "there is no day" in said
    assert not (tmp_path / "back").exists()


def test_one_path_comes_back(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    planned = desk.json("restore", "cur", "--to", str(tmp_path / "back"), "--dry-run")
    assert (planned["files"], planned["path"]) == (2, "cur")
    assert not (tmp_path / "back").exists()
    desk.done("restore", "cur", "--to", str(tmp_path / "back"))
    assert picture(tmp_path / "back") == picture(desk.mail / "cur")
    desk.done("restore", str(desk.mail / "cur/2.host:2,"), "--to", str(tmp_path / "one"))
    assert (tmp_path / "one" / "2.host:2,").read_text().startswith("Subject: two")


def test_a_tree_comes_back_alone(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "main.cf").write_text("myhostname = main\n")
    desk.done("vault", "backup", f"store={desk.mail}", f"config={tmp_path / 'etc'}")
    desk.done("restore", "--tree", "config", "--to", str(tmp_path / "back"))
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["main.cf"]
    said = desk.done("restore", "--tree", "queue", "--to", str(tmp_path / "none"), status=ExitStatus.USAGE)
    assert "Its trees: store, config" in said


def test_nothing_is_replaced_by_a_restore(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_text("mine")
    said = desk.done("restore", "--to", str(tmp_path / "back"), status=ExitStatus.REFUSED)
    assert "is not empty" in said
    assert os.listdir(tmp_path / "back") == ["mine"]
    said = desk.done("restore", "--to", str(desk.location / "back"), status=ExitStatus.REFUSED)
    assert "is inside the vault" in said
    assert "it would be refused" in desk.done("restore", "--to", str(tmp_path / "back"), "--dry-run")


def test_prune_shows_its_plan_and_asks(desk: Desk) -> None:
    made = [desk.backup()["snapshot"] for _ in range(3)]
    assert "say what to keep" in desk.done("vault", "prune", status=ExitStatus.USAGE)
    shown = desk.done("vault", "prune", "--keep-last", "1", "--dry-run")
    assert shown.count("DROP") == 2
    desk.done("vault", "prune", "--keep-last", "1", text="n\n", status=1)
    assert desk.json("vault", "list")["total"] == 3
    desk.done("vault", "prune", "--keep-last", "1", "--yes")
    assert [row["snapshot"] for row in desk.json("vault", "list")["snapshots"]] == made[2:]


def test_a_snapshot_is_dropped_by_name_and_the_others_stay(desk: Desk) -> None:
    made = [desk.backup()["snapshot"] for _ in range(3)]
    dropped = desk.json("vault", "prune", "--drop", made[1][:8], "--yes")["drop"]
    assert dropped == [made[1]]
    assert [row["snapshot"] for row in desk.json("vault", "list")["snapshots"]] == [made[0], made[2]]


def test_a_vault_does_not_back_itself_up(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.location = desk.mail / "backups" / "vault"
    desk.ready()
    said = desk.done("vault", "backup", str(desk.mail), status=ExitStatus.REFUSED)
    assert "--exclude '/backups/vault/'" in said
    desk.done("vault", "backup", str(desk.mail), "--exclude", "/backups/vault/")
    names = [entry["name"] for entry in desk.json("vault", "show", "backups")["entries"]]
    assert names == []


def test_a_second_backup_reads_only_what_is_new(desk: Desk) -> None:
    old = time.time() - 60
    desk.backup()
    time_settled = [path for path in desk.mail.rglob("*") if path.is_file()]
    for path in time_settled:
        os.utime(path, (old, old))
    desk.backup()
    made = desk.backup()
    assert made["added_bytes"] == 0


def test_results_for_programs_are_whole(desk: Desk) -> None:
    made = desk.backup()
    listed = desk.json("vault", "list")["snapshots"][0]
    shown = desk.json("vault", "show")
    assert made["snapshot"] == listed["snapshot"] == shown["snapshot"]
    assert made["files"] == listed["files"] == shown["files"] == 2
    assert desk.json("vault", "verify", "--all")["findings"] == []
    known = desk.json("vault", "list", "--vaults")
    assert [(one["vault"], one["location"]) for one in known] == [("vault", str(desk.location))]
    keys = desk.json("vault", "keys", "list")
    assert [one["identity_here"] for one in keys["recipients"]] == [True]


def test_a_reader_can_be_added_for_what_comes_later_and_for_what_is_there(desk: Desk, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    (tmp_path / "second.txt").write_text(f"{identity}\n")
    second = ("--identity", str(tmp_path / "second.txt"))
    first = desk.backup()["snapshot"]
    assert "old snapshots stay closed" in desk.done("vault", "keys", "add", recipient)
    desk.write("new/3.host", "Subject: three\n\nthird\n")
    desk.done("vault", "backup", str(desk.mail))
    assert "third" in desk.done("vault", "show", "new/3.host", *second)
    desk.done("vault", "show", "--at", first, *second, status=ExitStatus.WRONG_KEY)
    assert "can read what the vault holds" in desk.done("vault", "keys", "add", recipient, "--history")
    desk.done("restore", "--at", first, "--to", str(tmp_path / "back"), *second)
    assert desk.json("vault", "verify", "--all", *second)["findings"] == []
    desk.done("vault", "copy", "--new", str(tmp_path / "copy"))
    desk.done("restore", "--vault", str(tmp_path / "copy"), "--at", first, "--to", str(tmp_path / "too"), *second)
    desk.done("vault", "keys", "remove", recipient)
    recipients = json.loads((tmp_path / "vaults" / "vault.key").read_text())["recipients"]
    assert len(recipients) == 1
    assert "nobody could read" in desk.done("vault", "keys", "remove", recipients[0], status=ExitStatus.REFUSED)


def test_a_copy_is_opened_by_the_same_keys(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    copy = str(tmp_path / "copy")
    said = desk.done("vault", "copy", copy, status=ExitStatus.UNREACHABLE)
    assert "is not there" in said
    (tmp_path / "copy").mkdir()
    said = desk.done("vault", "copy", copy, status=ExitStatus.REFUSED)
    assert "say --new" in said
    assert not list((tmp_path / "copy").iterdir()), "a bare mount point stays bare"
    assert desk.json("vault", "copy", "--new", copy, "--dry-run")["new"] is True
    first = desk.json("vault", "copy", "--new", copy)
    assert (first["failures"], first["copied_objects"]) == ([], first["objects"])
    desk.write("new/3.host")
    desk.backup()
    assert 0 < desk.json("vault", "copy", copy, "--limit", "20M")["copied_objects"] < first["objects"]
    shutil.rmtree(desk.location)
    desk.done("restore", "--vault", copy, "--to", str(tmp_path / "back"))
    assert picture(tmp_path / "back" / "maildir") == picture(desk.mail)


def test_damage_is_not_copied(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    pack = next((desk.location / "packs").iterdir())
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-1] + b"x")
    copied = desk.json("vault", "copy", "--new", str(tmp_path / "copy"), status=ExitStatus.DIFFERENCES)
    assert [one["object"] for one in copied["failures"]] == [f"packs/{pack.name}"]


def test_a_pin_and_a_hold_are_listed_until_they_are_released(desk: Desk) -> None:
    first = desk.backup()["snapshot"]
    desk.backup()
    desk.done("vault", "pin", first[:8], "--why", "before the move")
    desk.done("vault", "hold", "cur", "--why", "case 17")
    kept = desk.json("vault", "list")["kept"]
    assert [(one["kind"], one["why"]) for one in kept] == [("pin", "before the move"), ("hold", "case 17")]
    assert (kept[1]["tree"], kept[1]["path"]) == ("maildir", "cur")
    assert "hold of maildir/cur (case 17)" in desk.done("vault", "list")
    for one in kept:
        desk.done("vault", "release", one["name"][:8])
    assert desk.json("vault", "list")["kept"] == []


def test_prune_pauses_when_much_was_deleted_until_somebody_accepts_it(desk: Desk) -> None:
    for number in range(200):
        desk.write(f"cur/m{number}.host:2,", f"Subject: {number}\n\n" + f"{number} " * 3000)
    desk.backup()
    desk.backup()
    shutil.rmtree(desk.mail / "cur")
    desk.write("cur/1.host:2,S")
    desk.backup()
    keep = ("vault", "prune", "--keep-last", "1")
    assert "the brake" in desk.done(*keep, "--dry-run", status=ExitStatus.REFUSED)
    said = desk.done(*keep, "--yes", status=ExitStatus.REFUSED)
    assert "--accept-loss" in said
    assert desk.json("vault", "list")["total"] == 3
    desk.done(*keep, "--yes", "--accept-loss")
    assert desk.json("vault", "list")["total"] == 1


def test_what_is_pinned_or_held_stays_through_a_prune(desk: Desk, tmp_path: Path) -> None:
    first = desk.backup()["snapshot"]
    desk.done("vault", "pin", first)
    desk.backup()
    desk.write("new/held.host")
    desk.backup()
    desk.done("vault", "hold", "new")
    (desk.mail / "new/held.host").unlink()
    last = desk.backup()["snapshot"]
    desk.done("vault", "prune", "--keep-last", "1", "--yes")
    listed = desk.json("vault", "list")
    assert [row["snapshot"] for row in listed["snapshots"]] == [first, last]
    (held,) = listed["held"]
    desk.done("restore", "--at", held[:8], "new", "--to", str(tmp_path / "back"))
    assert (tmp_path / "back" / "held.host").exists()
    assert "is pinned" in desk.done("vault", "prune", "--drop", first, "--yes", status=ExitStatus.REFUSED)


@pytest.mark.parametrize("location", ["", "s3:/bucket", "sftp:host/path", "ftp://host/path", "s3://"])
def test_what_is_no_place_is_said(tmp_path: Path, location: str) -> None:
    desk = Desk(tmp_path)
    assert "no place for a vault" in desk.done("vault", "init", location, status=ExitStatus.CONFIGURATION)
    assert not list((tmp_path / "vaults").glob("*"))


def test_a_vault_wants_a_folder_of_its_own(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("cur/1.host:2,S")
    said = desk.done("vault", "init", str(desk.mail), status=ExitStatus.REFUSED)
    assert f"{desk.mail}/backups" in said
    assert [path.name for path in desk.mail.iterdir()] == ["cur"]
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    desk.done("vault", "init", str(tmp_path / "disk"))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_damage_is_named_by_account_and_folder_and_repaired_from_files_and_from_a_copy(
    desk: Desk, tmp_path: Path
) -> None:
    root = desk.mail / "example.org" / "anna"
    for folder in ("cur", "new", "tmp", ".Projects/cur", ".Projects/new", ".Projects/tmp"):
        (root / folder).mkdir(parents=True)
    body = os.urandom(1500).hex()
    (root / ".Projects" / "cur" / "1.host:2,S").write_text(f"Subject: plan\n\n{body}\n")
    desk.backup()
    desk.done("vault", "copy", "--new", str(tmp_path / "copy"))
    pack = max((desk.location / "packs").iterdir(), key=lambda path: path.stat().st_size)
    _flip(pack, 600)
    found = desk.json("vault", "verify", "--all", status=ExitStatus.DIFFERENCES)["findings"]
    assert "anna@example.org, Projects" in {one["whose"] for one in found}
    assert "anna@example.org, Projects" in desk.done("vault", "verify", "--all", status=ExitStatus.DIFFERENCES)
    repaired = desk.json("vault", "verify", "--all", "--repair")
    assert repaired["findings"] == []
    assert repaired["repaired"]["contents"] > 0
    copy = str(tmp_path / "copy")
    shutil.move(desk.mail, tmp_path / "gone")
    for pack in (desk.location / "packs").iterdir():
        pack.unlink()
    mended = desk.json("vault", "verify", "--all", "--repair", "--copy", copy)
    assert mended["repaired"]["objects"]
    for pack in (desk.location / "packs").iterdir():
        pack.unlink()
    said = desk.done("vault", "verify", "--repair", status=ExitStatus.DIFFERENCES)
    assert f"vault copy --vault COPY {desk.location}" in said
    desk.done("vault", "copy", "--vault", copy, str(desk.location))
    assert desk.json("vault", "verify", "--all")["findings"] == []
    desk.done("restore", "--to", str(tmp_path / "back"))
    assert picture(tmp_path / "back" / "maildir") == picture(tmp_path / "gone")


def test_every_night_a_part_is_read_until_all_was(desk: Desk) -> None:
    desk.backup()
    assert desk.json("vault", "verify")["never_read_bytes"] > 0
    assert desk.json("vault", "verify", "--days", "1")["never_read_bytes"] == 0
    assert "all data were read" in desk.done("vault", "verify", "--days", "30")


def test_a_second_machine_connects_to_a_vault_and_forgets_it(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    second = Desk(tmp_path / "second")
    second.base.mkdir()
    keys = ("--key", str(tmp_path / "vaults" / "vault.key"), "--identity", str(tmp_path / "vaults" / "vault.identity"))
    wrong = tmp_path / "wrong"
    wrong.write_text(str(pyrage.x25519.Identity.generate()))
    second.done("vault", "connect", str(desk.location), "--identity", str(wrong), status=ExitStatus.WRONG_KEY)
    assert second.json("vault", "connect", str(desk.location), "--name", "main", *keys)["snapshots"] == 1
    second.done("restore", "--to", str(tmp_path / "back"))
    second.done("vault", "backup", str(desk.mail))
    second.done("vault", "forget", "main")
    second.done("vault", "list", status=ExitStatus.CONFIGURATION)
    assert desk.json("vault", "list")["total"] == 2


def test_a_vault_on_the_disk_of_the_mail_is_remarked(desk: Desk) -> None:
    assert "on the same disk as the tree maildir" in desk.done("vault", "backup", str(desk.mail))


def test_a_broken_configuration_does_not_stand_in_the_way_of_a_restore(desk: Desk, tmp_path: Path) -> None:
    desk.backup()
    (tmp_path / "holdfast.toml").write_text("this is no [toml")
    said = desk.done("restore", "--to", str(tmp_path / "back"))
    assert "is not valid TOML" in said
    stranger = Desk(tmp_path / "stranger")
    stranger.base.mkdir()
    (stranger.base / "holdfast.toml").write_text("this is no [toml")
    stranger.done("restore", "--to", str(tmp_path / "no"), status=ExitStatus.CONFIGURATION)
    keys = ("--vault", str(desk.location), "--identity", str(tmp_path / "vaults" / "vault.identity"))
    stranger.done("restore", *keys, "--to", str(tmp_path / "too"))


def test_the_age_of_the_newest_snapshot_is_an_alarm(desk: Desk, tmp_path: Path) -> None:
    assert "stand still" in desk.done("vault", "list", "--max-age", "1h", status=ExitStatus.DIFFERENCES)
    desk.backup()
    desk.done("vault", "list", "--max-age", "1h")
    (tmp_path / "vaults" / "vault.identity").unlink()
    assert len(desk.json("vault", "list", "--max-age", "2d")["snapshots"]) == 1
    desk.done("vault", "list", "--max-age", "soon", status=ExitStatus.USAGE)


def test_a_copy_of_the_identity_on_a_stick_counts_as_kept_elsewhere(desk: Desk, tmp_path: Path) -> None:
    identity = tmp_path / "vaults" / "vault.identity"
    desk.done("vault", "keys", "check", "--identity", str(identity))
    assert desk.backup()["identity_only_here"] is True, "the file itself proves nothing"
    stick = tmp_path / "stick.txt"
    shutil.copy(identity, stick)
    assert "Noted" in desk.done("vault", "keys", "check", "--identity", str(stick))
    assert desk.backup()["identity_only_here"] is False


def test_keys_for_a_password_manager(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "keys.json"
    desk.done("vault", "keys", "export", "--out", str(out))
    kept = json.loads(out.read_text())
    assert out.stat().st_mode & 0o077 == 0
    assert kept["location"] == str(desk.location)
    assert kept["identities"][0] in (tmp_path / "vaults" / "vault.identity").read_text()
    assert kept["writer_key"] == json.loads((tmp_path / "vaults" / "vault.key").read_text())
    assert "is there already" in desk.done("vault", "keys", "export", "--out", str(out), status=ExitStatus.REFUSED)
