"""Programs that reach outside: an address moved by a small script, a machine switched off by one, and their proofs."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, Refused
from holdfast.mail import processes
from holdfast.mail.commands import SystemCommands
from holdfast.mail.settings import MailSettings
from holdfast.mail.site import MailSite
from holdfast.node.address_command import AddressCommandFailed, CommandedAddresses
from holdfast.node.fencing import Fencing
from holdfast.node.outside import KILLED, run
from holdfast.node.release import release
from holdfast.node.served import Served, ServedFile
from holdfast.node.serving import Serving
from holdfast.node.settings import parse_settings

CLOUD = """\
#!/bin/sh
# A provider that keeps who has the address in a file, and takes its time.
state={state}
echo "$HOLDFAST_MACHINE $*" >> $state/calls
test -e $state/away && { echo "the provider does not answer" >&2; exit 7; }
case $1 in
  take) sleep {slow}; echo "$HOLDFAST_MACHINE" > $state/holder ;;
  check) test "$(cat $state/holder)" = "$HOLDFAST_MACHINE" ;;
  release) test "$(cat $state/holder)" != "$HOLDFAST_MACHINE" || echo nobody > $state/holder ;;
esac
"""
SWITCH = """\
#!/bin/sh
state={state}
echo "$*" >> $state/calls
test -e $state/stuck && { echo "the management controller does not answer"; exit 1; }
case $1 in
  fence) echo "ordered"; (sleep 0.8; echo off > $state/power) >/dev/null 2>&1 & ;;
  check) test "$(cat $state/power)" = off && echo "power is off" ;;
esac
"""


class Cloud:
    """One provider; :meth:`seen_by` gives a machine's addresses there."""

    def __init__(self, folder: Path, slow: float = 0.0) -> None:
        self.folder = folder
        self.program = folder / "move"
        self.program.write_text(CLOUD.replace("{state}", str(folder)).replace("{slow}", str(slow)))
        self.program.chmod(0o755)
        (folder / "holder").write_text("nobody\n")

    def seen_by(self, machine: str, seconds: float = 5.0) -> CommandedAddresses:
        environment = {"HOLDFAST_MACHINE": machine}
        return CommandedAddresses([str(self.program)], ["192.0.2.10/24"], seconds, environment)

    @property
    def holder(self) -> str:
        return (self.folder / "holder").read_text().strip()

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def away(self, *, now: bool) -> None:
        (self.folder / "away").touch() if now else (self.folder / "away").unlink()


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_an_address_is_taken_with_proof_and_moves_from_one_to_the_other(cloud: Cloud) -> None:
    main, backup = cloud.seen_by("main"), cloud.seen_by("backup")
    assert main.missing() == ("the service address",)
    main.take()
    assert main.missing() == ()
    main.take()
    assert cloud.calls.count("main take 192.0.2.10") == 1, "it was here already"
    backup.take()
    assert cloud.holder == "backup"


def test_who_gives_it_up_never_takes_it_from_another(cloud: Cloud) -> None:
    main, backup = cloud.seen_by("main"), cloud.seen_by("backup")
    main.take()
    backup.take()
    assert main.release() == ()
    assert cloud.holder == "backup"
    assert "main release 192.0.2.10" not in cloud.calls
    assert [str(address) for address in backup.release()] == ["192.0.2.10/24"]
    assert cloud.holder == "nobody"


def test_a_provider_that_does_not_answer_is_named_and_tried_again(cloud: Cloud) -> None:
    cloud.away(now=True)
    main = cloud.seen_by("main", seconds=0.7)
    with pytest.raises(
        AddressCommandFailed, match=r"was not here 0\.7 s after it was to be taken: the provider does not"
    ):
        main.take()
    assert "the provider does not answer" in main.problem
    with pytest.raises(AddressCommandFailed, match="cannot be told"):
        main.missing()
    cloud.away(now=False)
    main.renew()
    assert (cloud.holder, main.problem) == ("main", "")


def test_what_was_lost_behind_its_back_is_taken_again_unless_it_was_given_up(cloud: Cloud) -> None:
    main = cloud.seen_by("main")
    main.take()
    (cloud.folder / "holder").write_text("nobody\n")
    main.renew()
    assert cloud.holder == "main"
    main.release()
    main.renew()
    assert cloud.holder == "nobody"


def test_a_taking_that_nobody_wants_any_more_ends_at_once(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, slow=60)
    main = cloud.seen_by("main", seconds=60)
    failed: list[HoldfastError] = []

    def take() -> None:
        try:
            main.take()
        except HoldfastError as error:
            failed.append(error)

    taking = threading.Thread(target=take)
    taking.start()
    while not (tmp_path / "calls").exists() or "main take 192.0.2.10" not in cloud.calls:
        assert taking.is_alive()
    main.let_go()
    taking.join(5)
    assert not taking.is_alive()
    assert "not wanted" in failed[0].message
    assert cloud.holder == "nobody"


def test_a_program_is_ended_with_what_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo working; wait"
    said = run(["/bin/sh", "-c", script], 0.3, {})
    assert said == (KILLED, "it did not end within 0.3 s: working")
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while processes.seen(child) is not None:
        assert time.monotonic() < deadline, "its child runs on"
    assert "cannot be run" in run(["/no/such/program"], 1, {}).words


def test_who_is_cut_off_from_the_provider_still_stops_serving(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    mail = MailSettings(services=(), state_directory=str(tmp_path))
    here = Serving(lambda: MailSite(mail, SystemCommands()), cloud.seen_by("main", 0.5), None)

    async def scenario() -> None:
        await here.start()
        assert await here.missing() == ()
        cloud.away(now=True)
        await here.fence()

    asyncio.run(scenario())
    assert not here.on
    assert cloud.holder == "main", "the next one takes it"
    assert "could not be given up: the provider does not answer" in here.addresses.problem


def test_an_agent_that_died_has_its_address_given_up_by_the_command(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.seen_by("main").take()
    environment = (("HOLDFAST_MACHINE", "main"),)
    written = Served("eth0", ("192.0.2.10/24",), {"services": []}, (str(cloud.program),), 5.0, environment)
    ServedFile(tmp_path / "run", written).write()
    configuration = tmp_path / "holdfast.toml"
    configuration.write_text(f'run_directory = "{tmp_path}/run"\nbroken\n')
    found = release(configuration)
    assert found.failed == ()
    assert "gave up 192.0.2.10/24 by command" in found.done
    assert cloud.holder == "nobody"


# -- fencing -----------------------------------------------------------------------------------------------------------

SETTINGS = """\
site = "example"
machine = "backup"
failover = { policy = "automatic", fence_command = ["{program}"], fence_seconds = {seconds} }
machines = [
    { name = "main", role = "mail", address = "192.0.2.11" },
    { name = "backup", role = "mail", address = "192.0.2.12" },
    { name = "relay", role = "relay", address = "192.0.2.13" },
]
"""


def fencing(folder: Path, seconds: float) -> Fencing:
    program = folder / "switch"
    program.write_text(SWITCH.replace("{state}", str(folder)))
    program.chmod(0o755)
    (folder / "power").write_text("on\n")
    text = SETTINGS.replace("{program}", str(program)).replace("{seconds}", str(seconds))
    return Fencing(parse_settings(text, "a test"))


def test_a_machine_is_fenced_when_the_check_says_so_and_not_when_it_was_ordered(tmp_path: Path) -> None:
    fence = fencing(tmp_path, 5.0)
    assert fence.prove("main") == "power is off"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:2] == ["check main 192.0.2.11", "fence main 192.0.2.11"]
    assert len(calls) > 3, "the first check after it came before it was off"
    assert fence.prove("main") == "power is off"
    assert (tmp_path / "calls").read_text().count("fence") == 1, "what is off is not switched off again"


def test_without_the_proof_there_is_no_takeover_and_the_reason_is_named(tmp_path: Path) -> None:
    fence = fencing(tmp_path, 0.8)
    (tmp_path / "stuck").touch()
    with pytest.raises(Refused, match=r"main was not proven to be off within 0\.8 s"):
        fence.prove("main")
    assert "the management controller does not answer" in fence.problem


def test_a_program_is_named_by_its_whole_path() -> None:
    text = SETTINGS.replace("{program}", "ipmi").replace("{seconds}", "1.0")
    with pytest.raises(HoldfastError, match=r"failover\.fence_command: 'ipmi' is no whole path"):
        parse_settings(text, "a test")
