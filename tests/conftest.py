"""For all tests: property tests take the same examples every time; coroutines run in an event loop of their own.

A failure must be the same failure again, on every machine. ``HOLDFAST_EXAMPLES`` (``make chaos``) looks for new ones:
other examples each time, and as many as it says where a test asks for it.

Which modules may run beside others (``-n 2``, as ``make test`` does) is decided in ``lanes``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.lanes import Lanes

pytest.register_assert_rewrite("tests.scenario.site")  # before anything imports it

settings.register_profile("same", derandomize=True)
if "HOLDFAST_EXAMPLES" not in os.environ:
    settings.load_profile("same")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    from tests.lanes import Lanes

    return Lanes(config, log)  # type: ignore[arg-type]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True
