"""The lab's network: a bridge in the holder's namespace, a port per machine, and cuts.

A cut from A to B is a filter where frames leave the switch towards B: it drops those whose source hardware address is
A's. So it holds for every protocol and for every address A has or takes, the service address included, and the other
direction is not touched. The filter is a classic BPF program in direct-action mode at the clsact hook (tc-bpf(8)):
the kernels this runs on may lack nftables, netem and even the tc actions, but not this.

Two kinds:

- ``frames``: everything is dropped, as when a cable is out. Used for cuts in both directions.
- ``packets``: ARP and IPv6 neighbour discovery still pass, as with a firewall gone wrong. Used one-way: if A's
  answers to "who
  has A's address" were dropped as well, B could soon send nothing to A either, and the cut would not be one-way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from holdfast.drill.lab.spec import Cut, LabError, LabState, MachineState
from holdfast.drill.lab.tools import run_tool

BRIDGE: Final = "switch0"
INTERFACE: Final = "eth0"
"""A machine's network card, as inside."""

TC_ACT_OK: Final = 0
TC_ACT_SHOT: Final = 2
# Classic BPF (linux/bpf_common.h): load word, half-word, byte at an offset of the frame; jump; return.
_LD_W: Final = 0x20
_LD_H: Final = 0x28
_LD_B: Final = 0x30
_JEQ: Final = 0x15
_JGT: Final = 0x25
_RET: Final = 0x06
# Offsets into an Ethernet frame: source address, type; IPv6 next header, ICMPv6 type (RFC 8200 section 3, RFC 4443
# section 2.1).
_SOURCE: Final = 6
_TYPE: Final = 12
_NEXT_HEADER: Final = 20
_ICMP6_TYPE: Final = 54
_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_ICMP6: Final = 58
_ND_FIRST: Final = 133
_ND_LAST: Final = 137
"""Router solicitation to redirect (RFC 4861 section 4)."""

Instruction = tuple[int, int, int, int]


def port(machine: MachineState) -> str:
    """The machine's port on the switch; interface names hold 15 bytes, machine names are longer."""
    return f"port{machine.index}"


def make_switch(holder: int) -> None:
    """The bridge, forwarding at once (no spanning tree, no multicast snooping that would hold back neighbour
    discovery).
    """
    _ip(
        holder,
        [f"link add name {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", f"link set {BRIDGE} up"],
    )


def plug(holder: int, machine: MachineState, init: int) -> None:
    """Give the machine whose init is *init* its card and addresses, and put the other end into the switch.

    Raises LabError.
    """
    name = port(machine)
    _ip(
        holder,
        [
            f"link add name {name} type veth peer name {INTERFACE} address {machine.mac} netns {init}",
            f"link set {name} master {BRIDGE} up",
        ],
    )
    _ip(
        init,
        [
            "link set lo up",
            f"link set {INTERFACE} up",
            f"address add {machine.ipv4}/24 dev {INTERFACE}",
            f"address add {machine.ipv6}/64 dev {INTERFACE} nodad",
        ],
    )


def port_down(holder: int, machine: MachineState) -> None:
    """Nothing the machine sends from now on reaches anyone: no FIN, no RST, as when the power goes."""
    _if_plugged(holder, machine, f"link set {port(machine)} down")


def unplug(holder: int, machine: MachineState) -> None:
    """Remove the port; the machine's card goes with it."""
    _if_plugged(holder, machine, f"link delete {port(machine)}")


def _if_plugged(holder: int, machine: MachineState, command: str) -> None:
    """A machine that died takes its card, and the port with it, at a moment of the kernel's choice."""
    if port(machine) not in ports(holder):
        return
    try:
        _ip(holder, [command])
    except LabError:
        if port(machine) in ports(holder):
            raise


def ports(holder: int) -> set[str]:
    """Machines' ports, on the switch or (see ``slow``) beside it."""
    lines = run_tool([*_inside(holder), "ip", "-o", "link", "show"]).splitlines()
    names = (line.split(": ")[1].partition("@")[0] for line in lines)
    return {name for name in names if name.startswith("port")}


def apply_cuts(holder: int, state: LabState, receivers: Iterable[MachineState]) -> None:
    """Make the filters towards *receivers* (those plugged in) say what ``state.cuts`` says.

    Each changes at one instant.
    """
    commands = []
    present = ports(holder)
    for machine in receivers:
        if port(machine) not in present:
            continue
        program = drop_program(state, [cut for cut in state.cuts if cut.receiver == machine.name])
        code = ",".join([str(len(program)), *(" ".join(map(str, instruction)) for instruction in program)])
        commands.append(f"qdisc replace dev {port(machine)} clsact")
        commands.append(
            f'filter replace dev {port(machine)} egress pref 1 handle 1 bpf direct-action bytecode "{code}"'
        )
    if commands:
        run_tool([*_inside(holder), "tc", "-batch", "-"], text="\n".join(commands) + "\n")


def drop_program(state: LabState, cuts: Collection[Cut]) -> list[Instruction]:
    """The filter towards one machine: drops what *cuts* name, lets the rest pass. Pure."""
    program: list[Instruction] = []
    for cut in sorted(cuts):
        mac = int(state.machine(cut.sender).mac.replace(":", ""), 16)
        verdict = _drop_all() if cut.kind == "frames" else _drop_packets()
        program += [
            (_LD_W, 0, 0, _SOURCE),
            (_JEQ, 0, len(verdict) + 2, mac >> 16),
            (_LD_H, 0, 0, _SOURCE + 4),
            (_JEQ, 0, len(verdict), mac & 0xFFFF),
            *verdict,
        ]
    return [*program, (_RET, 0, 0, TC_ACT_OK)]


def _drop_all() -> list[Instruction]:
    return [(_RET, 0, 0, TC_ACT_SHOT)]


def _drop_packets() -> list[Instruction]:
    """Drop unless it is ARP or neighbour discovery. A jump counts the instructions it skips."""
    return [
        (_LD_H, 0, 0, _TYPE),
        (_JEQ, 7, 0, _ARP),  # pass
        (_JEQ, 0, 5, _IPV6),  # else drop
        (_LD_B, 0, 0, _NEXT_HEADER),
        (_JEQ, 0, 3, _ICMP6),  # else drop
        (_LD_B, 0, 0, _ICMP6_TYPE),
        (_JGT, 1, 0, _ND_LAST),  # drop
        (_JGT, 1, 0, _ND_FIRST - 1),  # pass
        (_RET, 0, 0, TC_ACT_SHOT),
        (_RET, 0, 0, TC_ACT_OK),
    ]


def _inside(process: int) -> list[str]:
    return ["nsenter", "-t", str(process), "-n"]


def _ip(process: int, commands: list[str]) -> None:
    """ip(8) commands in the network namespace of *process*."""
    run_tool([*_inside(process), "ip", "-batch", "-"], text="\n".join(commands) + "\n")
