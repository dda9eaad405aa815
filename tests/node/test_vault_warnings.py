"""When somebody is told that a vault is too old, unfed or has holes: `status` says it, and the alarms tell it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.node.vaults import VaultView, vault_warnings

GOOD = VaultView("near", "/mnt/vault", "backup", 12.0, 4711, 1800.0, 0, "", "", 300.0)


def warned(**facts: Any) -> list[tuple[str, str]]:
    view = msgspec.structs.replace(GOOD, **facts)
    return [(warning.what, warning.key) for warning in vault_warnings((view,))]


@pytest.mark.parametrize("seconds", [0.0, 299.0, 300.0])
def test_a_vault_that_keeps_its_objective_is_no_warning(seconds: float) -> None:
    assert warned(age_seconds=seconds) == []


def test_a_vault_older_than_its_objective_is_told_with_both_figures() -> None:
    assert warned(age_seconds=301.0) == [("vault near is 301 s behind, its objective is 300 s", "vault near behind")]
    assert warned(age_seconds=5400.0) == [
        ("vault near is 90 min behind, its objective is 300 s", "vault near behind")
    ], "the cause has one name while its words change"


def test_a_vault_that_nobody_feeds_is_told_even_when_its_age_is_not_known() -> None:
    assert warned(fed_by="", age_seconds=-1.0) == [
        ("vault near is fed by no machine that is heard", "vault near unfed")
    ]
    assert warned(problem="the store is full") == [("vault near is not fed: the store is full", "vault near unfed")]


def test_holes_in_time_and_in_a_snapshot_are_told() -> None:
    assert [key for _, key in warned(gap="records 5 to 9 were trimmed", gaps=2)] == [
        "vault near gap",
        "vault near gaps",
    ]
