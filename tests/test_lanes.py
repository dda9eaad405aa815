"""Modules that need the machine run alone, by themselves; the others two at a time before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests import lanes
from tests.lanes import Lanes, alone

BESIDE = ["tests/changes/test_change.py", "tests/changes/test_frame.py", "tests/changes/test_digest.py"]
LABS = ["tests/scenario/test_takeover.py", "tests/scenario/test_faults.py"]
ALONE = ["tests/scenario/test_failover.py", "tests/drill/lab/test_freezing.py"]


def test_a_module_runs_alone_that_makes_machines_itself_or_by_a_helper_or_conftest(tmp_path: Path) -> None:
    texts = {
        "tests/made.py": "from tests import again\nfrom holdfast.drill.site import ProtectedLab",
        "tests/again.py": "from tests import made",
        "tests/test_by_itself.py": "def test() -> None:\n    from holdfast.drill.lab.lab import Lab",
        "tests/deep/test_by_helper.py": "from ..again import anything",
        "tests/lab/conftest.py": "import holdfast.drill.lab.lab",
        "tests/lab/test_by_conftest.py": "",
        "tests/test_marked.py": "pytestmark = pytest.mark.system  # needs root, and no lab",
        "tests/test_pure.py": "from tests import harmless\nfrom holdfast.drill.report import page",
        "tests/harmless.py": "import tests.harmless",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {name for name in texts if "/test_" in name and alone(name, tmp_path)}
    assert found == {"tests/test_by_itself.py", "tests/deep/test_by_helper.py", "tests/lab/test_by_conftest.py"}


def test_what_is_said_to_run_beside_others_exists() -> None:
    assert {name for name in lanes.BESIDE if not (lanes.ROOT / name).exists()} == set()


class Node:
    """A worker: runs what it is given in order, and the last of it only when it knows what comes next."""

    class gateway:
        id = "gw"

    def __init__(self) -> None:
        self.shutting_down = False
        self.waiting: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.waiting += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def can_run(self) -> bool:
        return len(self.waiting) > 1 or (bool(self.waiting) and self.shutting_down)


class Config:
    """What the scheduler reads of pytest's."""

    class option:
        loadscopereorder = True

    def getvalue(self, name: str) -> Any:
        return {"tx": ["popen", "popen"]}[name]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def run(modules: list[str], turns: str) -> list[tuple[str, int]]:
    """Which test ran on which of two workers; *turns* says whose turn it is (``0`` or ``1``), again and again."""
    tests = [f"{module}::test_{number}[::1]" for module in modules for number in range(3)]
    scheduler = Lanes(cast(Any, Config()))
    nodes = [Node(), Node()]
    for node in nodes:
        scheduler.add_node(cast(Any, node))
        scheduler.add_node_collection(cast(Any, node), tests)
    scheduler.schedule()
    ran: list[tuple[str, int]] = []
    while any(node.can_run for node in nodes):
        for turn in map(int, turns):
            if nodes[turn].can_run:
                index = nodes[turn].waiting.pop(0)
                ran.append((tests[index].partition("::")[0], turn))
                scheduler.mark_test_complete(cast(Any, nodes[turn]), index)
    assert len(ran) == len(tests)
    assert all(node.shutting_down for node in nodes)
    assert scheduler.tests_finished
    return ran


@pytest.mark.parametrize("turns", ["01", "0001", "0111111", "1"])
def test_modules_run_two_at_a_time_and_then_those_that_want_to_be_alone(turns: str) -> None:
    ran = run([ALONE[0], *BESIDE, *LABS, ALONE[1]], turns + "01")
    first = [each for each in ran if not alone(each[0])]
    assert ran[: len(first)] == first, "nothing that runs alone begins before all others have ended"
    assert {worker for _, worker in first} == {0, 1}
    for module in (*BESIDE, *LABS, *ALONE):
        assert len({each for each in ran if each[0] == module}) == 1, "a module stays on one worker"
    assert len({worker for module, worker in ran if alone(module)}) == 1


def test_one_worker_begins_with_labs_and_the_other_with_the_rest() -> None:
    ran = run([*BESIDE, *LABS], "01")
    assert {worker for module, worker in ran if module in LABS} == {0}
    assert ran[1] == (BESIDE[0], 1)


def test_with_nothing_but_modules_that_want_to_be_alone_one_worker_runs_them_all() -> None:
    assert len({worker for _, worker in run(ALONE, "01")}) == 1


def test_one_module_runs() -> None:
    run(BESIDE[:1], "01")
    run(ALONE[:1], "01")
