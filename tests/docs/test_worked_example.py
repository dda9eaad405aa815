"""The worked example's commands, run on machines of a lab.

Left out: what installs packages, what systemd does (the lab's supervisor does it), and carrying by scp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabSpec, MachineSpec
from holdfast.drill.site import AGENT, ProtectedLab

from .pages import DOCS, ROOT, blocks

PAGE = DOCS / "worked-example.md"
NOT_HERE = ("apt ", "groupadd ", "useradd ", "python3 -m venv", "/opt/", "systemctl ", "ln -s", "scp ", "cd ", "nano ")
"""Beginnings of lines; vmail exists on lab machines, programs are the host's."""
PASSWORD = "correct horse"


@pytest.fixture
def lab() -> Iterator[Lab]:
    name = f"worked-{os.getpid()}"
    machines = tuple(MachineSpec.parse(text) for text in ("main:primary", "backup:standby", "relay:relay"))
    try:
        yield Lab.up(LabSpec(name=name, machines=machines, domain="example.org", accounts=0))
    finally:
        Lab.down(name)


def here(lab: Lab, text: str) -> str:
    """*text* with this lab's addresses, and without what is not done here."""
    state = lab.state
    for name, address in (("main", ".11"), ("backup", ".12"), ("relay", ".13")):
        text = text.replace(f"192.0.2{address}", state.machine(name).ipv4)
    text = text.replace("192.0.2.10", state.service_ipv4).replace("docs/worked-example/", f"{PAGE.with_suffix('')}/")
    text = text.replace("openssl passwd -6", f"echo '{PASSWORD}' | openssl passwd -6 -stdin")
    text = text.replace('["/opt/radicale/bin/radicale"', '["radicale"')
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(NOT_HERE))


def run(machine: Machine, text: str) -> str:
    done = machine.run(["sh", "-e", "-c", f"cd {ROOT}\n{here(machine.lab, text)}"], check=False, timeout=60)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def block_with(words: str, language: str = "sh") -> str:
    (found,) = [block.text for block in blocks(PAGE, language) if words in block.text]
    return found


@pytest.mark.system
def test_the_worked_example_works_as_written(lab: Lab) -> None:
    main, backup, relay = (lab.machine(name) for name in ("main", "backup", "relay"))
    for machine in (main, backup):
        machine.path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)
        run(machine, block_with("/var/vmail"))
        run(machine, block_with("/var/lib/radicale"))
        run(machine, block_with("install -d /etc/holdfast/overrides"))
        run(machine, block_with("probe.password"))
        machine.path("/etc/holdfast/probe.password").write_text(f"{PASSWORD}\n")
    run(main, block_with("newaliases"))
    run(main, block_with("openssl req"))
    accounts = block_with("openssl passwd")
    run(main, accounts)
    run(main, accounts.replace("alice@", "probe@"))
    run(main, "printf 'probe@example.org -\\n' >>/etc/postfix/vmailbox; postmap /etc/postfix/vmailbox")
    assert "rror" not in run(main, "doveconf -n >/dev/null")
    assert "error" not in run(main, "postfix check")

    main.path("/root/mail.toml").write_text(here(lab, block_with("[mail.probe]", "toml")))
    said = run(main, block_with("holdfast init"))
    for machine in (backup, relay):
        bundle = f"{machine.name}.join"
        code = next(line.split()[-1] for line in said.splitlines() if f"{bundle} --code" in line)
        machine.path(f"/root/{bundle}").write_bytes(main.path(f"/etc/holdfast/bundles/{bundle}").read_bytes())
        run(machine, f"yes {code} | sh -e -c '{block_with('holdfast join').replace('backup.join', bundle)}'")
    for machine in (relay, backup, main):
        checked = run(machine, "holdfast check")
        assert f"this is {machine.name} " in checked
        assert "\n!" not in checked
        machine.boot(AGENT)

    site = ProtectedLab(lab)
    site.wait_settled()
    site.settle("main", "backup")
    assert "no differences" in run(backup, block_with("verify --full"))
    trees = main.path("/var/lib/holdfast/node.json").read_text()
    assert all(f'"{name}"' in trees for name in ("store", "groupware", "config", "software"))
    outcome = site.order("backup", "switchover", "--why", "rehearsal")
    assert outcome["done"], outcome
    assert not outcome["warnings"], outcome
    probed = next(step["words"] for step in outcome["steps"] if step["name"] == "probe")
    assert all(f"{service} answers" in probed for service in ("postfix", "dovecot", "radicale"))
    assert "myhostname = backup.example.org" in run(backup, "postconf myhostname")
