"""What a lab is made of: names, addresses, accounts; and the state file that describes a lab that is up."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

import msgspec

from holdfast.changes.names import checked_name
from holdfast.drill.lab.supervisor import Unit
from holdfast.errors import ConfigurationError, HoldfastError

ROLES: Final = ("primary", "standby", "relay", "router", "client")
USUAL_MACHINES: Final = ("main:primary", "backup:standby", "relay:relay", "client:client")
MACHINES_MAX: Final = 100
"""Host numbers 11 to 110 of the lab's network."""
FIRST_HOST: Final = 11
SERVICE_HOST: Final = 10
NETWORKS: Final = range(1, 255)
DISK_BYTES: Final = 2 << 30
"""Sparse: it takes only what is written. Enough for the demo's mail three times over."""
DISK_BYTES_MIN: Final = 64 << 20
"""Below this ext4 makes a journal too small to be worth testing."""
STATE_VERSION: Final = 1

Backing = Literal["namespaces", "processes"]
CutKind = Literal["frames", "packets"]
"""``frames`` drops everything; ``packets`` lets ARP and neighbour discovery pass (see network.py)."""


class LabError(HoldfastError):
    """The lab could not do what was asked; the message names lab and machine."""


class MachineSpec(msgspec.Struct, frozen=True):
    """A machine to make."""

    name: str
    role: str

    @classmethod
    def parse(cls, text: str) -> MachineSpec:
        """From ``NAME:ROLE``, as on the command line. Raises ConfigurationError."""
        name, colon, role = text.partition(":")
        if not colon or role not in ROLES:
            raise ConfigurationError(
                f"machine {text!r} is not NAME:ROLE",
                hint=f"The role is one of {', '.join(ROLES)}. Example: backup2:standby",
            )
        return cls(checked_name(name, "machine"), role)


class LabSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A lab to make. ``disks`` is the folder for the images (None: the usual one), but for those of the machines in
    ``disks_of``, which names a folder for each."""

    name: str = "lab"
    machines: tuple[MachineSpec, ...] = tuple(MachineSpec.parse(text) for text in USUAL_MACHINES)
    domain: str = "example.test"
    accounts: int = 50
    seed: str = "holdfast"
    disk_bytes: int = DISK_BYTES
    disks: str | None = None
    disks_of: dict[str, str] = {}
    backend: Backing | None = None
    """None: namespaces where permitted, else processes."""

    def check(self) -> None:
        """Raises ConfigurationError for what can be seen to be wrong beforehand."""
        checked_name(self.name, "lab")
        names = [machine.name for machine in self.machines]
        if len(set(names)) != len(names):
            raise ConfigurationError(
                f"two machines have one name: {', '.join(sorted(names))}", hint="Name each machine once."
            )
        if not 1 <= len(names) <= MACHINES_MAX:
            raise ConfigurationError(f"a lab has 1 to {MACHINES_MAX} machines, not {len(names)}")
        if self.disk_bytes < DISK_BYTES_MIN:
            raise ConfigurationError(
                f"disks of {self.disk_bytes} bytes are too small", hint=f"At least {DISK_BYTES_MIN}."
            )


class Account(msgspec.Struct, frozen=True):
    """A mail user of the lab's site; the address is the login name."""

    address: str
    password: str


class ProcessId(msgspec.Struct, frozen=True):
    """A process of the host, named so that a later process with the same number is not taken for it."""

    pid: int
    start_ticks: int


class MachineState(msgspec.Struct):
    """A machine of a lab that is up. ``init`` is None while the machine is off."""

    name: str
    role: str
    index: int
    ipv4: str
    ipv6: str
    mac: str
    init: ProcessId | None = None
    frozen: bool = False
    mounted: bool = False
    """Is the disk mounted in the holder? True while running and after a soft kill."""
    boot: list[Unit] = []
    """Units started at every start, in this order."""


class Cut(msgspec.Struct, frozen=True, order=True):
    """What ``sender`` sends does not reach ``receiver``."""

    sender: str
    receiver: str
    kind: CutKind


class LabState(msgspec.Struct):
    """Contents of lab.json."""

    version: int
    name: str
    backend: Backing
    network: int
    domain: str
    accounts: int
    seed: str
    disks: str
    disk_bytes: int
    machines: dict[str, MachineState]
    holder: ProcessId | None = None
    cuts: list[Cut] = []
    disks_of: dict[str, str] = {}
    """Machine to the folder of its image, where that is not in ``disks``."""

    @property
    def service_ipv4(self) -> str:
        return ipv4(self.backend, self.network, SERVICE_HOST)

    @property
    def service_ipv6(self) -> str | None:
        return ipv6(self.network, SERVICE_HOST) if self.backend == "namespaces" else None

    @property
    def service_name(self) -> str:
        """The name clients use: it goes where the service address goes."""
        return f"mail.{self.domain}"

    def machine(self, name: str) -> MachineState:
        """Raises LabError when the lab has none of that name."""
        if name not in self.machines:
            raise LabError(f"lab {self.name} has no machine {name}", hint=f"It has {', '.join(self.machines)}.")
        return self.machines[name]

    def disk(self, name: str) -> Path:
        """The image of machine *name* (a folder, with the processes backend)."""
        folder = Path(self.disks_of.get(name, self.disks))
        return folder / (f"{name}.ext4" if self.backend == "namespaces" else name)

    @property
    def disk_folders(self) -> list[Path]:
        """All of them, this lab's alone."""
        return [Path(folder) for folder in dict.fromkeys([self.disks, *self.disks_of.values()])]

    @property
    def shared_folder(self) -> Path:
        """On the host: what every machine sees as ``/media/shared``. Goes with the lab."""
        return Path(self.disks) / "shared"

    def users(self) -> list[Account]:
        return accounts(self.accounts, self.domain, self.seed)


def new_state(
    spec: LabSpec, backend: Backing, network: int, disks: Path, disks_of: dict[str, str] | None = None
) -> LabState:
    """The state of a lab about to be made, nothing running yet."""
    machines = {}
    for index, machine in enumerate(spec.machines):
        host = FIRST_HOST + index
        machines[machine.name] = MachineState(
            name=machine.name,
            role=machine.role,
            index=index,
            ipv4=ipv4(backend, network, host),
            ipv6=ipv6(network, host) if backend == "namespaces" else "",
            mac=f"02:77:{network:02x}:00:00:{host:02x}",
        )
    return LabState(
        version=STATE_VERSION,
        name=spec.name,
        backend=backend,
        network=network,
        domain=spec.domain,
        accounts=spec.accounts,
        seed=spec.seed,
        disks=str(disks),
        disk_bytes=spec.disk_bytes,
        machines=machines,
        disks_of=disks_of or {},
    )


def ipv4(backend: Backing, network: int, host: int) -> str:
    """10.77.N.x on a lab's own network; 127.0.N.x where all machines share the host's loopback."""
    return f"10.77.{network}.{host}" if backend == "namespaces" else f"127.0.{network}.{host}"


def ipv6(network: int, host: int) -> str:
    """fd77:N::x, the decimal digits of N and x written as they are, so that 10.77.3.12 is fd77:3::12."""
    return f"fd77:{network}::{host}"


def accounts(count: int, domain: str, seed: str) -> list[Account]:
    """user01 to userNN with passwords that follow from *seed* (16 hexadecimal digits): the same in every run."""
    digits = max(2, len(str(count)))
    made = []
    for number in range(1, count + 1):
        address = f"user{number:0{digits}d}@{domain}"
        password = hashlib.blake2b(address.encode(), key=seed.encode()[:64], digest_size=8).hexdigest()
        made.append(Account(address, password))
    return made
