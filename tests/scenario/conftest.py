"""A failed test shows what the agents said."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from holdfast.errors import HoldfastError

LOG_LINES = 40


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    made = getattr(item, "funcargs", {}).get("site")
    if not report.failed or made is None:
        return
    for machine in made.lab.machines():
        try:
            text = machine.path("/var/log/holdfast.log").read_text(errors="replace")
        except (OSError, HoldfastError):
            continue
        report.sections.append((f"agent on {machine.name}", "\n".join(text.splitlines()[-LOG_LINES:])))
