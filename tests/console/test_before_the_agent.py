"""The commands that need no agent: init, check; and what `--help` costs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import ExitStatus
from holdfast.node.enrol import Folder, create_site, initial_configuration

HOLDFAST = (sys.executable, "-P", "-m", "holdfast.console.main")
HEAVY = {
    *("aiohttp", "apsw", "asyncio", "backports", "blake3", "cryptography", "http", "jinja2", "msgspec"),
    *("prometheus_client", "pyroute2", "rich", "ssl", "tomllib"),
}
"""What costs milliseconds to import, and no help needs."""
LIGHT = {"holdfast", "holdfast.console", "holdfast.console.late", "holdfast.console.main", "holdfast.errors"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def modules_after(*arguments: str) -> set[str]:
    code = (
        f"import sys, atexit, json; sys.argv = ['holdfast', *{arguments!r}]\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from holdfast.console.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("version",), ("init", "--help"), ("takeover", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """It is to answer within 150 ms; what counts is what it imports (a time would measure this machine's load)."""
    loaded = modules_after(*arguments)
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("holdfast")} <= LIGHT


def site(folder: Path, *machines: str) -> Path:
    """What `holdfast init` makes, with this machine's loopback as its own address."""
    described = {name: ("relay" if name == "relay" else "mail", f"127.0.0.{at}") for at, name in enumerate(machines, 1)}
    text = initial_configuration(
        site="example",
        machine=machines[0],
        machines=described,
        service_addresses=("192.0.2.10/24",),
        interface="lo",
        mail_lines=f'[mail.probe]\nuser = "probe@example.org"\npassword_file = "{folder / "probe"}"',
    )
    folder.mkdir()
    (folder / "probe").write_text("secret\n")
    create_site(text, Folder(folder))
    return folder / "holdfast.toml"


def check(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*HOLDFAST, "check", "--config", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_good_configuration_is_good(tmp_path: Path) -> None:
    done = check(site(tmp_path / "site", "main", "backup", "relay"))
    assert done.returncode == ExitStatus.DONE, done.stderr
    assert done.stdout.endswith("site example, 3 machines; this is main (mail). An agent starts with it.\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("retention_hours = 72", 'retention_hours = "x"'), ("$.log.retention_hours", "Expected `float`, got `str`")),
        (("[log]", "[log]\nretntion_hours = 1"), ("$.log", "unknown field `retntion_hours`")),
        (('"192.0.2.10/24"', '"192.0.2.10"'), ("service.addresses", "Write 192.0.2.10/24, or")),
        (('machine = "main"', 'machine = "Main"'), ("machine = 'Main'", "main, backup")),
        (('name = "relay"', 'name = "re lay"'), ("machine name 're lay'", "lower-case letters")),
        (("[log]", "[log"), ("not valid TOML", "line")),
    ],
)
def test_what_is_wrong_is_named_by_file_key_and_what_was_expected(
    tmp_path: Path, change: tuple[str, str], expected: tuple[str, ...]
) -> None:
    path = site(tmp_path / "site", "main", "backup", "relay")
    path.write_text(path.read_text().replace(*change, 1))
    done = check(path)
    assert done.returncode == ExitStatus.CONFIGURATION
    assert str(path) in done.stderr
    for words in expected:
        assert words in done.stderr


@pytest.mark.parametrize("name", ["segment.key", "tls/machine.key", "tls/machine.pem"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    path = site(tmp_path / "site", "main", "backup")
    (path.parent / name).unlink()
    done = check(path)
    assert done.returncode == ExitStatus.CONFIGURATION
    assert str(path.parent / name) in done.stderr


def test_what_an_agent_starts_with_is_a_warning(tmp_path: Path) -> None:
    path = site(tmp_path / "site", "main", "backup")
    text = path.read_text().replace('interface = "lo"', 'interface = "eth7"').replace("127.0.0.2", "192.0.2.12")
    path.write_text(text.replace('machine = "main"', 'machine = "backup"', 1))
    (tmp_path / "site" / "probe").unlink()
    done = check(path, "--json")
    assert done.returncode == ExitStatus.DONE, done.stderr
    warnings = json.loads(done.stdout)["warnings"]
    expected = ("no third machine", "'192.0.2.12', which is not here", "'eth7' is not here", "probe.password_file")
    for words in (*expected, "certificate of 'main'"):
        assert sum(words in warning for warning in warnings) == 1, (words, warnings)
    assert len(warnings) == len(expected) + 1


def init(*machines: str) -> str:
    """What `holdfast init` says, on a machine with an empty /etc."""
    words = ["--site", "example", "--service-address", "192.0.2.10/24"]
    for machine in machines:
        words += ["--machine", machine]
    line = f"mount -t tmpfs none /etc && exec {shlex.join([*HOLDFAST, 'init', *words])}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == ExitStatus.DONE, done.stderr
    return done.stdout


@pytest.mark.system
@needs_root
def test_init_says_what_two_machines_without_a_third_cannot_do() -> None:
    two = init("main=192.0.2.11", "backup=192.0.2.12")
    assert "EITHER of them, the log stops" in two
    assert "--machine NAME=ADDRESS,relay" in two
    three = init("main=192.0.2.11", "backup=192.0.2.12", "relay=192.0.2.13,relay")
    assert "EITHER" not in three
    assert "EITHER" not in init("main=192.0.2.11")
