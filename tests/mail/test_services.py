"""The real Dovecot, Postfix and Radicale: started, questioned, stopped, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import smtplib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imapclient
import pytest

from holdfast.mail import processes
from holdfast.mail.port import Service
from tests.mail.boxes import PASSWORD, USER, DovecotBox, PostfixBox, RadicaleBox

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mail daemons need root")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because Dovecot's sockets stand in it, and open to the users the daemons run as."""
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["dovecot", "postfix", "radicale"])
def box(request: pytest.FixtureRequest, folder: Path) -> Iterator[DovecotBox | PostfixBox | RadicaleBox]:
    kinds: dict[str, type[DovecotBox] | type[PostfixBox] | type[RadicaleBox]]
    kinds = {"dovecot": DovecotBox, "postfix": PostfixBox, "radicale": RadicaleBox}
    made = kinds[request.param](folder)
    yield made
    asyncio.run(made.service.stop(force=True))


def port_of(box: DovecotBox | PostfixBox | RadicaleBox) -> int:
    return box.imap_port if isinstance(box, DovecotBox) else box.port


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_it_starts_answers_and_stops_and_each_step_may_be_repeated(
    box: DovecotBox | PostfixBox | RadicaleBox,
) -> None:
    service: Service = box.service
    await service.prepare()
    assert not await service.running()
    assert not (await service.probe("127.0.0.1")).ok
    for _ in range(2):
        await service.start()
        assert await service.running()
        result = await service.probe("127.0.0.1")
        assert result.ok, result
        assert USER in result.words
    for _ in range(2):
        await service.stop()
        assert not await service.running()
        assert refuses(port_of(box))
    assert await service.version()


async def test_a_forced_stop_leaves_no_process_and_no_client(box: DovecotBox | PostfixBox | RadicaleBox) -> None:
    await box.service.prepare()
    await box.service.start()
    with socket.create_connection(("127.0.0.1", port_of(box)), timeout=5) as client:
        if not isinstance(box, RadicaleBox):
            assert client.recv(1000)
        began = time.monotonic()
        await box.service.stop(force=True)
        assert time.monotonic() - began < 1.0
        assert refuses(port_of(box))
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1000) == b""
    await box.service.start()
    assert (await box.service.probe("127.0.0.1")).ok


async def test_it_starts_again_after_its_master_was_killed_alone(box: DovecotBox | PostfixBox | RadicaleBox) -> None:
    await box.service.prepare()
    await box.service.start()
    files = {"dovecot": "run/master.pid", "postfix": "queue/pid/master.pid", "radicale": "state/mail/radicale.pid"}
    pid = processes.pid_in_file(box.folder / files[box.service.name])
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while processes.seen(pid) is not None:
        assert time.monotonic() < deadline
    await box.service.start()
    assert (await box.service.probe("127.0.0.1")).ok


async def test_a_lock_that_outlived_a_power_cut_does_not_hold_the_start_up(folder: Path) -> None:
    box = DovecotBox(folder)
    (folder / "run" / "state").mkdir(parents=True)
    (folder / "run" / "state" / "instances.lock").write_text("1:elsewhere")
    (folder / "run" / "master.pid").write_text("1\n")
    await box.service.start()
    try:
        assert (await box.service.probe("127.0.0.1")).ok
    finally:
        await box.service.stop(force=True)


async def test_a_daemon_inherits_no_limit_from_the_command_that_started_it(folder: Path) -> None:
    box = DovecotBox(folder)
    await box.service.start()
    try:
        limits = Path(f"/proc/{processes.pid_in_file(folder / 'run/master.pid')}/limits").read_text()
        assert re.search(r"Max file size +unlimited +unlimited", limits)
    finally:
        await box.service.stop(force=True)


async def test_a_stop_ends_sessions_of_logged_in_clients(folder: Path) -> None:
    """Dovecot's mail processes would outlive their master; fenced machines must not serve them."""
    box = DovecotBox(folder)
    await box.service.start()
    client: Any = imapclient.IMAPClient("127.0.0.1", port=box.imap_port, ssl=False, timeout=5)
    client.login(USER, PASSWORD)
    client.select_folder("INBOX")
    began = time.monotonic()
    await box.service.stop()
    assert time.monotonic() - began < 2.0
    with pytest.raises((imapclient.exceptions.IMAPClientError, OSError)):
        client.noop()


async def test_a_configuration_broken_while_running_does_not_prevent_the_stop(folder: Path) -> None:
    box = DovecotBox(folder)
    await box.service.start()
    box.config.write_text("this is { not a configuration\n")
    await box.service.stop(force=True)
    assert refuses(box.imap_port)
    assert not (await box.service.check()).ok


async def test_a_wrong_password_is_a_failed_probe_that_says_so(folder: Path) -> None:
    box = DovecotBox(folder)
    (folder / "probe-password").write_text("wrong\n")
    await box.service.start()
    try:
        result = await box.service.probe("127.0.0.1")
    finally:
        await box.service.stop(force=True)
    assert not result.ok
    assert "login of alice@example.org" in result.words
    assert "wrong" not in result.words


async def test_reload_keeps_the_listener(folder: Path) -> None:
    box = DovecotBox(folder)
    await box.service.start()
    try:
        await box.service.reload()
        assert (await box.service.probe("127.0.0.1")).ok
    finally:
        await box.service.stop(force=True)


@pytest.mark.parametrize("driver", ["maildir", "sdbox", "mdbox"])
async def test_discovery_finds_format_store_and_accounts(folder: Path, driver: str) -> None:
    box = DovecotBox(folder, driver)
    found = await box.service.layout()
    assert (found.syntax, set(found.drivers), found.base_directory) == ("2.3", {driver}, f"{folder}/run")
    assert found.roots == (str(box.store),)
    assert [(listener.name, listener.port) for listener in found.listeners] == [("imap", box.imap_port)]
    protection = await box.service.protection()
    assert [(tree.name, tree.root) for tree in protection.trees] == [("store", str(box.store))]
    assert str(box.config.parent) in protection.config_paths
    assert await box.service.accounts() == ("alice@example.org", "bob@example.org")


async def test_indexes_and_control_files_outside_the_store_come_into_the_same_tree(folder: Path) -> None:
    location = f"maildir:~/Maildir:INDEX={folder}/index/%d/%n:CONTROL={folder}/control/%u"
    tree = (await DovecotBox(folder, location=location).service.protection()).trees
    assert [(t.name, t.root, t.include) for t in tree] == [("store", str(folder), ("control", "index", "store"))]


class SlowMailbox(threading.Thread):
    """An LMTP server (RFC 2033) that takes a message and answers only when told."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.taken = threading.Event()
        self.answer = threading.Event()
        self.delivered = 0

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rwb", buffering=0) as lines:
                self._serve(lines)

    def _serve(self, lines: Any) -> None:
        lines.write(b"220 slow LMTP\r\n")
        in_data = False
        for line in lines:
            if in_data:
                if line == b".\r\n":
                    in_data = False
                    self.delivered += 1
                    self.taken.set()
                    self.answer.wait(10)
                    lines.write(b"250 delivered\r\n")
            elif line.upper().startswith(b"DATA"):
                in_data = True
                lines.write(b"354 go on\r\n")
            else:
                lines.write(b"250 yes\r\n")


async def test_a_planned_stop_lets_a_delivery_end_so_that_it_is_not_done_twice(folder: Path) -> None:
    mailbox = SlowMailbox()
    mailbox.start()
    box = PostfixBox(folder)
    with (box.config / "main.cf").open("a") as main:
        main.write(f"local_transport = lmtp:inet:127.0.0.1:{mailbox.port}\n")
    await box.service.prepare()
    await box.service.start()
    try:
        with smtplib.SMTP("127.0.0.1", box.port, timeout=10) as client:
            client.sendmail("a@example.net", ["alice@example.org"], "Subject: once\r\n\r\nx\r\n")
        assert mailbox.taken.wait(10)
        asyncio.get_running_loop().call_later(0.3, mailbox.answer.set)
        await box.service.stop()
        assert not await box.service.running()
        await box.service.start()
        queues = [folder / "queue" / name for name in ("incoming", "active", "deferred")]
        deadline = time.monotonic() + 10
        while any(path.is_file() for queue in queues for path in queue.rglob("*")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert mailbox.delivered == 1
    finally:
        await box.service.stop(force=True)


async def test_postfix_is_checked_and_a_missing_certificate_named(folder: Path) -> None:
    box = PostfixBox(folder)
    result = await box.service.check()
    assert any("elsewhere/cert.pem is not there" in error for error in result.errors)


async def test_postfix_tables_are_compiled_when_their_source_changed_whatever_its_time(folder: Path) -> None:
    box = PostfixBox(folder)
    assert {f"compiled hash:{box.config}/{name}" for name in ("aliases", "virtual")} <= set(await box.service.prepare())
    assert await box.service.prepare() == ()
    source = box.config / "virtual"
    source.write_text("postmaster@example.org bob@example.org\n")
    os.utime(source, (1, 1))  # as copied from a machine whose clock is behind
    assert await box.service.prepare() == (f"compiled hash:{source}",)
    (box.config / "aliases.db").unlink()
    assert await box.service.prepare() == (f"compiled hash:{box.config}/aliases",)


async def test_own_values_are_put_into_main_cf_and_taken_out_exactly(folder: Path) -> None:
    box = PostfixBox(folder)
    main = box.config / "main.cf"
    shared = main.read_bytes()
    Path(box.settings.overrides).write_text("myhostname = second.example.org\nsmtp_bind_address = 127.0.0.1\n")
    assert any("2 values" in sentence for sentence in await box.service.prepare())
    assert await box.service.prepare() == ()
    found = await box.service.layout()
    assert found.settings["myhostname"] == "second.example.org"
    assert found.settings["smtp_bind_address"] == "127.0.0.1"
    assert not (await box.service.check()).warnings
    Path(box.settings.overrides).unlink()
    await box.service.prepare()
    assert main.read_bytes() == shared


async def test_warming_a_standby_compiles_tables_and_leaves_the_copied_files_alone(folder: Path) -> None:
    box = PostfixBox(folder)
    Path(box.settings.overrides).write_text("myhostname = second.example.org\n")
    shared = (box.config / "main.cf").read_bytes()
    assert f"compiled hash:{box.config}/virtual" in await box.service.warm()
    assert await box.service.warm() == ()
    assert (box.config / "main.cf").read_bytes() == shared


async def test_postfix_names_what_it_needs_and_leaves_compiled_tables_out(folder: Path) -> None:
    box = PostfixBox(folder)
    protection = await box.service.protection()
    assert str(box.config) in protection.config_paths
    assert f"{folder}/elsewhere/cert.pem" in protection.config_paths
    assert set(protection.config_exclude) == {f"{box.config}/aliases.db", f"{box.config}/virtual.db"}
    assert protection.rendered == (f"{box.config}/main.cf",)
    assert not any(str(folder / "queue") in path for path in protection.config_paths)
