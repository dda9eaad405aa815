"""The services together: started at once, their trees, and what is configuration."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast.errors import ConfigurationError
from holdfast.mail.commands import SystemCommands
from holdfast.mail.config_tree import config_trees
from holdfast.mail.outputs import OutputSpec
from holdfast.mail.port import Protection, ServiceFailed
from holdfast.mail.settings import DovecotSettings, MailSettings, PostfixSettings, RadicaleSettings
from holdfast.mail.site import MailSite
from holdfast.trees.spec import Tree, TreeSpec
from tests.mail.boxes import NO_SYSTEMD, PASSWORD, USER, DovecotBox, PostfixBox, RadicaleBox, probe_settings
from tests.mail.test_dovecot_files import copy

needs_daemons = pytest.mark.skipif(os.geteuid() != 0, reason="mail daemons need root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in /tmp: what a configuration names there is not copied."""
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def site_in(folder: Path) -> MailSite:
    for name in ("d", "p", "r"):
        (folder / name).mkdir()
    dovecot, postfix, radicale = DovecotBox(folder / "d"), PostfixBox(folder / "p"), RadicaleBox(folder / "r")
    (folder / "state").mkdir()
    settings = MailSettings(
        services=("radicale", "dovecot", "postfix"),
        state_directory=str(folder / "state"),
        probe=probe_settings(folder),
        outputs=(OutputSpec(name="dump", argv=("true",)),),
        dovecot=DovecotSettings(config=str(dovecot.config)),
        postfix=PostfixSettings(config_directory=str(postfix.config), overrides=str(folder / "own.cf")),
        radicale=RadicaleSettings(config=str(radicale.config)),
    )
    return MailSite(settings, SystemCommands(), systemd=NO_SYSTEMD)


@pytest.mark.system
@needs_daemons
async def test_all_start_at_once_answer_and_stop(folder: Path) -> None:
    site = site_in(folder)
    assert list(site.services) == ["postfix", "dovecot", "radicale"]
    await site.prepare()
    try:
        began = time.monotonic()
        await site.start()
        seconds = time.monotonic() - began
        results = await site.probe("127.0.0.1")
        print(f"three services started in {seconds:.2f} s, {[round(r.latency_seconds, 3) for r in results]}")
        assert all(result.ok for result in results), results
        assert await site.running() == {"postfix": True, "dovecot": True, "radicale": True}
        began = time.monotonic()
        await site.stop()
        assert time.monotonic() - began < 4
        assert not any((await site.running()).values())
    finally:
        await site.stop(force=True)


@pytest.mark.system
@needs_daemons
async def test_a_service_that_does_not_start_is_named_and_the_others_run(folder: Path) -> None:
    site = site_in(folder)
    await site.prepare()
    (folder / "r" / "radicale" / "config").write_text("[server]\nhosts = 127.0.0.1:1\n[nonsense]\nx = y\n")
    try:
        with pytest.raises(ServiceFailed, match="radicale"):
            await site.start()
        running = await site.running()
        assert running["dovecot"]
        assert running["postfix"]
    finally:
        await site.stop(force=True)


@pytest.mark.system
@needs_daemons
async def test_the_trees_of_a_site(folder: Path) -> None:
    site = site_in(folder)
    found = await site.protection()
    trees = {tree.name: tree for tree in found.trees}
    assert {"store", "groupware", "software", "outputs"} <= trees.keys()
    assert trees["store"].root == f"{folder}/d/store"
    assert found.rendered == (f"{folder}/p/postfix/main.cf",)
    config = [tree for tree in found.trees if tree.name.startswith("config")]
    for path in ("d/dovecot/users", "p/postfix/main.cf", "r/radicale/config"):
        assert any(tree.root == str((folder / path).parent) for tree in config)


@pytest.mark.system
@needs_daemons
async def test_sync_tokens_of_calendars_outlive_a_takeover(folder: Path) -> None:
    """Radicale begins an item's history with random data: without it, a client's token is refused on the copy."""
    first, second = RadicaleBox(folder / "first"), RadicaleBox(folder / "second")

    def request(box: RadicaleBox, method: str, path: str, body: str = "") -> tuple[int, str]:
        secret = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{box.port}/{USER}/{path}",
            data=body.encode(),
            method=method,
            headers={"Authorization": f"Basic {secret}", "Content-Type": "text/calendar"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def sync(box: RadicaleBox, token: str) -> tuple[int, str]:
        body = (
            f'<sync-collection xmlns="DAV:"><sync-token>{token}</sync-token><prop><getetag/></prop></sync-collection>'
        )
        return request(box, "REPORT", "cal/", body)

    event = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nBEGIN:VEVENT\r\nUID:{0}\r\nDTSTAMP:20260101T000000Z\r\n"
    event += "DTSTART:20260101T000000Z\r\nSUMMARY:{0}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    await first.service.start()
    try:
        assert request(first, "MKCALENDAR", "cal/")[0] == 201
        for name in ("a", "b"):
            assert request(first, "PUT", f"cal/{name}.ics", event.format(name))[0] == 201
        status, answer = sync(first, "")
        assert status == 207
        found = re.search(r"<sync-token>([^<]+)", answer)
        assert found is not None
        [spec] = (await first.service.protection()).trees
        left_out = copy(spec, second.storage)
        await second.service.start()
        assert request(second, "PUT", "cal/c.ics", event.format("c"))[0] == 201
        status, answer = sync(second, found[1])
    finally:
        await first.service.stop(force=True)
        await second.service.stop(force=True)
    assert status == 207, answer
    assert "c.ics" in answer
    assert "a.ics" not in answer
    assert left_out <= {".Radicale.lock", "item/"}


def test_configuration_is_what_is_named_and_its_link_targets_but_not_what_makes_the_machine(folder: Path) -> None:
    etc = folder / "etc"
    for name in ("postfix", "dovecot/private", "ssl/private", "letsencrypt/live/m", "rspamd"):
        (etc / name).mkdir(parents=True)
    (etc / "ssl/private/mail.key").write_text("")
    (etc / "dovecot/private/dovecot.key").symlink_to(etc / "ssl/private/mail.key")
    names = ("postfix", "dovecot", "dovecot/private/dovecot.key", "aliases", "letsencrypt/live/m/key.pem")
    own = ("passwd", "hosts", "ssl/certs", "ssl/certs/ca-certificates.crt", "holdfast/secret", "")
    other = folder / "opt/mail"
    other.mkdir(parents=True)
    paths = [*(str(etc / name) for name in (*names, *own)), str(other), str(folder / "srv/users")]
    protection = Protection(
        config_paths=tuple(paths),
        config_exclude=(str(etc / "postfix/virtual.db"),),
        overrides=(str(etc / "postfix/own"),),
    )
    trees = config_trees([protection], MailSettings(), [], etc=str(etc))
    config = trees[0]
    assert (config.name, config.root) == ("config", str(etc))
    assert set(config.include) == {"aliases", "dovecot", "letsencrypt", "postfix", "rspamd", "ssl/private/mail.key"}
    tree = Tree(config)
    assert tree.excluded(b"postfix/virtual.db", directory=False)
    assert tree.excluded(b"postfix/own", directory=False)
    assert not tree.excluded(b"postfix/virtual", directory=False)
    assert [(t.name, t.root, t.include) for t in trees[1:]] == [
        ("config-2", str(other), ()),
        ("config-3", str(folder / "srv"), ("users",)),
    ]


async def test_two_trees_of_one_name_are_refused(tmp_path: Path) -> None:
    extra = TreeSpec(name="software", root=str(tmp_path))
    settings = MailSettings(services=(), state_directory=str(tmp_path), trees=(extra,))
    site = MailSite(settings, SystemCommands(), systemd=NO_SYSTEMD)
    with pytest.raises(ConfigurationError, match="software"):
        await site.protection()


def test_unknown_keys_in_the_mail_table_are_named() -> None:
    with pytest.raises(msgspec.ValidationError, match="copy_cash"):
        msgspec.convert({"copy_cash": True}, MailSettings)
    with pytest.raises(msgspec.ValidationError, match="services"):
        msgspec.convert({"services": ["exim"]}, MailSettings)


async def test_under_systemd_units_are_used_and_a_hanging_systemctl_does_not_hold_up_fencing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``systemctl`` here is a script that writes down what it is asked and then hangs."""
    said = tmp_path / "said"
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\ncase $1 in start) exit 1;; esac\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "systemd").mkdir()
    config = tmp_path / "config"
    config.write_text("[server]\nhosts = 127.0.0.1:1\n")
    settings = MailSettings(
        services=("radicale",),
        state_directory=str(tmp_path),
        radicale=RadicaleSettings(config=str(config), command=(sys.executable, "-c", "")),
    )
    site = MailSite(settings, SystemCommands(), systemd=tmp_path / "systemd")
    began = time.monotonic()
    await site.stop(force=True)
    assert time.monotonic() - began < 4
    with pytest.raises(ServiceFailed, match=r"systemctl start radicale\.service: exit status 1"):
        await site.start()
    assert said.read_text().splitlines() == ["stop radicale.service", "start radicale.service"]
