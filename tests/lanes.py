"""Which test modules run beside others and which alone, and the order that ``make test`` makes of it.

With ``-n 2`` two modules run at a time, each in a process of its own: one worker begins with labs, the other with what
needs none. Those that want the machine for themselves follow, one by one. Without ``-n`` everything runs one by one, in
the order of the files.

A module runs alone when it, or a helper or conftest of ours that it imports, imports a lab (:data:`MACHINES`): a lab is
a whole site, and on a busy machine one of its machines may not run for a second or two, which the others take for its
death. So a new test that uses a lab runs alone by itself. :data:`BESIDE` names the modules whose labs bear company.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

ROOT: Final = Path(__file__).resolve().parent.parent
MACHINES: Final = ("holdfast.drill.lab.lab", "holdfast.drill.site")
"""Modules that make machines."""
BESIDE: Final = frozenset(
    f"tests/{name}.py"
    for name in (
        "docs/test_worked_example",
        "drill/lab/test_commands",
        "drill/lab/test_drop_program",
        "drill/lab/test_leftovers",
        "drill/lab/test_machines",
        "drill/lab/test_mail_files",
        "drill/lab/test_mailhost",
        "drill/lab/test_power",
        "drill/lab/test_processes_backend",
        "drill/lab/test_spec",
        "drill/lab/test_supervisor",
        "drill/lab/test_units",
        "rebuild/test_rebuild_lab",
        "scenario/test_archive",
        "scenario/test_faults",
        "scenario/test_mailbox_state",
        "scenario/test_relay",
        "scenario/test_takeover",
    )
)
"""No agents in the lab, or the failover policy ``manual``: a machine that does not run for a while is waited for."""


@functools.cache
def alone(module: str, root: Path = ROOT) -> bool:
    """Whether the test module of that path below *root*, as node ids have it, runs alone."""
    return module not in BESIDE and _makes_machines(root / module, root)


def _makes_machines(path: Path, root: Path) -> bool:
    conftests = (folder / "conftest.py" for folder in path.parents if folder.is_relative_to(root / "tests"))
    waiting, seen = [path, *(each for each in conftests if each.exists())], set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        names = _imported(file, root)
        if any(name.startswith(MACHINES) for name in names):
            return True
        helpers = (root.joinpath(*name.split(".")).with_suffix(".py") for name in names if name.startswith("tests."))
        waiting += [helper for helper in helpers if helper not in seen and helper.exists()]
    return False


@functools.cache
def _imported(path: Path, root: Path) -> frozenset[str]:
    """Full names of the modules, and of what is taken out of them: that may be a module too."""
    package = path.relative_to(root).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(found)


class Lanes(LoadScopeScheduling):
    """Gives each worker the next module that runs beside others; when there are none, all workers but one end, and when
    they have, that one gets the rest.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        for other in self.nodes:  # it may have waited for this one to end
            self._reschedule(other)

    def _assign_work_unit(self, node: WorkerController) -> None:
        beside = [scope for scope in self.workqueue if not alone(scope)]
        if beside:
            labs_first = node is self.nodes[0]
            self.workqueue.move_to_end(min(beside, key=lambda scope: (scope in BESIDE) is not labs_first), last=False)
        elif not self._is_last(node):
            return
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        others = [other for other in self.nodes if other is not node and not other.shutting_down]
        if others and all(alone(scope) for scope in self.workqueue):
            node.shutdown()  # it ends what it has
        else:
            super()._reschedule(node)

    def _is_last(self, node: WorkerController) -> bool:
        """Whether all others are at their end and have nothing under way."""
        others = [other for other in self.nodes if other is not node]
        return all(other.shutting_down and not self._pending_of(self.assigned_work[other]) for other in others)
