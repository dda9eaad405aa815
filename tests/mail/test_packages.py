"""The software manifest and what two of them say about two machines."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from holdfast.errors import ConfigurationError
from holdfast.mail import packages
from holdfast.mail.commands import SystemCommands
from holdfast.mail.packages import Manifest, Severity, compare, feature_version

PRIMARY = Manifest(
    format=1,
    release="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0-1",
    packages={"dovecot-core": "1:2.3.19.1+dfsg1-2", "opendkim": "2.11", "postfix": "3.7.11-0", "vim": "9"},
    units=("postfix.service",),
)


def test_a_machine_equals_itself() -> None:
    assert compare(PRIMARY, PRIMARY) == ()


@pytest.mark.parametrize(
    ("change", "severity", "name"),
    [
        ({"dovecot-core": "1:2.4.1-4"}, Severity.GRAVE, "dovecot-core"),
        ({"dovecot-core": "1:2.3.21-1"}, Severity.WARNING, "dovecot-core"),
        ({"postfix": None}, Severity.GRAVE, "postfix"),
        ({"opendkim": None}, Severity.WARNING, "opendkim"),
        ({"vim": None}, Severity.NOTE, "vim"),
        ({"vim": "8"}, Severity.NOTE, "vim"),
        ({"dovecot-solr": "1:2.3.19"}, Severity.NOTE, "dovecot-solr"),
    ],
)
def test_a_difference_has_the_weight_mail_gives_it(
    change: dict[str, str | None], severity: Severity, name: str
) -> None:
    merged = {**PRIMARY.packages, **change}
    own = msgspec.structs.replace(PRIMARY, packages={k: v for k, v in merged.items() if v is not None})
    [difference] = compare(PRIMARY, own)
    assert (difference.severity, difference.name) == (severity, name)
    assert name in difference.words


def test_release_kernel_and_units_are_compared_and_the_gravest_comes_first() -> None:
    own = Manifest(format=1, release="Debian GNU/Linux 13 (trixie)", kernel="6.12", packages={}, units=())
    found = compare(PRIMARY, own)
    assert [d.severity for d in found] == sorted((d.severity for d in found), reverse=True)
    assert {"release", "kernel", "postfix.service"} <= {d.name for d in found}


@pytest.mark.parametrize(
    ("version", "expected"), [("1:2.3.19.1+dfsg1-2.1", (2, 3)), ("3.7.11-0+deb12u1", (3, 7)), ("9", (9,)), ("x", ())]
)
def test_feature_version(version: str, expected: tuple[int, ...]) -> None:
    assert feature_version(version) == expected


async def test_this_machine_gives_the_same_bytes_twice_and_reads_them_back(tmp_path: Path) -> None:
    first = await packages.collect(SystemCommands())
    assert packages.write(first, tmp_path)
    assert packages.read(tmp_path) == first
    assert not packages.write(await packages.collect(SystemCommands()), tmp_path)
    assert feature_version(first.packages["postfix"])[0] >= 3
    assert f"postfix={first.packages['postfix']}\n" in (tmp_path / packages.PACKAGES_NAME).read_text()


def test_python_environments_are_read_from_their_folders(tmp_path: Path) -> None:
    for name in ("Radicale-3.9.0.dist-info", "a_b.c-1.0.dist-info"):
        (tmp_path / "lib/python3.11/site-packages" / name).mkdir(parents=True)
    assert packages.environment_packages(tmp_path) == {"radicale": "3.9.0", "a-b-c": "1.0"}


def test_no_manifest_is_none_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert packages.read(tmp_path) is None
    (tmp_path / packages.MANIFEST_NAME).write_text("{")
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        packages.read(tmp_path)
