"""Where an account's mail lies: Dovecot's templates filled in. Pure."""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from holdfast.mail.dovecot_layout import Layout, expand, homes_by_account, merged


def account_places(found: Layout, account: str, homes: Mapping[str, str]) -> tuple[str, ...]:
    """Absolute directories (mbox: files) that hold the mail, indexes and scripts of *account*; none below another.

    *homes*: of accounts that have one of their own (passwd-files). Empty when the templates hold what only the running
    server knows.
    """
    home = homes.get(account) or next((h for h in (expand(t, account) for t in found.homes) if h), "")
    templates = [path for location in found.locations for path in location.paths() if path.startswith("/")]
    places = [home, *(expand(template, account) for template in templates if "%" in template)]
    return merged(os.path.normpath(place) for place in places if place)


def all_homes(passwd_texts: Mapping[str, str]) -> dict[str, str]:
    """Homes named in passwd-files, by account; of one named twice the first counts."""
    found: dict[str, str] = {}
    for text in passwd_texts.values():
        for account, home in homes_by_account(text).items():
            found.setdefault(account, home)
    return found
