"""A bucket with object lock: who holds the mail server's keys destroys nothing of what was backed up."""

from __future__ import annotations

import http.client
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from holdfast.vault import backup, restore
from holdfast.vault.backends.s3 import S3Backend, S3Keys
from holdfast.vault.keep import KeepRules
from holdfast.vault.keys import WriterKey
from holdfast.vault.port import BackendRefused
from holdfast.vault.prune import execute_prune, plan_prune
from holdfast.vault.repository import Vault, init_vault, open_vault
from holdfast.vault.verify import EVERYTHING, verify
from tests.vault import site
from tests.vault.backends import servers


class Locked(NamedTuple):
    """*owner*: an administrator's client; *intruder*: one with the mail server's keys."""

    bucket: str
    store: S3Backend
    owner: Any
    intruder: Any
    key: WriterKey
    root: Path


def _client(server: servers.S3Server, keys: tuple[str, str]) -> Any:
    import boto3  # type: ignore[import-untyped, unused-ignore]

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
    )


class _Translator(BaseHTTPRequestHandler):
    """Before moto, which takes ``x-amz-sdk-checksum-algorithm`` only. Amazon takes any ``x-amz-checksum-`` header for
    an object under retention, and says so where there is none."""

    protocol_version = "HTTP/1.1"
    port = 0

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers.items())
        if "x-amz-checksum-sha256" in self.headers:
            headers["x-amz-sdk-checksum-algorithm"] = "SHA256"
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        line.request(self.command, self.path, body, headers)
        answer = line.getresponse()
        content = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        line.close()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Not to the terminal."""


@pytest.fixture(scope="module")
def amazon(moto: servers.S3Server) -> Iterator[str]:
    """The endpoint of the translator."""
    handler = type("Handler", (_Translator,), {"port": moto.port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def locked(moto: servers.S3Server, amazon: str, tmp_path: Path) -> Locked:
    """Two snapshots, made with keys that may only add."""
    assert moto.add_only is not None
    owner, bucket = _client(moto, moto.keys), f"locked-{secrets.token_hex(4)}"
    owner.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}}
    owner.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    store = S3Backend(bucket, "", S3Keys(*moto.add_only), endpoint=amazon)
    root = site.make_store(tmp_path / "store", accounts=3, messages=4)
    key = init_vault(store, (site.RECIPIENT,))
    with _opened(store, key) as vault:
        clocks = site.clocks()
        backup.backup_trees(vault, [site.tree(root)], "main", clocks=clocks)
        (root / "user0" / "later").write_bytes(b"later")
        backup.backup_trees(vault, [site.tree(root)], "main", clocks=clocks)
    return Locked(bucket, store, owner, _client(moto, moto.add_only), key, root)


def _opened(store: S3Backend, key: WriterKey) -> Vault:
    return open_vault(store, writer=key, identities=(site.IDENTITY,))


def _names(locked: Locked) -> list[str]:
    return sorted(found.name for found in locked.store.list(""))


def test_nothing_can_be_deleted_and_prune_says_so(locked: Locked) -> None:
    before = _names(locked)
    for name in before:
        with pytest.raises(BackendRefused, match=f"{name} cannot be deleted"):
            locked.store.delete(name)
    with _opened(locked.store, locked.key) as vault:
        oldest = vault.snapshots()[0]
        plan = plan_prune(vault, KeepRules(), drop=(oldest,))
        assert plan.drop == (oldest,)
        with pytest.raises(BackendRefused, match=f"{oldest.name} cannot be deleted: 403"):
            execute_prune(vault, plan, accept_loss=True)
    assert set(before) <= set(_names(locked))
    with _opened(locked.store, locked.key) as vault:
        assert len(vault.snapshots()) == 2
        assert verify(vault, EVERYTHING).findings == []


def test_versions_cannot_be_deleted_and_what_was_laid_over_them_can_be_taken_away(
    locked: Locked, tmp_path: Path
) -> None:
    """An account that could put without a condition lays other bytes over everything; an administrator undoes it."""
    versions = locked.owner.list_object_versions(Bucket=locked.bucket)["Versions"]
    for version in versions:
        locked.intruder.put_object(Bucket=locked.bucket, Key=version["Key"], Body=b"gone")
        with pytest.raises(locked.intruder.exceptions.ClientError, match="AccessDenied"):
            locked.intruder.delete_object(Bucket=locked.bucket, Key=version["Key"], VersionId=version["VersionId"])
    original = {version["VersionId"] for version in versions}
    for version in locked.owner.list_object_versions(Bucket=locked.bucket)["Versions"]:
        if version["VersionId"] not in original:
            locked.owner.delete_object(
                Bucket=locked.bucket,
                Key=version["Key"],
                VersionId=version["VersionId"],
                BypassGovernanceRetention=True,
            )
    with _opened(locked.store, locked.key) as vault:
        assert verify(vault, EVERYTHING).findings == []
        snapshot = vault.snapshot(vault.find_snapshot("latest"))
        restore.restore_path(vault, snapshot.tree("store"), b"", tmp_path / "out")
    assert site.picture(tmp_path / "out") == site.picture(locked.root)


def test_a_version_under_retention_is_not_deleted_by_its_owner_either(locked: Locked) -> None:
    version = locked.owner.list_object_versions(Bucket=locked.bucket)["Versions"][0]
    with pytest.raises(locked.owner.exceptions.ClientError, match="AccessDenied"):
        locked.owner.delete_object(Bucket=locked.bucket, Key=version["Key"], VersionId=version["VersionId"])
