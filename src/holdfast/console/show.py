"""Statuses, plans and reports for a terminal. Everything here takes the agent's JSON and prints."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from holdfast.console.words import bytes_text, duration_text

WIDTH_MIN: Final = 80
_ROLE_STYLES: Final = {"primary": "bold green", "standby": "green", "relay": "cyan"}
Json = dict[str, Any]


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and console.width < WIDTH_MIN * 1.5:
        console = Console(highlight=False, width=int(WIDTH_MIN * 1.5))
    return console


def _machines(facts: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("machine", "role", "heard", "applied", "behind", "lag p50 / p99", ""):
        table.add_column(column)
    for view in facts["machines"]:
        role = view["role"]
        style = _ROLE_STYLES.get(role, "yellow" if view["alive"] else "bold red")
        silent = view["silent_seconds"]
        heard = "here" if view["name"] == facts["machine"] else ("never" if silent < 0 else f"{silent:.1f} s ago")
        lag = f"{view['lag_ms_p50']:.0f} / {view['lag_ms_p99']:.0f} ms" if view["lag_ms_p99"] >= 0 else ""
        behind = f"{view['behind_records']} records" if view["behind_records"] >= 0 else ""
        applied = str(view["applied"]) if view["applied"] > 0 else ""
        table.add_row(view["name"], Text(role, style=style), heard, applied, behind, lag, _note(view))
    return table


def _note(view: Json) -> str:
    if not view["alive"]:
        return ""  # what it does now is not known
    if view["progress"]:
        return str(view["progress"])
    if view["serving"]:
        return "serving, read-only" if view.get("read_only") else "serving"
    return "not serving" if view["role"] == "primary" else ""


def _served_by(facts: Json) -> str:
    """Who has the service addresses, as far as it is known here."""
    primary = facts["primary"]
    view = next((view for view in facts["machines"] if view["name"] == primary), None)
    if view is None:
        return "on nobody"
    if not view["alive"]:
        return f"last on {primary}"
    return f"on {primary}" if view["serving"] else f"on nobody, {primary} does not serve"


def _aside(kept: Json) -> str:
    """What waits for a person to look at it; empty when nothing does."""
    said = []
    if kept["things"]:
        things = "1 thing" if kept["things"] == 1 else f"{kept['things']:,} things"
        said.append(f"{things} to look at below {kept['where']}")
    if kept["reports"]:
        said.append(f"{kept['reports']} rejoin-*.json" + ("" if said else f" to look at beside {kept['where']}"))
    return ", ".join(said)


def _ledger(ledger: Json) -> str:
    """The messages since the gates began here, and the sums of the last report."""
    said = []
    if now := ledger["figures"]:
        refused = f", {now['refused']:,} put off" if now["refused"] else ""
        adopted = f" ({now['adopted']:,} of them another machine's)" if now["adopted"] else ""
        said.append(f"{now['accepted']:,} accepted{adopted}{refused}, {now['waiting']:,} waiting")
    if ledger["sums"]:
        sums = ", ".join(
            f"{count:,} {kind}" for kind, count in ledger["sums"].items() if count or kind in ("present", "lost")
        )
        said.append(f"report {duration_text(time.time() - ledger['reported_at'])} ago: {sums}")
    return "; ".join(said) or "nothing accepted yet"


def _ready(facts: Json) -> str:
    """Whether this standby could take over, and since when that was shown."""
    found, last = facts["readiness"], facts["rehearsal"]
    said = "not ready" if found["problems"] else "ready" if found["checked_at"] else "not looked at yet"
    if not last["at"]:
        return f"{said}, never rehearsed"
    age = f"{duration_text(time.time() - last['at'])} ago"
    if last["impossible"]:
        return f"{said}, cannot be rehearsed here"
    return f"{said}, rehearsal failed {age}" if last["problems"] else f"{said}, rehearsed {age}"


def _verified(facts: Json) -> str:
    if not facts["verified_at"]:
        return "never verified"
    found = facts["verified_differences"]
    result = "no differences" if found == 0 else f"{found} differences"
    return f"verified {duration_text(time.time() - facts['verified_at'])} ago: {result}"


def _vault(vault: Json) -> str:
    if not vault["fed_by"]:
        return f"vault     {vault['name']}: fed by nobody that is heard"
    age, snapshot = vault["age_seconds"], vault["snapshot_age_seconds"]
    behind = "has nothing of this log yet" if age < 0 else f"has all but the last {duration_text(age)}"
    said = "no snapshot" if snapshot < 0 else f"snapshot {duration_text(snapshot)} ago"
    return f"vault     {vault['name']}: {behind}, {said}, by {vault['fed_by']}"


def _status_lines(facts: Json) -> Iterable[Any]:
    log = facts["log"]
    addresses = ", ".join(facts["service_addresses"]) or "none"
    yield Text.assemble(
        (f"{facts['site']}", "bold"),
        f"  this is {facts['machine']}: ",
        (facts["role"], _ROLE_STYLES.get(facts["role"], "yellow")),
        f" ({facts['reason']})",
    )
    yield f"service   {addresses}  {_served_by(facts)}, epoch {facts['epoch']}"
    if log["reachable"]:
        leader = f", led by {log['leader']}" if log["leader"] else ""
        yield (
            f"log       records {log['first']} to {log['last']}, {bytes_text(log['stored_bytes'])} "
            f"({log['incarnation'][:8]}{leader})"
        )
    else:
        yield Text(f"log       not reachable: {log['problem']}", style="bold red")
    watching = f", watched by {facts['watching']}" if facts["watching"] else ""
    scrub = f"; scrub: {facts['scrub']}" if facts["scrub"] else ""
    yield f"trees     {facts['files']:,} files, {bytes_text(facts['bytes'])}{watching}{scrub}"
    yield f"at risk   if the primary died now: {facts['lost_if_primary_died']}"
    if facts["failover"]["switchover_at"]:
        ordered = datetime.fromtimestamp(facts["failover"]["switchover_at"])
        yield f"ordered   a switchover to this machine at {ordered:%Y-%m-%d %H:%M}"
    if facts["next_copy_at"]:
        yield f"copy      the next one is due at {datetime.fromtimestamp(facts['next_copy_at']):%Y-%m-%d %H:%M}"
    if facts["role"] == "standby":
        yield f"copy      {_ready(facts)}, {_verified(facts)}"
    elif facts["verified_at"]:
        yield f"copy      {_verified(facts)}"
    for vault in facts["vaults"]:
        yield _vault(vault)
    if ledger := facts.get("ledger"):
        yield f"ledger    {_ledger(ledger)}"
    if kept := _aside(facts["kept_aside"]):
        yield f"aside     {kept}"
    yield ""
    yield _machines(facts)
    if facts["warnings"]:
        yield ""
    for warned in facts["warnings"]:
        yield Text.assemble(("! ", "bold yellow"), (warned["what"], "yellow"))
        yield Text(f"  {warned['advice']}", style="dim")


def status(facts: Json) -> None:
    console = _console()
    for line in _status_lines(facts):
        console.print(line)


def watch_status(client: Any) -> None:
    """Until Ctrl-C."""
    from rich.console import Group

    try:
        with Live(console=_console(), refresh_per_second=4, screen=True) as live:
            while True:
                live.update(Group(*_status_lines(client.get("/status"))))
                time.sleep(1.0)
    except KeyboardInterrupt:
        return


def plan(value: Json) -> None:
    console = _console()
    console.print(f"[bold]{value['action']}[/] on {value['machine']}: {value['why']}")
    for number, step in enumerate(value["steps"], 1):
        console.print(f"  {number}. {step['name']:8} {step['what']}")
    for warning in value.get("warnings", ()):
        console.print(Text(f"! {warning}", style="yellow"))
    for refusal in value.get("refusals", ()):
        console.print(Text(f"refused: {refusal}", style="bold red"))
    console.print("[dim]Nothing was done (--dry-run).[/]")


def outcome(value: Json) -> None:
    console = _console()
    for step in value["steps"]:
        console.print(f"  {step['name']:8} {step['seconds']:7.3f} s  {step['words']}")
    if value["done"]:
        now = f"{value['machine']} is the primary"
        what = f"{now}, nothing had to be changed" if value["nothing_to_do"] else now
        console.print(f"[bold green]{value['action']} done[/] in {value['seconds']:.3f} s: {what}")
    else:
        console.print(Text(f"{value['action']} failed: {value['failure']}", style="bold red"))
    for warning in value["warnings"]:
        console.print(Text(f"! {warning}", style="yellow"))


def records(values: list[Json]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("record", "captured", "writer", "epoch", "kind", "bytes"):
        table.add_column(column, justify="right" if column in ("record", "bytes") else "left")
    for value in values:
        at = datetime.fromtimestamp(value["captured_at"]).isoformat(" ", "milliseconds")
        kind = value["kind"] + (" ..." if value["more"] else "")
        table.add_row(str(value["sequence"]), at, value["writer"], str(value["epoch"]), kind, f"{value['bytes']:,}")
    _console().print(table)


def history(events: list[Json]) -> None:
    console = _console()
    for event in events:
        at = datetime.fromtimestamp(event["at"]).isoformat(" ", "milliseconds")
        details = ", ".join(f"{key} {value}" for key, value in event.get("details", {}).items())
        line = Text.assemble((at, "dim"), "  ", (event["what"], "bold"))
        if event.get("why"):
            line.append(f": {event['why']}")
        if details:
            line.append(f"  ({details})", style="dim")
        console.print(line)


def follow_verify(lines: Iterable[Json], *, quiet: bool) -> Json:
    """Show progress until the report comes; the report."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    report: Json = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task("comparing", total=1.0)
        for line in lines:
            if "report" in line:
                report = line["report"]
            else:
                bars.update(task, description=line["step"], completed=line["share"])
    return report


def verify_report(report: Json) -> None:
    console = _console()
    read = f", {bytes_text(report['bytes'])} read" if report["bytes"] else ""
    console.print(f"compared {report['files']:,} entries{read} at {report['position']} in {report['seconds']:.1f} s")
    for difference in report["differences"][:200]:
        detail = f" ({difference['detail']})" if difference["detail"] else ""
        where = f"{difference['machine']}: {difference['tree']}/{difference['path']}"
        console.print(f"  {where}: {difference['what']}{detail}")
    hidden = report["found"] - min(len(report["differences"]), 200)
    if hidden > 0:
        console.print(f"  and {hidden} more (--json has {len(report['differences'])})")
    if report["found"] == 0:
        console.print("[bold green]no differences[/]")
    else:
        style = "bold red" if report["remaining"] else "bold green"
        console.print(Text(f"{report['found']} differences, {report['healed']} healed", style=style))
