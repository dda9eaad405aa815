"""Whether a snapshot holds the secrets its inventory names."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError
from holdfast.mail import inventory
from holdfast.mail.inventory import Inventory
from holdfast.mail.secrets import Secret, SecretKind
from holdfast.mail.vault_inventory import completeness, read_inventory
from holdfast.trees.spec import TreeSpec
from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import backup_trees
from tests.vault.site import clocks, new_vault, tree


def test_what_a_restore_would_lack_is_looked_up_in_the_snapshot(tmp_path: Path) -> None:
    """One key is in a tree, one beside it; the third was there when the inventory was made and is gone."""
    etc, software = tmp_path / "etc", tmp_path / "software"
    etc.mkdir()
    for name in ("in.key", "gone.key"):
        (etc / name).write_text("secret")
    (tmp_path / "beside.key").write_text("secret")
    config = TreeSpec(name="config", root=str(etc))
    secrets = [
        Secret(SecretKind.TLS, str(path), "postfix smtpd_tls_key_file")
        for path in (etc / "in.key", etc / "gone.key", tmp_path / "beside.key")
    ]
    inventory.write(Inventory(format=1, secrets=inventory.needs(secrets, [config])), software)
    (etc / "gone.key").unlink()
    vault = new_vault(MemoryBackend())
    trees = [tree(etc, "config"), tree(software, "software")]
    snapshot = backup_trees(vault, trees, "main", clocks=clocks()).snapshot
    found = completeness(snapshot.trees, vault.content)
    states = {Path(secret.need.path).name: str(secret.state) for secret in found.secrets}
    assert states == {"in.key": "present", "gone.key": "missing", "beside.key": "missing"}
    assert len(found.gaps) == 2
    assert any("is not in it" in gap for gap in found.gaps)
    assert any("lies in no protected tree" in gap for gap in found.gaps)


def test_a_snapshot_without_inventory_says_so_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    (tmp_path / "software").mkdir()
    vault = new_vault(MemoryBackend())
    plain = backup_trees(vault, [tree(tmp_path / "mail")], "main", clocks=clocks()).snapshot
    found = completeness(plain.trees, vault.content)
    assert (found.known, found.gaps) == (False, ())
    assert "no inventory" in found.remarks[0]
    (tmp_path / "software/inventory.json").write_text("{")
    broken = backup_trees(vault, [tree(tmp_path / "software", "software")], "main", clocks=clocks()).snapshot
    with pytest.raises(ConfigurationError, match=r"inventory\.json"):
        read_inventory(broken.trees, vault.content)
