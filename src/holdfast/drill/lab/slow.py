"""Slow links: everything a machine sends and receives comes later, by a wire that delays.

The kernels this runs on may lack netem. So the machine's port is taken out of the switch, a second cable is put in, and
a process (``python -m holdfast.drill.lab.slow PORT CABLE SECONDS``, in the switch's namespace) carries each frame from
one to the other after *seconds*, in order, both ways: for all its connections, the service address, ARP. A round trip
takes twice that longer. Cuts hold: their filters sit where frames leave for a machine.

Frames are read and written with their virtio header (PACKET_VNET_HDR, packet(7)): machines leave checksums and the
cutting into segments to the card, which no one here has.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
import subprocess
import sys
import time
from typing import Final

from holdfast.drill.lab import backend, network
from holdfast.drill.lab.lab import Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import run_tool

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
ETH_P_ALL: Final = 3
FRAME_BYTES_MAX: Final = 10 + 18 + 65536
"""The virtio header, an Ethernet header, and what segmentation offload lets pass as one."""
FRAMES_MAX: Final = 20_000
"""Under way; a wire that is fuller drops, as a full switch does."""
END_SECONDS_MAX: Final = 5.0


class SlowLink:
    """The link of one machine while it is slow; :meth:`close` makes it fast again. It ends with who made it."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        """Raises LabError (it is off)."""
        state = machine.lab.state
        if not machine.running or state.holder is None:
            raise LabError(f"{machine.name} is off")
        self._state = state.machine(machine.name)
        self._switch = ["nsenter", "-t", str(state.holder.pid), "-n"]
        self._port, self._cable = network.port(self._state), f"slow{self._state.index}"
        far = f"wire{self._state.index}"
        self._ip(
            f"link add name {self._cable} type veth peer name {far}",
            f"link set {far} master {network.BRIDGE} up",
            f"link set {self._cable} up",
        )
        argv = [*self._switch, *backend.python("slow", self._port, self._cable, str(seconds))]
        pipe = subprocess.PIPE
        env = {**backend.machine_environment()}
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=env, cwd="/", text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise LabError(f"{machine.name}: its link could not be made slow")
        self._ip(f"link set {self._port} nomaster")
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Raises LabError."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        there = run_tool([*self._switch, "ip", "-o", "link", "show"])
        commands = [f"link delete {self._cable}"] if f" {self._cable}@" in there else []
        if f" {self._port}@" in there:  # else it was switched off meanwhile
            commands.append(f"link set {self._port} master {network.BRIDGE}")
        self._ip(*commands)

    def _ip(self, *commands: str) -> None:
        run_tool([*self._switch, "ip", "-batch", "-"], text="".join(f"{command}\n" for command in commands))


def main(port: str, cable: str, seconds: float) -> None:
    """Carry frames until standard input ends or an interface is gone."""
    ends = [_open(port), _open(cable)]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    waiting: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    while True:
        timeout = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        readable, _, _ = select.select([*ends, sys.stdin], [], [], timeout)
        if sys.stdin in readable:
            return
        due = time.monotonic() + seconds
        for end in (each for each in ends if each in readable):
            with contextlib.suppress(BlockingIOError):
                while len(waiting) < FRAMES_MAX:
                    waiting.append((due, other[end], end.recv(FRAME_BYTES_MAX)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, frame = waiting.popleft()
            with contextlib.suppress(BlockingIOError):
                end.send(frame)


def _open(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.bind((interface, 0))
    end.setblocking(False)
    return end


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # an interface is gone: the machine was switched off
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
