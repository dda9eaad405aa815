"""The quick start, run as it is written (but for the name of the lab and of its scratch file)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from holdfast.drill.lab.lab import Lab

from .pages import DOCS, ROOT, blocks

SECONDS_MAX = 300.0


@pytest.mark.system
def test_the_quick_start_works_as_written(tmp_path: Path) -> None:
    lab = f"tour-{os.getpid()}"
    script = "set -e\n" + "\n".join(block.text for block in blocks(DOCS / "quick-start.md", "sh"))
    for written, here in (
        ("make setup\n", ""),
        ("HOLDFAST_LAB=tour", f"HOLDFAST_LAB={lab}"),
        ("/tmp/tour.txt", str(tmp_path / "tour.txt")),
    ):
        assert written in script
        script = script.replace(written, here)
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-5000:]
        for words in ("no differences", "main is silent", "takeover done", "switchover done", "main is the primary"):
            assert words in said
        after_home = said.rpartition("switchover done")[2]
        assert "before the power cut" in after_home
        assert "after the power cut" in after_home
        assert lab not in Lab.names()
    finally:
        Lab.down(lab)
