"""Serving is on or off, and says so truthfully when somebody else ended it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from holdfast.mail.commands import SystemCommands
from holdfast.mail.settings import MailSettings
from holdfast.mail.site import MailSite
from holdfast.node import served
from holdfast.node.address import Addresses
from holdfast.node.served import Served, ServedFile
from holdfast.node.serving import Serving

from .network import PYTHON, in_namespace, needs_root


def serving(base: Path, interface: str = "lo", *addresses: str) -> Serving:
    mail = MailSettings(services=(), state_directory=str(base))
    written = ServedFile(base / "run", Served(interface, addresses, {"services": []}))
    return Serving(lambda: MailSite(mail, SystemCommands()), Addresses(interface, addresses), written)


@pytest.mark.parametrize("end", ["stop", "fence"])
def test_it_is_written_down_for_as_long_as_it_is_on(tmp_path: Path, end: str) -> None:
    here = serving(tmp_path)
    states = [here.on]
    asyncio.run(here.start())
    states.append(here.on)
    assert served.read(tmp_path / "run") == Served("lo", (), {"services": []})
    asyncio.run(getattr(here, end)())
    states.append(here.on)
    assert served.read(tmp_path / "run") is None
    assert states == [False, True, False]


def test_a_release_under_the_agent_is_seen_and_an_order_serves_again(tmp_path: Path) -> None:
    here = serving(tmp_path)
    states = [(here.on, here.released_by_hand)]
    asyncio.run(here.start())
    states.append((here.on, here.released_by_hand))
    served.forget(tmp_path / "run")
    states.append((here.on, here.released_by_hand))
    asyncio.run(here.start())
    states.append((here.on, here.released_by_hand))
    assert states == [(False, False), (True, False), (False, True), (True, False)]


@pytest.mark.system
@needs_root
def test_users_are_served_although_it_cannot_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    start = (
        "import asyncio\nfrom pathlib import Path\nfrom tests.node.test_serving import serving\n"
        f"asyncio.run(serving(Path({str(tmp_path)!r}), 'hf0', '192.0.2.10/24').start())"
    )
    done, shown = in_namespace((*PYTHON, start), ("ip", "address", "show", "dev", "hf0"))
    assert "HoldfastError" in done.stderr, "the step's outcome says so"
    assert "192.0.2.10/24" in shown.stdout


@pytest.mark.system
@needs_root
def test_what_is_missing_is_named_and_then_there(tmp_path: Path) -> None:
    code = (
        "import asyncio\nfrom pathlib import Path\nfrom tests.node.test_serving import serving\n"
        f"here = serving(Path({str(tmp_path)!r}), 'hf0', '192.0.2.10/24')\n"
        "async def run():\n"
        "    print(await here.missing())\n    await here.start()\n    print(await here.missing())\n"
        "asyncio.run(run())"
    )
    (done,) = in_namespace((*PYTHON, code))
    assert done.stdout.splitlines() == ["('192.0.2.10/24',)", "()"], done.stderr
