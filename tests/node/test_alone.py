"""Going on alone: the configuration for one machine, and an order that is carried out wherever it was cut short."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from holdfast.errors import Refused
from holdfast.log.memory import MemoryLogStore
from holdfast.node.address import Addresses
from holdfast.node.alone import Alone, alone_configuration, carry_out, prepare
from holdfast.node.enrol import configuration_for, initial_configuration
from holdfast.node.local import LocalFile
from holdfast.node.roles import Role
from holdfast.node.settings import FailoverSettings, parse_settings

from .two_nodes import TwoNodes, run, wait_until

MACHINES = {"main": ("mail", "192.0.2.11"), "backup": ("mail", "192.0.2.12"), "relay": ("relay", "192.0.2.13")}
TEXT = configuration_for(
    initial_configuration(
        site="example",
        machine="main",
        machines=MACHINES,
        service_addresses=("192.0.2.10/24",),
        interface="eth0",
        mail_lines="[gate]\nlmtp = 'unix:/x'  # a remark",
    ).replace('policy = "automatic"', 'policy = "automatic"\nprefer = ["main"]\nfailback_at = "03:30"'),
    "backup",
)


def test_the_configuration_for_one_machine_alone_keeps_everything_else() -> None:
    before = parse_settings(TEXT, "before")
    text = alone_configuration(TEXT, "backup")
    after = parse_settings(text, "after")
    assert [machine.name for machine in after.machines] == ["backup"]
    assert after.starts_log
    assert after.failover.policy == "manual"
    assert after.failover.prefer == ()
    assert (after.service, after.gate, after.log, after.mail) == (before.service, before.gate, before.log, before.mail)
    remarks = [
        line for line in TEXT.splitlines() if line.startswith("#") or "# where clients" in line or "remark" in line
    ]
    assert all(remark in text for remark in remarks)
    assert parse_settings(alone_configuration(text, "backup"), "again") == after


def test_machines_written_in_another_form_are_left_to_a_person() -> None:
    head, _, rest = TEXT.partition("[[machines]]")
    inline = 'machines = [{name = "backup", role = "mail", address = "192.0.2.12"}, {name = "main", role = "mail", '
    text = head + inline + 'address = "192.0.2.11"}]\n[service]' + rest.partition("[service]")[2]
    text = text.replace('"automatic"', '"manual"')
    parse_settings(text, "before")
    with pytest.raises(Refused, match="in a form that is not recognised"):
        alone_configuration(text, "backup")


def a_machine(base: Path) -> tuple[Path, LocalFile]:
    (base / "log" / "store").mkdir(parents=True)
    configuration = base / "holdfast.toml"
    configuration.write_text(f'state_directory = "{base}"\n' + TEXT)
    return configuration, LocalFile(base / "node.json")


def test_an_order_to_go_on_alone_is_carried_out_at_the_next_start_and_nothing_is_thrown_away(tmp_path: Path) -> None:
    configuration, local = a_machine(tmp_path)
    configuration.chmod(0o600)
    before = configuration.read_text()
    kept = prepare(configuration, local, "fire")
    assert kept.read_text() == before
    assert [stat.S_IMODE(each.stat().st_mode) for each in (kept, configuration)] == [0o600, 0o600]
    settings = parse_settings(configuration.read_text(), "after")
    assert "log.before-alone-" in carry_out(settings, LocalFile(tmp_path / "node.json"))
    assert not (tmp_path / "log").exists()
    assert [(each / "store").is_dir() for each in tmp_path.glob("log.before-alone-*")] == [True]
    assert carry_out(settings, LocalFile(tmp_path / "node.json")) == "", "started again before the log was founded"
    assert LocalFile(tmp_path / "node.json").state.alone == "fire"


def test_an_order_cut_short_before_the_configuration_changed_is_forgotten(tmp_path: Path) -> None:
    configuration, local = a_machine(tmp_path)
    local.change(alone="fire")
    assert "was not carried out" in carry_out(parse_settings(configuration.read_text(), "as it was"), local)
    assert (tmp_path / "log" / "store").is_dir()
    assert LocalFile(tmp_path / "node.json").state.alone == ""


def test_the_plan_says_what_may_be_missing_and_refuses_while_another_is_heard(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        configuration = tmp_path / "holdfast.toml"
        configuration.write_text(TEXT)
        restarts: list[None] = []
        alone = Alone(nodes.backup.node, configuration, lambda: restarts.append(None))
        nodes.main.write("known")
        await nodes.settle()
        assert "main can be heard" in alone.plan("", force=False).refusals[0]
        nodes.store.set_available(False)
        await nodes.main.stop()
        await wait_until(lambda: not nodes.backup.node.beats.alive("main"), lambda: "main is heard")
        plan = alone.plan("fire", force=False)
        assert plan.refusals == ()
        last = nodes.store.state().last
        assert f"stands at record {last}" in plan.warnings[0]
        assert "main was last heard" in plan.warnings[1]
        assert ": 0 records more than are here; 0 bytes were not in the log" in plan.warnings[1]
        await alone.order("fire", force=False)
        assert restarts == [None]
        assert nodes.backup.node.world.local.state.alone == "fire"
        assert len(parse_settings(configuration.read_text(), "after").machines) == 1

    run(tmp_path, scenario)


class LeftAlone(TwoNodes):
    machines = TwoNodes.machines[1:]
    failover = FailoverSettings(policy="manual")


def test_the_new_log_is_of_what_the_one_machine_holds_under_an_epoch_above_all_it_knew(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        nodes.main.write("applied")
        await nodes.settle()
        epoch = nodes.backup.node.epoch
        await nodes.main.stop()
        await nodes.backup.stop()
        nodes.machines, nodes.store = LeftAlone.machines, MemoryLogStore()  # what the agent's start does
        nodes.backup.node.world.local.change(alone="fire")
        nodes.backup.start()
        await nodes.backup.wait_role(Role.PRIMARY)
        await wait_until(lambda: not nodes.backup.node.world.local.state.alone, lambda: "the order stands")
        assert nodes.backup.node.epoch > epoch
        assert "applied" in nodes.backup.contents()
        assert any("takeover done: alone, with a new log" in event for event in nodes.backup.events())
        # The old primary comes back, and joins the new log: what only it has is kept aside.
        nodes.main.write("unseen")
        nodes.machines = TwoNodes.machines
        nodes.main.start()
        await nodes.main.wait_role(Role.RETURNED)
        nodes.main.node.orders.rejoin()
        await nodes.main.wait_role(Role.STANDBY)
        await nodes.settle(nodes.backup, nodes.main)
        assert nodes.main.contents() == nodes.backup.contents()
        (kept,) = nodes.main.base.rglob("unseen")
        assert ".holdfast" in kept.parts

    run(tmp_path, scenario)


def test_the_order_is_over_with_the_promotion_although_what_serves_does_not_start(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        await nodes.settle()
        await nodes.main.stop()
        await nodes.backup.stop()
        nodes.machines, nodes.failover = LeftAlone.machines, LeftAlone.failover
        nodes.store = MemoryLogStore()
        nodes.backup.node.world.local.change(alone="fire")
        nodes.backup.start()
        nodes.backup.node.world.serving.addresses = Addresses("hf-none", ("192.0.2.9/32",))
        await wait_until(lambda: nodes.store.state().last > 0, lambda: "nobody was promoted")
        await wait_until(lambda: not nodes.backup.node.world.local.state.alone, lambda: "the order stands")

    run(tmp_path, scenario)
