"""A reader who came later reads everything with a grant, and nothing of what was there without one."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest

from holdfast.vault.backends.memory import MemoryBackend
from holdfast.vault.backup import backup_trees
from holdfast.vault.faults import WrongKey
from holdfast.vault.grants import grant_everything
from holdfast.vault.keys import Wrapper
from holdfast.vault.objects import GRANTS_PREFIX, digest_name
from holdfast.vault.repository import Vault, open_vault
from holdfast.vault.restore import restore_snapshot
from holdfast.vault.verify import EVERYTHING, verify
from tests.vault.site import RECIPIENT, clocks, make_store, new_vault, picture, reader, tree

LATER = str(pyrage.x25519.Identity.generate())
LATER_RECIPIENT = str(pyrage.x25519.Identity.from_str(LATER).to_public())


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def welcome(vault: Vault) -> None:
    """What lets an identity open the vault at all."""
    wrapped = Wrapper((RECIPIENT, LATER_RECIPIENT)).wrap(vault.codec.secrets.secret)
    vault.backend.put("keys/" + digest_name(wrapped), wrapped)


def test_with_a_grant_a_later_reader_restores_what_was_there_before(tmp_path: Path, backend: MemoryBackend) -> None:
    store = make_store(tmp_path / "store")
    with new_vault(backend) as vault:
        backup_trees(vault, [tree(store)], "main", clocks=clocks())
        welcome(vault)
        with open_vault(backend, identities=(LATER,)) as later, pytest.raises(WrongKey):
            later.snapshot(later.snapshots()[-1])
        assert grant_everything(vault, (LATER_RECIPIENT,)) == len(
            [*backend.list("packs/"), *backend.list("snapshots/")]
        )
    with open_vault(backend, identities=(LATER,)) as later:
        restored = restore_snapshot(later, later.snapshot(later.snapshots()[-1]), tmp_path / "back")
        assert restored.failures == []
        assert verify(later, EVERYTHING).findings == []
    assert picture(tmp_path / "back" / "store") == picture(store)


def test_a_grant_is_nothing_to_others_and_damage_in_it_opens_nothing(tmp_path: Path, backend: MemoryBackend) -> None:
    store = make_store(tmp_path / "store")
    stranger = str(pyrage.x25519.Identity.generate())
    with new_vault(backend) as vault:
        backup_trees(vault, [tree(store)], "main", clocks=clocks())
        welcome(vault)
        grant_everything(vault, (LATER_RECIPIENT,))
        with pytest.raises(WrongKey):
            open_vault(backend, identities=(stranger,))
    (grant,) = [found.name for found in backend.list(GRANTS_PREFIX)]
    backend.objects[grant] = backend.objects[grant][:-1] + b"x"
    with open_vault(backend, identities=(LATER,)) as later, pytest.raises(WrongKey):
        later.snapshot(later.snapshots()[-1])
    with reader(backend) as first:
        assert [one.what for one in verify(first).findings] == [grant]


def test_everything_is_granted_or_nothing(tmp_path: Path, backend: MemoryBackend) -> None:
    """Who cannot read all of it cannot pass it on as all of it."""
    store = make_store(tmp_path / "store")
    with new_vault(backend) as vault:
        backup_trees(vault, [tree(store)], "main", clocks=clocks())
        welcome(vault)
    with open_vault(backend, identities=(LATER,)) as later, pytest.raises(WrongKey):
        grant_everything(later, (LATER_RECIPIENT,))
    assert not list(backend.list(GRANTS_PREFIX))
