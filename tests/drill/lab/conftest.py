"""Labs for tests: small, named after the test process, and always removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import LabSpec, MachineSpec

MachineLab = Callable[..., Lab]
_numbers = count(1)
DISK_BYTES = 256 << 20


def fresh_name() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def small(*machines: str, name: str | None = None, accounts: int = 3) -> LabSpec:
    """A lab of *machines* (``name:role``; default three)."""
    wanted = machines or ("main:primary", "backup:standby", "relay:relay")
    return LabSpec(
        name=name or fresh_name(),
        machines=tuple(MachineSpec.parse(text) for text in wanted),
        disk_bytes=DISK_BYTES,
        accounts=accounts,
    )


@pytest.fixture
def make_lab() -> Iterator[MachineLab]:
    """Makes labs that are gone when the test is over."""
    made: list[str] = []

    def make(*machines: str, accounts: int = 3) -> Lab:
        spec = small(*machines, accounts=accounts)
        made.append(spec.name)
        return Lab.up(spec)

    yield make
    for name in made:
        Lab.down(name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab of three machines for the tests of a module; each leaves it as it found it."""
    made = Lab.up(small())
    yield made
    Lab.down(made.name)
