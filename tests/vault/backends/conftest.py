"""Servers are started when a test asks for one, once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vault.backends import servers


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def sshd() -> Iterator[servers.SftpServer]:
    """In a folder of its own: pytest's are closed to the account that may only add."""
    if os.geteuid() != 0 or not servers.SSHD.exists():
        pytest.skip("needs root and Debian's openssh-server")
    with tempfile.TemporaryDirectory() as folder, servers.sshd(Path(folder)) as server:
        yield server
