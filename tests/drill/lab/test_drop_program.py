"""The filter of a cut, run on frames by a small interpreter of classic BPF."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from holdfast.drill.lab.network import TC_ACT_OK, TC_ACT_SHOT, Instruction, drop_program
from holdfast.drill.lab.spec import Cut, CutKind, LabSpec, new_state

STATE = new_state(LabSpec(), "namespaces", 3, Path("/x"))
NAMES = list(STATE.machines)


def verdict(program: list[Instruction], frame: bytes) -> int:
    """What the kernel would return; loads outside the frame end the program with 0 (bpf_prog_run)."""
    at = accumulator = 0
    while True:
        code, true, false, value = program[at]
        at += 1
        if code == 0x06:
            return value
        if code in (0x20, 0x28, 0x30):
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            part = frame[value : value + size]
            if len(part) < size:
                return 0
            accumulator = int.from_bytes(part, "big")
        else:
            taken = accumulator == value if code == 0x15 else accumulator > value
            at += true if taken else false


def frame(sender: str, kind: int, payload: bytes) -> bytes:
    mac = bytes.fromhex(STATE.machines[sender].mac.replace(":", ""))
    return b"\xff" * 6 + mac + struct.pack("!H", kind) + payload.ljust(64, b"\0")


def icmp6(kind: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28, 24, 58, 255) + bytes(32) + bytes([kind])


ARP = (0x0806, b"")
IPV4 = (0x0800, b"\x45")
IPV6_TCP = (0x86DD, struct.pack("!IHBB", 6 << 28, 24, 6, 64))
ECHO = (0x86DD, icmp6(128))
NEIGHBOUR = [(0x86DD, icmp6(kind)) for kind in range(133, 138)]
OTHER = (0x88B5, b"")
ALL = [ARP, IPV4, IPV6_TCP, ECHO, *NEIGHBOUR, OTHER]


def test_a_full_cut_drops_every_frame_of_the_sender_and_none_of_others() -> None:
    program = drop_program(STATE, [Cut("main", "backup", "frames")])
    for kind, payload in ALL:
        assert verdict(program, frame("main", kind, payload)) == TC_ACT_SHOT
        assert verdict(program, frame("relay", kind, payload)) == TC_ACT_OK


def test_a_one_way_cut_lets_arp_and_neighbour_discovery_pass() -> None:
    program = drop_program(STATE, [Cut("main", "backup", "packets")])
    for kind, payload in [ARP, *NEIGHBOUR]:
        assert verdict(program, frame("main", kind, payload)) == TC_ACT_OK
    for kind, payload in [IPV4, IPV6_TCP, ECHO, OTHER]:
        assert verdict(program, frame("main", kind, payload)) == TC_ACT_SHOT


@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["frames", "packets"])),
    st.sampled_from(NAMES),
    st.sampled_from(ALL),
)
def test_any_set_of_cuts_drops_exactly_its_senders(
    kinds: dict[str, CutKind], sender: str, sent: tuple[int, bytes]
) -> None:
    program = drop_program(STATE, [Cut(name, "backup", kind) for name, kind in kinds.items()])
    passes_always = sent == ARP or sent in NEIGHBOUR
    dropped = kinds.get(sender) == "frames" or (kinds.get(sender) == "packets" and not passes_always)
    assert verdict(program, frame(sender, *sent)) == (TC_ACT_SHOT if dropped else TC_ACT_OK)
