"""Whose mail a file of the store is, as people say it."""

from __future__ import annotations

from holdfast.console.vault_moments import accounts, moment_of
from holdfast.errors import HoldfastError
from holdfast.recover.boxes import Box, Boxes, Problems
from holdfast.vault.repository import Vault


class Whose:
    """A :data:`holdfast.vault.verify.Whose`. The newest readable snapshot's mailboxes are looked for at the first
    question: where nothing is damaged nobody asks."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known: dict[tuple[str, bytes], str] | None = None

    def __call__(self, tree: str, path: bytes) -> str:
        if self._known is None:
            self._known = self._looked()
        while path:
            path = path.rpartition(b"/")[0]
            if words := self._known.get((tree, path)):
                return words
        return ""

    def _looked(self) -> dict[tuple[str, bytes], str]:
        for name in reversed(self._vault.snapshots()):
            try:
                moment = moment_of(self._vault, name)
                return _by_directory(list(Boxes(accounts(), Problems()).of(moment)))
            except HoldfastError:
                continue  # it is damaged itself: an older one may tell
        return {}


def _by_directory(boxes: list[Box]) -> dict[tuple[str, bytes], str]:
    """Where messages stand; a directory of several folders (mdbox) is the account's."""
    known: dict[tuple[str, bytes], str] = {}
    for box in boxes:
        words = f"{box.account}, {box.mailbox.folder}"
        for path, _ in box.directories:
            before = known.setdefault((box.tree, path), words)
            if before != words:
                known[box.tree, path] = box.account
        known.setdefault((box.tree, box.mailbox.path), words)
        known.setdefault((box.tree, box.mailbox.root), box.account)
    return known
