"""Certificates: what they say, who may read the keys, and a changeover in which nobody is refused."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.changes.names import MachineName
from holdfast.errors import ConfigurationError
from holdfast.log.trust import WARNING_DAYS, Authority, Role, TlsFiles, describe

MAIN, BACKUP = MachineName("main"), MachineName("backup")


def shake_hands(server: TlsFiles, client: TlsFiles, name: str = "192.0.2.1") -> None:
    """A TLS handshake with certificates on both sides, in memory. Raises ssl.SSLError."""

    def side(files: TlsFiles, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.trust)
        context.load_cert_chain(files.certificate, files.key)
        return context

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = side(client, ssl.PROTOCOL_TLS_CLIENT).wrap_bio(to_client, to_server, server_hostname=name)
    two = side(server, ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_server, to_client, server_side=True)
    done = {one: False, two: False}
    for _ in range(10):
        for end in (one, two):
            try:
                end.do_handshake()
                done[end] = True
            except ssl.SSLWantReadError:
                continue
    assert all(done.values())


def test_a_certificate_says_machine_role_and_addresses(tmp_path: Path) -> None:
    authority = Authority.create("site", tmp_path / "ca")
    addresses = ["192.0.2.1", "2001:db8::1", "Main.Example.org"]
    files = authority.issue(MAIN, addresses, 30, role=Role.RELAY).write(tmp_path / "main")
    said = describe(files.certificate)
    assert said.machine == "main"
    assert said.roles == ("relay", "server")
    assert set(said.addresses) == {"192.0.2.1", "2001:db8::1", "main", "main.example.org"}
    now = datetime.now(UTC)
    assert 29 < said.days_left(now) <= 30
    assert said.warning(now) is not None
    assert "expired" in (said.warning(now + timedelta(days=31)) or "")
    assert "check the clock" in (said.warning(now - timedelta(days=1)) or "")
    assert files.steward is not None
    assert describe(files.steward).roles == ("steward",)
    long = authority.issue(MAIN, addresses, WARNING_DAYS + 10).write(tmp_path / "long")
    assert describe(long.certificate).warning(now) is None


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    files = Authority.create("site", tmp_path / "ca").issue(MAIN, ["192.0.2.1"]).write(tmp_path / "main")
    for key in (files.key, tmp_path / "ca" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    (tmp_path / "ca" / "ca.key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="can be read by others"):
        Authority(tmp_path / "ca")


def test_names_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    authority = Authority.create("site", tmp_path / "ca")
    with pytest.raises(ConfigurationError):
        Authority.create("site", tmp_path / "ca")
    with pytest.raises(ConfigurationError):
        authority.issue(MachineName("Main!"), ["192.0.2.1"])
    for address in ("*.example.org", "a b", "", "-x", "holdfast:role/mail"):
        with pytest.raises(ConfigurationError):
            authority.issue(MAIN, [address])


def test_in_every_step_of_a_changeover_all_machines_trust_each_other(tmp_path: Path) -> None:
    """Between any two steps some machines have been issued anew and others not yet."""
    folder = tmp_path / "ca"
    authority = Authority.create("site", folder)
    old = authority.issue(MAIN, ["192.0.2.1"]).write(tmp_path / "0")

    def step(number: int, before: TlsFiles) -> TlsFiles:
        after = Authority(folder).issue(BACKUP, ["192.0.2.1"]).write(tmp_path / str(number))
        shake_hands(before, after)
        shake_hands(after, before)
        return after

    authority.rotate()
    both_trusted = step(1, old)
    Authority(folder).rotate()
    authority.sign_with_new()
    by_new = step(2, both_trusted)
    authority.retire()
    only_new = step(3, by_new)
    with pytest.raises(ssl.SSLError):
        shake_hands(only_new, old)
    with pytest.raises(ConfigurationError):
        authority.sign_with_new()
    again = Authority(folder)
    again.rotate()
    assert again.trust().count(b"BEGIN CERTIFICATE") == 2


def test_a_changeover_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    """sign_with_new dies after the key was replaced and before the certificate was."""
    folder = tmp_path / "ca"
    authority = Authority.create("site", folder)
    authority.rotate()
    old_certificate = (folder / "ca.pem").read_bytes()
    waiting = (folder / "next.pem").read_bytes()
    authority.sign_with_new()
    (folder / "ca.pem").write_bytes(old_certificate)
    (folder / "next.pem").write_bytes(waiting)
    healed = Authority(folder)
    assert (folder / "ca.pem").read_bytes() == waiting
    files = healed.issue(MAIN, ["192.0.2.1"]).write(tmp_path / "main")
    shake_hands(files, files)


def test_another_site_is_not_trusted(tmp_path: Path) -> None:
    ours = Authority.create("ours", tmp_path / "ours").issue(MAIN, ["192.0.2.1"]).write(tmp_path / "a")
    theirs = Authority.create("theirs", tmp_path / "theirs").issue(MAIN, ["192.0.2.1"]).write(tmp_path / "b")
    with pytest.raises(ssl.SSLError):
        shake_hands(ours, theirs)


def test_an_authority_past_its_end_issues_nothing(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=4000)
    authority = Authority.create("site", tmp_path / "ca", now=long_ago)
    with pytest.raises(ConfigurationError, match="expired"):
        authority.issue(MAIN, ["192.0.2.1"])
