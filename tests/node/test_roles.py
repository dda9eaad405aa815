"""The table of roles: every combination of facts has exactly one meaning, and the dangerous ones are safe."""

from __future__ import annotations

import itertools

from holdfast.changes.names import Epoch, MachineName
from holdfast.node.roles import Facts, Role, decide

ME, OTHER = MachineName("main"), MachineName("backup")


def every_combination() -> list[Facts]:
    flags = itertools.product([False, True], repeat=8)
    return [
        Facts(
            relay=relay,
            log_empty=log_empty,
            starts_log=starts,
            primary=None if log_empty else primary,
            epoch=Epoch(0 if log_empty else 3),
            me=ME,
            served_epoch=Epoch(served),
            index_fits=fits and not log_empty,
            index_empty=empty and not fits,
            told_to_found=found,
            told_to_rejoin=rejoin,
            known_elsewhere=Epoch(elsewhere),
            unheard=OTHER if unheard else "",
        )
        for relay, log_empty, starts, fits, empty, found, rejoin, unheard in flags
        for primary in (ME, OTHER)
        for served in (0, 2, 3)
        for elsewhere in (0, 3)
    ]


def test_every_combination_of_facts_has_a_row_with_a_reason() -> None:
    for facts in every_combination():
        assert decide(facts).reason


def test_a_machine_serves_only_when_the_log_names_it_or_a_person_or_an_empty_log_lets_it() -> None:
    for facts in every_combination():
        role = decide(facts).role
        if role is Role.PRIMARY:
            assert facts.primary == facts.me
            assert facts.index_fits
        if role is Role.FOUNDER and not facts.told_to_found:
            assert facts.log_empty


def test_a_lost_log_is_begun_anew_only_by_the_machine_that_served_last_or_by_a_person() -> None:
    for facts in every_combination():
        if not facts.log_empty or facts.told_to_found or facts.relay:
            continue
        role = decide(facts).role
        if facts.served_epoch:
            served_last = facts.known_elsewhere <= facts.served_epoch and not facts.unheard
            assert (role is Role.FOUNDER) == served_last, facts
        elif not facts.index_empty or facts.known_elsewhere:
            assert role is not Role.FOUNDER, facts


def test_a_replaced_primary_never_overwrites_what_it_holds_without_a_persons_word() -> None:
    for facts in every_combination():
        replaced = facts.primary == OTHER and facts.served_epoch not in (0, facts.epoch)
        if replaced and not (facts.told_to_rejoin or facts.told_to_found or facts.relay):
            assert decide(facts).role is Role.RETURNED


def test_a_relay_is_never_anything_else_unless_told_to_found() -> None:
    for facts in every_combination():
        if facts.relay:
            assert decide(facts).role is Role.RELAY


def test_a_primary_whose_index_is_gone_waits_for_a_person() -> None:
    facts = Facts(False, False, True, ME, Epoch(3), ME, Epoch(3), index_fits=False, index_empty=True)
    row = decide(facts)
    assert row.role is Role.BLOCKED
    assert "holdfast" in row.advice
