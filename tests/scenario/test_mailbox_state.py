"""Promise 4 after a real power cut: a mail client sees on the standby what it saw on the primary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.drill.checkers.facts import (
    Attempt,
    Copy,
    DeleteFolder,
    Expunge,
    Mailboxes,
    Move,
    PutSieve,
    RenameFolder,
    Store,
    Subscribe,
)
from holdfast.drill.lab import probes
from holdfast.drill.lab.mail_files import MailFormat
from holdfast.drill.lab.tools import wait_until

from .site import Site, protected_site

pytestmark = pytest.mark.system

FORMATS: tuple[MailFormat, ...] = ("maildir", "sdbox", "mdbox")
SYNC = """<d:sync-collection xmlns:d="DAV:"><d:sync-token>{token}</d:sync-token><d:sync-level>1</d:sync-level>
<d:prop><d:getetag/></d:prop></d:sync-collection>"""
EVERY_KIND = (Copy, Move, Store, Expunge, RenameFolder, DeleteFolder, Subscribe, PutSieve)


class Cut:
    """A site whose primary lost its power after everything had settled, and whose standby took over."""

    def __init__(self, site: Site, before: Mailboxes, tokens: dict[str, str], rehearsal: dict[str, Any]) -> None:
        self.site = site
        self.before = before
        self.tokens = tokens
        self.rehearsal = rehearsal
        """The standby's, before it was needed."""


def sync(site: Site, collection: str, token: str) -> tuple[str, list[str]]:
    """RFC 6578: the new token, and what changed since *token* (everything, without one)."""
    account = next(account for account in site.lab.accounts if collection.startswith(f"/{account.address}/"))
    host = site.lab.state.service_ipv4
    status, body = probes.dav(site.machine("client"), host, account, "REPORT", collection, SYNC.format(token=token))
    assert status == 207, body
    found = re.search(r"<sync-token>(.*?)</sync-token>", body)
    assert found is not None, body
    return found[1], re.findall(r"<response>.*?<href>(.*?)</href>", body)


@pytest.fixture(scope="module", params=FORMATS)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    with protected_site(request.param) as site:
        records = site.work(site.plan(messages=80, operations=800), tmp_path_factory.mktemp("load") / "journal")
        done = {type(record.doing) for record in records if isinstance(record, Attempt)}
        assert done >= set(EVERY_KIND), "the load must hold every kind of operation"
        _, verdict = site.judge(records)
        assert verdict.clean
        site.settle()
        before = site.observe()
        collections = [href for account in before.accounts.values() for href in account.collections]
        tokens = {href: sync(site, href, "")[0] for href in collections}
        site.settle()  # reading, too, may write
        rehearsal = site.protected.order("backup", "rehearse")
        site.machine("main").kill()
        wait_until(lambda: "main is silent" in site.warnings("backup"), 20, "main's silence to be noticed", 0.1)
        done_takeover = site.holdfast("backup", "takeover", "--why", "main has no power")
        assert done_takeover.returncode == 0, done_takeover.stdout + done_takeover.stderr
        yield Cut(site, before, tokens, rehearsal)


def test_the_standby_had_rehearsed_whatever_the_format(cut: Cut) -> None:
    assert cut.rehearsal["problems"] == []
    assert cut.rehearsal["messages"] > 0


def test_clients_see_the_same_mailboxes_after_a_power_cut_and_a_takeover(cut: Cut) -> None:
    """UIDVALIDITY, UIDs, flags, keywords, INTERNALDATE, contents, subscriptions, Sieve scripts, calendars; and
    HIGHESTMODSEQ is never lower, QRESYNC tells of nothing."""
    assert sum(len(folder.messages) for account in cut.before.accounts.values() for folder in account.folders.values())
    cut.site.assert_same_to_clients(cut.before)


def test_a_calendar_client_that_comes_back_with_its_sync_token_is_told_of_no_change(cut: Cut) -> None:
    assert cut.tokens
    for collection, token in cut.tokens.items():
        assert sync(cut.site, collection, token)[1] == []
