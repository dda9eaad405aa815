"""age identities made and looked at, in the text form of age-keygen(1)."""

from __future__ import annotations

from datetime import datetime

import pyrage

from holdfast.console.vault_open import identities_in
from holdfast.vault.faults import WrongKey


def new_identity() -> str:
    """An identity file's text."""
    return identity_file(str(pyrage.x25519.Identity.generate()))


def identity_file(identity: str) -> str:
    """The text that age-keygen would have written for *identity*. Raises WrongKey."""
    made = datetime.now().astimezone().isoformat(timespec="seconds")
    return f"# created: {made}\n# public key: {_recipient(identity)}\n{identity.upper()}\n"


def recipient_of(text: str) -> str:
    """The recipient of the first identity in *text* (a file's text, or the identity alone). Raises WrongKey."""
    return _recipient(identities_in(text, "what was given")[0])


def recipients_of(identities: tuple[str, ...]) -> tuple[str, ...]:
    """Raises WrongKey."""
    return tuple(_recipient(identity) for identity in identities)


def _recipient(identity: str) -> str:
    try:
        return str(pyrage.x25519.Identity.from_str(identity.upper()).to_public())
    except pyrage.IdentityError as error:
        raise WrongKey(f"not an age identity: {error}", hint="It begins with AGE-SECRET-KEY-1.") from None
