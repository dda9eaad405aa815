"""What is printed: one screen of status, and outcomes that say what was done."""

from __future__ import annotations

import io
import time
from typing import Any

import msgspec
import pytest
from rich.console import Console

from holdfast.console import show
from holdfast.node.kept import KeptAside
from holdfast.node.readiness import Readiness
from holdfast.node.rehearsal import Rehearsal
from holdfast.node.status import FailoverView, LogView, MachineView, SiteStatus, Warned
from holdfast.node.vaults import VaultView

WIDTH, HEIGHT = 80, 24
"""The terminal that every console has."""


def machine(name: str, role: str, *, silent: float = 0.1, **more: Any) -> MachineView:
    view = MachineView(
        name=name,
        configured="relay" if name == "relay" else "mail",
        role=role,
        reason="",
        alive=silent < 2,
        silent_seconds=silent,
        epoch=12,
        applied=1_234_567 if name != "relay" else -1,
        durable=1_234_567,
        behind_records=0 if role == "standby" else -1,
        lag_ms_p50=8.0,
        lag_ms_p99=46.0 if role == "standby" else -1.0,
        serving=False,
        progress="",
        progress_share=-1.0,
        version="0.1.0",
        clock_ahead_seconds=0.0,
        warnings=(),
    )
    return msgspec.structs.replace(view, **more)


def status(machines: tuple[MachineView, ...], *warnings: Warned, **more: Any) -> dict[str, Any]:
    """A site that has been running for a while, seen from its standby."""
    value = SiteStatus(
        site="example",
        segment="main",
        machine="backup",
        role="standby",
        reason="another machine is the primary; this one continues its copy",
        advice="",
        primary="main",
        epoch=12,
        service_addresses=("192.0.2.10/24", "2001:db8:12:34::10/64"),
        serving=False,
        machines=machines,
        log=LogView(True, "", "c0358279ab", 1_000_000, 1_234_567, 19_876_543_210, "relay", ()),
        lost_if_primary_died_bytes=0,
        lost_if_primary_died="nothing that is captured; what happens within a batch (some milliseconds)",
        copied_at=0.0,
        next_copy_at=0.0,
        files=4_812_345,
        bytes=1_234_567_890_123,
        watching="",
        scrub="",
        verified_at=time.time() - 90_000,
        verified_differences=0,
        kept_aside=KeptAside(12, 2, 1, "/var/lib/holdfast/aside"),
        readiness=Readiness(),
        rehearsal=Rehearsal(),
        failover=FailoverView("automatic", "", "", "", True),
        vaults=(VaultView("near", "/backup", "backup", 12.0, 4711, 1800.0, 0, "", "", 300.0),),
        warnings=warnings,
    )
    facts: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(value, **more))
    return facts


def printed(facts: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, height=HEIGHT, highlight=False)
    for line in show._status_lines(facts):
        console.print(line)
    return out.getvalue().splitlines()


LONG = Warned(
    "the log takes nothing for 12 s (no answer from the log's servers): what main does meanwhile is on its disk only",
    "Two of the three log servers must be up, have room, and reach each other; the rest happens by itself.",
)
WORDY = Warned(
    "software differs from the primary's: dovecot-core is 2.3.19.1+dfsg1-2.1 there, 2.3.21+dfsg1-3 here (and 3 more)",
    "Install the same.",
)
ALL_WELL = (machine("main", "primary", serving=True), machine("backup", "standby"), machine("relay", "relay"))
GONE = (
    machine("main", "silent (was primary)", silent=42.0, serving=True),
    machine("backup", "standby"),
    machine("relay", "relay"),
)


@pytest.mark.parametrize("machines", [ALL_WELL, GONE], ids=["all well", "the primary is gone"])
def test_status_fits_one_screen_with_three_machines_and_two_warnings(machines: tuple[MachineView, ...]) -> None:
    lines = printed(status(machines, LONG, WORDY))
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) < HEIGHT, "the prompt needs a line too\n" + "\n".join(lines)
    for words in ("12 things", "rejoin-*.json", "! the log takes nothing", "Install the same", "nothing that is capt"):
        assert any(words in line for line in lines), words


def test_a_machine_that_is_silent_is_not_shown_as_serving() -> None:
    (line,) = [line for line in printed(status(GONE)) if line.startswith("main ")]
    assert "silent (was primary)" in line
    assert "serving" not in line
    assert any(line.endswith("  last on main, epoch 12") for line in printed(status(GONE)))
    assert any(line.endswith("  on main, epoch 12") for line in printed(status(ALL_WELL)))


def test_a_primary_that_was_released_is_not_shown_as_serving() -> None:
    (line,) = [line for line in printed(status((machine("main", "primary"),))) if line.startswith("main ")]
    assert line.endswith("not serving")
    assert any("on nobody, main does not serve" in line for line in printed(status((machine("main", "primary"),))))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (KeptAside(0, 0, 0, "/a"), ""),
        (KeptAside(1, 1, 0, "/a"), "1 thing to look at below /a"),
        (KeptAside(0, 0, 2, "/a"), "2 rejoin-*.json to look at beside /a"),
    ],
)
def test_what_was_kept_aside_is_said_while_it_is_there(kept: KeptAside, said: str) -> None:
    shown = [line for line in printed(status(ALL_WELL, kept_aside=kept)) if line.startswith("aside")]
    assert shown == ([f"aside     {said}"] if said else [])


@pytest.mark.parametrize(
    ("nothing", "said"), [(True, "main is the primary, nothing had to be changed\n"), (False, "main is the primary\n")]
)
def test_an_outcome_says_whether_something_was_done(
    capsys: pytest.CaptureFixture[str], nothing: bool, said: str
) -> None:
    show.outcome(
        {
            "action": "takeover",
            "machine": "main",
            "done": True,
            "steps": [{"name": "serve", "seconds": 0.1, "words": "took or started: dovecot"}],
            "seconds": 0.2,
            "warnings": [],
            "failure": "",
            "nothing_to_do": nothing,
        }
    )
    assert capsys.readouterr().out.endswith(said)
