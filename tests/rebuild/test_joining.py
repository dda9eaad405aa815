"""What a rebuild does until the agent has the role that was asked for."""

from __future__ import annotations

import pytest

from holdfast.errors import Refused
from holdfast.rebuild.joining import SETTLED_SECONDS, STUCK, Seen, Step, next_step, seen_in


@pytest.mark.parametrize("role", sorted(STUCK))
def test_the_log_starts_anew_only_where_it_did_not_go_on_for_long_and_once(role: str) -> None:
    seen = Seen(role)
    assert next_step("primary", seen, SETTLED_SECONDS - 1, ordered=False) is Step.WAIT
    assert next_step("primary", seen, SETTLED_SECONDS, ordered=False) is Step.FOUND
    assert next_step("primary", seen, SETTLED_SECONDS, ordered=True) is Step.WAIT
    assert next_step("standby", seen, SETTLED_SECONDS, ordered=False) is Step.WAIT


@pytest.mark.parametrize("role", ["", "starting", "seeding", "standby"])
def test_it_never_does_where_the_log_goes_on(role: str) -> None:
    assert next_step("primary", Seen(role), 1e9, ordered=False) is Step.WAIT


def test_while_another_machine_serves_nobody_takes_its_place() -> None:
    status = {
        "machine": "main",
        "role": "returned",
        "reason": "r",
        "advice": "a",
        "machines": [
            {"name": "main", "alive": True, "serving": False},
            {"name": "relay", "alive": True, "serving": False},
            {"name": "backup", "alive": True, "serving": True},
        ],
    }
    seen = seen_in(status)
    assert seen == Seen("returned", "r", "a", "backup")
    with pytest.raises(Refused, match="backup serves"):
        next_step("primary", seen, 1e9, ordered=False)
    assert next_step("standby", seen, 1e9, ordered=False) is Step.WAIT
    status["machines"][2]["alive"] = False  # type: ignore[index]
    assert seen_in(status).serves == ""


def test_who_has_the_role_is_done() -> None:
    assert next_step("primary", Seen("primary"), 0.0, ordered=False) is Step.DONE
    assert next_step("standby", Seen("standby", serves="main"), 0.0, ordered=False) is Step.DONE
