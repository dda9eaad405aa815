"""Real servers on loopback ports: S3 by moto (access checked) and by rclone, SFTP by Debian's OpenSSH."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

BIN = Path(sys.executable).parent
SSHD = Path("/usr/sbin/sshd")
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
DEADLINE_SECONDS = 20.0
BUCKET = "mail-vault"
APPEND_ONLY_USER = "nobody"
DENIED = "remove,rename,posix-rename,rmdir,setstat,fsetstat,lsetstat,symlink"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _running(command: list[str], log: Path, answers: Callable[[], object], **options: Any) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        until = time.monotonic() + DEADLINE_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            try:
                answers()
                break
            except OSError:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _connects(port: int) -> Callable[[], None]:
    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), 1).close()

    return connect


class S3Server(NamedTuple):
    """*add_only*: keys of an account that may not delete; None where the server knows no accounts."""

    port: int
    keys: tuple[str, str]
    add_only: tuple[str, str] | None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """Access is checked after the first calls, which make two accounts and the bucket."""
    port = free_port()
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "7"}
    command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder / "moto.log", _connects(port), env=environment):
        keys, add_only = _accounts(f"http://127.0.0.1:{port}")
        yield S3Server(port, keys, add_only)


def _accounts(endpoint: str) -> tuple[tuple[str, str], tuple[str, str]]:
    import boto3  # type: ignore[import-untyped, unused-ignore]

    nobody = {
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": "x",
        "aws_secret_access_key": "y",
    }
    iam = boto3.client("iam", **nobody)
    found: list[tuple[str, str]] = []
    for user, actions in (("owner", ["s3:*"]), ("writer", ["s3:PutObject", "s3:GetObject", "s3:ListBucket"])):
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="vault", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName=user)["AccessKey"]
        found.append((made["AccessKeyId"], made["SecretAccessKey"]))
    boto3.client("s3", **nobody).create_bucket(Bucket=BUCKET)
    return found[0], found[1]


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """Knows no conditions and no ranges."""
    port = free_port()
    (folder / "buckets" / BUCKET).mkdir(parents=True)
    command = [str(BIN / "rclone"), "serve", "s3", "--config", "", "--auth-key", "access,secret"]
    command += ["--addr", f"127.0.0.1:{port}", str(folder / "buckets")]

    def answers() -> None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except urllib.request.HTTPError:
            return

    with _running(command, folder / "rclone.log", answers):
        yield S3Server(port, ("access", "secret"), None)


class SftpServer(NamedTuple):
    """*folder*: root's; *add_only*: one that APPEND_ONLY_USER may add to."""

    port: int
    key: Path
    known_hosts: Path
    folder: Path
    add_only: Path


@contextmanager
def sshd(folder: Path) -> Iterator[SftpServer]:
    port = free_port()
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    host = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    authorized = folder / "authorized"
    authorized.write_text((folder / "client.pub").read_text())
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {authorized}\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"Subsystem sftp {SFTP_SERVER}\nMatch User {APPEND_ONLY_USER}\n  ForceCommand internal-sftp -P {DENIED}\n"
    )
    add_only = folder / "add-only"
    add_only.mkdir()
    account = pwd.getpwnam(APPEND_ONLY_USER)
    os.chown(add_only, account.pw_uid, account.pw_gid)
    folder.chmod(0o711)
    command = [str(SSHD), "-D", "-e", "-f", str(config)]
    with _running(command, folder / "sshd.log", _connects(port)):
        yield SftpServer(port, folder / "client", folder / "known_hosts", folder, add_only)
