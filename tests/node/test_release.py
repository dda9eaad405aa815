"""``holdfast release``: what was served is given back, whatever has become of the configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ExitStatus
from holdfast.node.release import release
from holdfast.node.served import NAME, Served, ServedFile, run_directory

from .network import HOLDFAST, in_namespace, needs_root

ADDRESSES = ("192.0.2.10/24", "2001:db8::10/64")
CONFIGURATION = """\
site = "example"
machine = "main"
run_directory = "{run}"
[[machines]]
name = "main"
role = "{role}"
address = "192.0.2.11"
[[machines]]
name = "other"
role = "mail"
address = "192.0.2.12"
[service]
interface = "hf0"
addresses = ["192.0.2.10/24"]
[mail]
services = []
"""
HEAVY = ("asyncio", "msgspec", "aiohttp", "apsw", "cryptography", "pyroute2", "rich", "holdfast.mail")


def configured(tmp_path: Path, *, role: str = "mail", broken: bool = False) -> Path:
    path = tmp_path / "holdfast.toml"
    text = CONFIGURATION.format(run=tmp_path / "run", role=role)
    path.write_text(text + ("what is this\n" if broken else ""))
    return path


def written(tmp_path: Path, addresses: tuple[str, ...] = ADDRESSES, mail: dict[str, Any] | None = None) -> Path:
    ServedFile(tmp_path / "run", Served("hf0", addresses, {"services": []} if mail is None else mail)).write()
    return tmp_path / "run" / NAME


def taken(addresses: tuple[str, ...] = ADDRESSES) -> list[str]:
    code = f"from holdfast.node.address import Addresses; Addresses('hf0', {addresses!r}).take()"
    return [sys.executable, "-c", code]


SHOW = ("ip", "-brief", "address", "show", "dev", "hf0", "scope", "global")


@pytest.mark.system
@needs_root
def test_what_was_taken_is_given_back_although_the_configuration_cannot_be_read(tmp_path: Path) -> None:
    there = written(tmp_path)
    config = configured(tmp_path, broken=True)
    take, before, done, after = in_namespace(taken(), SHOW, (*HOLDFAST, "release", "--config", str(config)), SHOW)
    assert take.returncode == 0, take.stderr
    assert all(address in before.stdout for address in ADDRESSES)
    assert not any(address in after.stdout for address in ADDRESSES), done
    assert done.returncode == ExitStatus.DONE, done.stderr
    assert "gave back 192.0.2.10/24, 2001:db8::10/64" in done.stdout
    assert "is not valid TOML" in done.stderr
    assert not there.exists()


@pytest.mark.system
@needs_root
def test_an_address_of_before_the_configuration_was_changed_is_given_back_too(tmp_path: Path) -> None:
    written(tmp_path, ("192.0.2.99/24",))
    release_it = (*HOLDFAST, "release", "--config", str(configured(tmp_path)))
    both = ("192.0.2.99/24", "192.0.2.10/24")
    _, done, after = in_namespace(taken(both), release_it, SHOW)
    assert done.returncode == ExitStatus.DONE, done.stderr
    assert not any(address in after.stdout for address in both), done


def test_without_either_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    released = release(configured(tmp_path, broken=True))
    assert [error.exit_status for error in released.failed] == [ExitStatus.CONFIGURATION]
    assert "holdfast check" in released.failed[0].hint


def test_what_cannot_be_stopped_is_a_failure_and_stays_written_down(tmp_path: Path) -> None:
    there = written(tmp_path, (), {"services": "all"})
    released = release(configured(tmp_path, broken=True))
    assert [error.exit_status for error in released.failed] == [ExitStatus.FAILED]
    assert there.exists()


def test_a_relay_has_nothing_to_release_and_its_own_mail_software_is_left_alone(tmp_path: Path) -> None:
    released = release(configured(tmp_path, role="relay"))
    assert released == ((), (), ())


def test_nothing_heavy_is_imported_before_the_addresses_are_gone() -> None:
    code = "import json, sys, holdfast.node.release; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


def test_the_run_directory_is_found_in_a_configuration_that_is_broken_elsewhere(tmp_path: Path) -> None:
    assert run_directory(configured(tmp_path, broken=True)) == tmp_path / "run"
    assert run_directory(tmp_path / "not there") == Path("/run/holdfast")
