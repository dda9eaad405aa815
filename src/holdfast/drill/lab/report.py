"""What ``lab up`` and ``lab status`` print: a lab as it stands, as JSON for programs and as one screen for people."""

from __future__ import annotations

import msgspec

from holdfast.drill.lab import backend
from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import Account, Cut, LabState, MachineState


class MachineView(msgspec.Struct):
    """``pid`` is that of its init, as the host sees it; null when off.

    ``state``: ``on``, ``frozen``, ``off``, ``killed (soft)``.
    """

    name: str
    role: str
    state: str
    hostname: str
    ipv4: str
    ipv6: str
    pid: int | None
    disk: str


class LabView(msgspec.Struct):
    lab: str
    backend: str
    cannot_show: list[str]
    service_name: str
    service_ipv4: str
    service_ipv6: str | None
    domain: str
    machines: list[MachineView]
    cuts: list[Cut]
    accounts: list[Account]


def view(lab: Lab) -> LabView:
    """Raises LabError."""
    state = lab.state
    return LabView(
        lab=state.name,
        backend=state.backend,
        cannot_show=list(backend.of(state).cannot_show),
        service_name=state.service_name,
        service_ipv4=state.service_ipv4,
        service_ipv6=state.service_ipv6,
        domain=state.domain,
        machines=[_machine(state, machine) for machine in state.machines.values()],
        cuts=state.cuts,
        accounts=state.users(),
    )


def as_json(seen: LabView) -> str:
    return msgspec.json.format(msgspec.json.encode(seen), indent=2).decode()


def as_text(seen: LabView) -> str:
    addresses = " and ".join(address for address in (seen.service_ipv4, seen.service_ipv6) if address)
    lines = [f"lab {seen.lab} ({seen.backend})", f"service {seen.service_name} at {addresses}", ""]
    rows = [("machine", "role", "state", "addresses", "pid")]
    for machine in seen.machines:
        own = f"{machine.ipv4} {machine.ipv6}".strip()
        rows.append((machine.name, machine.role, machine.state, own, str(machine.pid or "-")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if seen.cuts:
        lines += ["", *(f"cut: {cut.sender} -> {cut.receiver} ({cut.kind})" for cut in seen.cuts)]
    if seen.accounts:
        first, last = seen.accounts[0], seen.accounts[-1]
        lines += ["", f"accounts {first.address} (password {first.password}) to {last.address}; all with status --json"]
    lines += ["", *(f"cannot show: {text}" for text in seen.cannot_show)] if seen.cannot_show else []
    return "\n".join(lines)


def _machine(state: LabState, machine: MachineState) -> MachineView:
    on = backend.alive(machine.init)
    if machine.frozen and on:
        word = "frozen"
    elif on:
        word = "on"
    else:
        word = "killed (soft)" if machine.mounted else "off"
    return MachineView(
        name=machine.name,
        role=machine.role,
        state=word,
        hostname=f"{machine.name}.{state.domain}",
        ipv4=machine.ipv4,
        ipv6=machine.ipv6,
        pid=machine.init.pid if machine.init is not None and on else None,
        disk=str(state.disk(machine.name)),
    )
