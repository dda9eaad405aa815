"""A mail server that may only add: with its keys in wrong hands, what was backed up stays, and others read it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus
from holdfast.vault.location import open_backend
from tests.console.vault_site import Desk
from tests.vault.backends import servers
from tests.vault.site import picture


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Two locations of one vault: for who may add, and for its owner."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with servers.moto(tmp_path) as server:
        assert server.add_only is not None
        locations = []
        for name, keys in (("writer", server.add_only), ("owner", server.keys)):
            file = tmp_path / name
            file.write_text(f"AWS_ACCESS_KEY_ID={keys[0]}\nAWS_SECRET_ACCESS_KEY={keys[1]}\n")
            options = f"endpoint={server.endpoint}&region=us-east-1&credentials={file}"
            locations.append(f"s3://{servers.BUCKET}/mail?{options}")
        yield locations[0], locations[1]


@pytest.fixture
def sftp() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0 or not servers.SSHD.exists():
        pytest.skip("needs root and Debian's openssh-server")
    with tempfile.TemporaryDirectory() as folder, servers.sshd(Path(folder)) as server:
        address = f"{servers.APPEND_ONLY_USER}@127.0.0.1:{server.port}{server.add_only}/vault"
        yield f"sftp://{address}?key={server.key}&known_hosts={server.known_hosts}", str(server.add_only / "vault")


def digests(location: str) -> dict[str, str]:
    backend = open_backend(location)
    try:
        return {one.name: hashlib.sha256(backend.get(one.name)).hexdigest() for one in list(backend.list(""))}
    finally:
        backend.close()


@pytest.mark.system
@pytest.mark.parametrize("store", ["s3", "sftp"])
def test_who_has_the_mail_servers_keys_cannot_take_anything_away(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    writer, owner = request.getfixturevalue(store)
    desk = Desk(tmp_path)
    desk.write("cur/1.host:2,S")
    assert desk.json("vault", "init", writer, "--name", "far")["may_delete"] is False
    first = desk.backup()
    mail = picture(desk.mail)
    before = digests(owner)
    desk.write("cur/1.host:2,S", "encrypted by somebody")
    desk.backup()
    desk.done("vault", "prune", "--drop", first["snapshot"], "--yes", status=ExitStatus.REFUSED)
    desk.done("vault", "prune", "--keep-last", "1", "--yes", status=ExitStatus.REFUSED)
    now = digests(owner)
    assert {name: now.get(name) for name in before} == before
    desk.done("restore", "--vault", owner, "--at", first["snapshot"], "--to", str(tmp_path / "back"))
    assert picture(tmp_path / "back" / "maildir") == mail
    desk.done("vault", "prune", "--vault", owner, "--drop", first["snapshot"], "--yes")
    assert desk.json("vault", "list")["total"] == 1
