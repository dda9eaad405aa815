"""Packages by the real apt, from a repository of our own into a root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from holdfast.mail.commands import SystemCommands
from holdfast.mail.packages import Manifest
from holdfast.mail.port import CommandResult
from holdfast.rebuild.software import InstallFailed, install, plan_software

pytestmark = pytest.mark.skipif(
    not shutil.which("dpkg-scanpackages") or os.geteuid() != 0, reason="needs apt, dpkg-dev and root"
)


class Root:
    """A system below *folder*: dpkg's and apt's files, package sources. Commands run with apt told so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        for name in ("root/var/lib/dpkg/info", "root/var/lib/dpkg/updates", "lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "root/var/lib/dpkg/status").write_text("")
        self.repository.mkdir()
        (folder / "sources.list").write_text(f"deb [trusted=yes] file:{self.repository} ./\n")
        (folder / "apt.conf").write_text(
            f"""
Dir::State::status "{folder}/root/var/lib/dpkg/status";
Dir::State::Lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "amd64";
APT::Sandbox::User "root";
DPkg::Options {{ "--root={folder}/root"; "--force-all"; }};
"""
        )
        self._commands = SystemCommands()

    def offer(self, name: str, version: str) -> None:
        """A package with one file."""
        build = self.folder / "build"
        shutil.rmtree(build, ignore_errors=True)
        (build / "DEBIAN").mkdir(parents=True)
        (build / "usr/lib" / name).mkdir(parents=True)
        (build / "usr/lib" / name / "program").write_text(version)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: x\n"
        )
        (build / "DEBIAN/control").write_text(control)
        file_name = f"{name}_{version.replace(':', '%3a')}_all.deb"
        subprocess.run(["dpkg-deb", "-b", build, self.repository / file_name], check=True, capture_output=True)
        listed = subprocess.run(
            ["dpkg-scanpackages", "--multiversion", "."], cwd=self.repository, check=True, capture_output=True
        )
        (self.repository / "Packages").write_bytes(listed.stdout)

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """As the machine's own, below the root."""
        if argv[0] == "dpkg-query":
            argv = ["dpkg-query", f"--admindir={self.folder}/root/var/lib/dpkg", *argv[1:]]
        more = {**(environment or {}), "APT_CONFIG": str(self.folder / "apt.conf")}
        return await self._commands.run(argv, timeout_seconds=timeout_seconds, stdin=stdin, environment=more)

    async def capture(
        self, argv: Sequence[str], target: Path, *, timeout_seconds: float, bytes_max: int
    ) -> CommandResult:
        raise NotImplementedError

    async def spawn(self, argv: Sequence[str], *, log: Path, user: str = "") -> int:
        raise NotImplementedError


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path)
    made.offer("postfix", "3.7.10-1")
    made.offer("postfix", "3.7.11-1")
    made.offer("dovecot-core", "1:2.3.21-1")
    made.offer("opendkim", "2.11-1")
    return made


def manifest(**packages: str) -> Manifest:
    return Manifest(1, "Debian", "6.1", {name.replace("_", "-"): version for name, version in packages.items()}, ())


async def test_the_versions_there_were_are_installed_and_others_are_named(root: Root, tmp_path: Path) -> None:
    """Postfix as it was, though a newer one is offered; Dovecot in another version of the same features."""
    wanted = manifest(postfix="3.7.10-1", dovecot_core="1:2.3.19-2", opendkim="2.11-1", vim="9")
    plan = await plan_software(wanted, root)
    assert [each.argument for each in plan.install] == ["dovecot-core", "opendkim=2.11-1", "postfix=3.7.10-1"]
    assert plan.refusals == ()
    assert plan.differences == ("dovecot-core: 1:2.3.19-2 there, 1:2.3.21-1 here",)
    assert plan.by_hand == ("vim",)
    policy = tmp_path / "policy-rc.d"
    await install(plan, root, policy=policy)
    assert not policy.exists()
    assert (tmp_path / "root/usr/lib/postfix/program").read_text() == "3.7.10-1"
    assert (tmp_path / "root/usr/lib/dovecot-core/program").read_text() == "1:2.3.21-1"
    again = await plan_software(wanted, root)
    assert (again.install, again.present) == ((), 3)


async def test_another_feature_version_or_none_at_all_is_refused(root: Root) -> None:
    plan = await plan_software(manifest(dovecot_core="1:2.4.1-1", dovecot_imapd="1:2.3.21-1", rspamd="3.8"), root)
    assert plan.refusals == (
        "dovecot-core: 1:2.4.1-1 there, 1:2.3.21-1 here: it may not read the configuration",
        "dovecot-imapd 1:2.3.21-1 is not installed, and no repository of this machine has it",
    )
    assert plan.differences == ("rspamd 3.8 is not installed, and no repository of this machine has it",)


async def test_a_package_that_does_not_install_fails_and_says_why(root: Root, tmp_path: Path) -> None:
    plan = await plan_software(manifest(postfix="3.7.11-1"), root)
    for package in root.repository.glob("*.deb"):
        package.write_bytes(b"no package")
    policy = tmp_path / "policy-rc.d"
    with pytest.raises(InstallFailed, match="apt-get install ended with 100"):
        await install(plan, root, policy=policy)
    assert not policy.exists(), "what forbade services to start is gone"
