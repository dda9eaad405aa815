"""tools/open-vault, which knows only the format's page, restores what the package wrote; damage it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.vault import backup
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.objects import Sizes
from holdfast.vault.repository import init_vault, open_vault
from tests.vault import site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
TOOL = Path(__file__).parents[2] / "tools" / "open-vault"
LINES_MAX = 200
SMALL = Sizes(block_bytes=300_000, parts_block_bytes=3000, pack_blocks=3, index_packs=2)


class Made(NamedTuple):
    """A vault in a folder with two snapshots; the store as it stood at the second."""

    folder: Path
    identity: Path
    store: Path


@pytest.fixture
def made(tmp_path: Path) -> Made:
    store = site.make_store(tmp_path / "store")
    config = site.make_store(tmp_path / "config", seed=2, messages=2)
    (tmp_path / "identity").write_text(f"# made by age-keygen\n{site.IDENTITY}\n")
    backend = FolderBackend(tmp_path / "vault", create=True)
    key = init_vault(backend, (site.RECIPIENT,))
    clocks = site.clocks()
    with open_vault(backend, writer=key, sizes=SMALL) as vault:
        for at in range(2):
            (store / "user0" / "later").write_bytes(b"later" * at)
            backup.backup_trees(vault, [site.tree(store), site.tree(config, "config")], "main", clocks=clocks)
    return Made(tmp_path / "vault", tmp_path / "identity", store)


def _run(made: Made, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, made.identity, made.folder, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_one_small_file_without_a_line_of_the_package() -> None:
    text = TOOL.read_text()
    assert len(text.splitlines()) < LINES_MAX
    assert "import holdfast" not in text
    assert "from holdfast" not in text


def test_it_restores_what_the_package_wrote(made: Made, tmp_path: Path) -> None:
    listed = _run(made).stdout.splitlines()
    assert [line[:16] for line in listed] == [path.name[21:] for path in sorted((made.folder / "snapshots").iterdir())]
    run = _run(made, "latest", tmp_path / "out")
    assert (run.returncode, run.stderr) == (0, "")
    assert site.picture(tmp_path / "out" / "store") == site.picture(made.store)
    assert site.picture(tmp_path / "out" / "config") == site.picture(tmp_path / "config")
    older = _run(made, listed[0][:9], tmp_path / "older", "store")
    assert older.returncode == 0
    assert os.listdir(tmp_path / "older") == ["store"]
    assert (tmp_path / "older" / "store" / "user0" / "later").read_bytes() == b""


def test_it_names_what_is_damaged_and_restores_the_rest(made: Made, tmp_path: Path) -> None:
    """One pack's content at a time: flipped, cut, gone. Every file is whole and right, or named."""
    whole = site.picture(made.store)
    named_ever = 0
    for number, pack in enumerate(sorted((made.folder / "packs").iterdir())):
        data = pack.read_bytes()
        at = len(data) // 2
        pack.write_bytes((data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:-1], b"")[number % 3])
        run = _run(made, "latest", out := tmp_path / f"out{number}")
        pack.write_bytes(data)
        assert run.returncode == bool(run.stderr), run.stderr
        problems = run.stderr.splitlines()
        named_ever += len(problems)
        there = site.picture(out / "store") if (out / "store").exists() else {}
        for path, facts in whole.items():
            tree_path = (b"store" + path).decode(errors="backslashreplace")
            folders = [tree_path.rsplit("/", up)[0] for up in range(tree_path.count("/") + 1)]
            if path and not any(line.startswith(f"{folder!r}:") for line in problems for folder in folders):
                assert there[path][-1] == facts[-1], path
    assert named_ever > 20


def test_it_refuses_a_wrong_key_another_format_and_a_target_that_stands(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert _run(made, "latest", tmp_path / "out").returncode == 2
    assert _run(made, "zz", tmp_path / "new").returncode == 2
    assert _run(made, "latest").returncode == 2
    snapshot = sorted((made.folder / "snapshots").iterdir())[-1]
    snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"x")
    assert "damaged" in (run := _run(made, "latest", tmp_path / "new")).stderr
    assert run.returncode == 2
    made.identity.write_text(subprocess.run(["age-keygen"], capture_output=True, text=True, check=True).stdout)
    assert "opens no key" in (run := _run(made)).stderr
    assert run.returncode == 2
