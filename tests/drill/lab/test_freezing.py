"""A frozen machine does nothing, answers nothing, and goes on where it was."""

from __future__ import annotations

import pytest

from holdfast.drill.lab.lab import Lab
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

pytestmark = pytest.mark.system

COUNT = "import time, os\nwhile True:\n os.pwrite(1, str(time.monotonic_ns()).encode(), 0)\n time.sleep(0.002)\n"


def test_a_frozen_machine_stands_still_and_goes_on_when_thawed(lab: Lab) -> None:
    main = lab.machine("main")
    process = main.spawn(["python", "-c", COUNT], log="/tmp/count")
    # The log is opened for appending; what matters is whether it grows.
    counter = main.path("/tmp/count")
    wait_until(lambda: counter.exists() and counter.stat().st_size > 0, 5, "the counter to run")
    main.freeze()
    size = counter.stat().st_size
    with pytest.raises(TimeoutError):
        process.wait(0.2)
    assert counter.stat().st_size == size
    assert lab.state.machine("main").frozen
    main.thaw()
    wait_until(lambda: counter.stat().st_size > size, 5, "the counter to go on")
    process.signal(9)
    process.wait(5)


def test_a_frozen_machine_can_be_killed_and_starts_thawed(lab: Lab) -> None:
    main = lab.machine("main")
    main.freeze()
    main.kill()
    main.start()
    assert main.run(["hostname"], timeout=5).stdout == "main\n"


def test_only_a_machine_that_is_on_can_be_frozen(lab: Lab) -> None:
    main = lab.machine("main")
    main.kill()
    with pytest.raises(LabError, match="off"):
        main.freeze()
    main.start()
