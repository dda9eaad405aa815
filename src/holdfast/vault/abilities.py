"""What an account may do at a store: asked without leaving anything there."""

from __future__ import annotations

import secrets

from holdfast.vault.port import Backend, BackendRefused


def may_delete(backend: Backend) -> bool:
    """Whether the account may delete, so that who breaks into this machine can, too.

    Told by deleting an object that is not there: a store that forbids it forbids that, too. A bucket that keeps
    versions says yes and keeps what was deleted. Raises BackendUnavailable.
    """
    try:
        backend.delete(f"probe/{secrets.token_hex(16)}")
    except BackendRefused:
        return False
    return True
