"""The README's five commands, as they stand there, by a newcomer with a mail folder and a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vault.site import picture

README = Path(__file__).resolve().parents[2] / "README.md"
MESSAGE = "From: anna@example.org\nTo: me@example.org\nSubject: {}\nMessage-ID: <{}@example.org>\n\nText.\n"


def five_commands() -> str:
    section = README.read_text().split("<!-- five-commands -->")[1]
    return section.split("```sh\n")[1].split("```")[0]


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_the_five_commands_of_the_readme(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in ("cur", "new", "tmp"):
        (home / "Maildir" / folder).mkdir(parents=True)
    for number, subject in enumerate(("Budget 2027", "Lunch")):
        (home / "Maildir" / "cur" / f"{number}.host:2,S").write_text(MESSAGE.format(subject, number))
    commands = five_commands()
    assert len([line for line in commands.splitlines() if line.startswith("holdfast ")]) == 5
    script = f"set -e\nmount -t tmpfs none /mnt\nmkdir /mnt/disk\ncd {home}\n{commands}"
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOLDFAST_VAULTS": str(tmp_path / "vaults"),
        "HOLDFAST_CACHE": str(tmp_path / "cache"),
        "HOLDFAST_CONFIG": str(tmp_path / "none.toml"),
    }
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Budget 2027" in done.stdout
    assert "Lunch" not in done.stdout
    assert "AGE-SECRET-KEY-1" in (home / "page").read_text()
    assert (home / "page").stat().st_mode & 0o077 == 0
    assert picture(home / "restored" / "maildir") == picture(home / "Maildir")
