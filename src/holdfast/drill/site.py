"""A lab under Holdfast's protection: what an administrator does by hand, done in a lab.

``main`` gets the mail software and ``holdfast init``; the other machines get a bundle and ``holdfast join``; each runs
the agent as a unit whose ``on_exit`` is ``holdfast release``, as the systemd unit of the documentation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from holdfast.console.client import SOCKET, Client
from holdfast.drill import lab_vault
from holdfast.drill.lab import mailhost
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.supervisor import Unit
from holdfast.errors import ExitStatus, HoldfastError

AGENT: Final = Unit(name="holdfast", argv=("holdfast", "agent"), on_exit=("holdfast", "release"))
READY_SECONDS_MAX: Final = 120.0
ANSWER_SECONDS_MAX: Final = 30.0
POLL_SECONDS: Final = 0.05
PASSWORD_FILE: Final = "/etc/holdfast/probe.password"
RELAY_CONFIGURATION: Final = """
[relay]
mode = "front"
adopt_seconds = 5
"""
"""Five seconds: a drill does not wait a minute for a relay."""
MAIL_ROLES: Final = ("primary", "standby")


class ProtectedLab:
    """A lab whose machines run agents."""

    def __init__(self, lab: Lab, agent_environment: dict[str, str] | None = None) -> None:
        self.lab = lab
        self._agent = msgspec.structs.replace(AGENT, env=agent_environment or {})
        self._failover = "manual"

    @property
    def mail_machines(self) -> list[Machine]:
        """The one with the mail first."""
        return [machine for machine in self.lab.machines() if machine.state.role in MAIL_ROLES]

    def protect(
        self,
        mail: mailhost.MailSettings,
        *,
        more_configuration: str = "",
        failover: str = "manual",
        more_failover: str = "",
        vault: bool = False,
        relays: dict[str, str] | None = None,
        straight_port: int = 0,
    ) -> None:
        """Set everything up and start the agents; returns at once. *failover*: the policy; *more_failover*: lines for
        its table. *vault*: see ``lab_vault``. *relays*: machines that take mail, and how (``relay.mode``);
        *straight_port*: the setting.

        Raises LabError.
        """
        self._failover = failover
        main, *standbys = self.mail_machines
        mailhost.configure(main, mail)
        if vault:
            lab_vault.make_vault(main)
            more_configuration += lab_vault.CONFIGURATION
        relays = relays or {}
        if relays:
            more_configuration += f"{RELAY_CONFIGURATION}straight_port = {straight_port}\n"
        for machine in [*standbys, *(self.lab.machine(name) for name in relays)]:
            mailhost.prepare(machine)
        bundles = self._init(main, more_configuration)
        for machine in self._agents():
            if machine.name != main.name:
                self.join(machine, main, bundles[machine.name])
                if vault and machine.state.role in MAIL_ROLES:
                    lab_vault.share_key(main, machine)
            _put_into_failover(
                machine, "takeovers_max = 1000\n" + more_failover
            )  # a drill kills more often than people
            if machine.name in relays:
                self._configure_relay(machine, relays[machine.name])
            machine.sync()
        for machine in self._agents():
            machine.boot(self._agent)

    def _configure_relay(self, machine: Machine, mode: str) -> None:
        path = machine.path("/etc/holdfast/holdfast.toml")
        path.write_text(path.read_text().replace('mode = "front"', f'mode = "{mode}"', 1))
        overrides = machine.path("/etc/holdfast/overrides/postfix.cf")
        overrides.write_text(f"{overrides.read_text()}maillog_file = /var/log/mail.log\n")  # no syslog daemon here
        machine.run(["holdfast", "relay", "configure"])

    def _agents(self) -> list[Machine]:
        return [machine for machine in self.lab.machines() if machine.state.role != "client"]

    def _init(self, main: Machine, more: str) -> dict[str, dict[str, str]]:
        state, user = self.lab.state, self.lab.accounts[0]
        self._put_password(main)
        lines = f'[mail.probe]\nuser = "{user.address}"\npassword_file = "{PASSWORD_FILE}"\n{more}'
        mailhost.put(main, "/etc/holdfast/mail-lines.toml", lines)
        argv = ["holdfast", "init", "--json", "--site", state.name, "--mail", "/etc/holdfast/mail-lines.toml"]
        for machine in self._agents():
            suffix = ",relay" if machine.state.role == "relay" else ""
            argv += ["--machine", f"{machine.name}={machine.state.ipv4}{suffix}"]
        argv += ["--service-address", f"{state.service_ipv4}/24", "--failover", self._failover]
        if state.service_ipv6:
            argv += ["--service-address", f"{state.service_ipv6}/64"]
        bundles: dict[str, dict[str, str]] = json.loads(main.run(argv).stdout)["bundles"]
        return bundles

    def _put_password(self, machine: Machine) -> None:
        mailhost.put(machine, PASSWORD_FILE, self.lab.accounts[0].password + "\n", mode=0o600)

    def join(self, machine: Machine, main: Machine, bundle: dict[str, str]) -> None:
        """Bring a bundle from *main* to *machine*. Raises LabError."""
        target = machine.path("/root/site.join")
        target.write_bytes(main.path(bundle["bundle"]).read_bytes())
        target.chmod(0o600)
        machine.run(["holdfast", "join", "/root/site.join", "--code", bundle["code"]])
        if machine.state.role in MAIL_ROLES:
            self._put_password(machine)

    # -- asking the agents ---------------------------------------------------------------------------------------------

    def ask(self, machine: str, path: str) -> Any:
        """What the agent on *machine* answers to a GET of *path*: what commands print with ``--json``. Raises LabError.

        Not by the command: to start one costs a quarter of a second of processor, and waiting for a fact means to ask
        again and again, on a machine that the agents want for themselves.
        """
        try:
            return Client(self.lab.machine(machine).path(SOCKET), ANSWER_SECONDS_MAX).get(path)
        except HoldfastError as error:
            raise LabError(f"{machine}: {path}: {error.message}", hint=error.hint) from error

    def status(self, machine: str) -> dict[str, Any]:
        """``holdfast status --json`` on *machine*. Raises LabError."""
        facts: dict[str, Any] = self.ask(machine, "/status")
        return facts

    def order(self, machine: str, *argv: str, check: bool = True, timeout: float = 120.0) -> dict[str, Any]:
        """``holdfast ARGV --json`` on *machine*: its answer. Raises LabError when *check* and it failed."""
        done = self.lab.machine(machine).run(["holdfast", *argv, "--json"], check=False, timeout=timeout)
        if check and done.returncode not in (ExitStatus.DONE, ExitStatus.DIFFERENCES):
            said = done.stderr.strip() or done.stdout.strip()
            raise LabError(f"{machine}: holdfast {' '.join(argv)} ended with {done.returncode}", hint=said)
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        return answer

    def wait_for(
        self, machine: str, fact: Callable[[dict[str, Any]], bool], what: str, seconds_max: float = READY_SECONDS_MAX
    ) -> dict[str, Any]:
        """Poll the status of *machine* until *fact* holds; the status. Raises LabError in time, with the last one."""
        deadline = time.monotonic() + seconds_max
        last: object = "no answer"
        while time.monotonic() < deadline:
            try:
                facts = self.status(machine)
                if fact(facts):
                    return facts
                last = {key: facts[key] for key in ("role", "reason", "warnings")}
            except LabError as error:
                last = str(error)
            time.sleep(POLL_SECONDS)
        raise LabError(f"{machine}: not {what} within {seconds_max:g} s", hint=f"last: {last}")

    def wait_role(self, machine: str, role: str, seconds_max: float = READY_SECONDS_MAX) -> dict[str, Any]:
        return self.wait_for(machine, lambda facts: facts["role"] == role, role, seconds_max)

    def wait_settled(self, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Until the primary is one, every other mail machine is a standby, and no copy is behind. Raises LabError."""
        main, *standbys = self.mail_machines
        self.wait_role(main.name, "primary", seconds_max)
        for machine in standbys:
            self.wait_role(machine.name, "standby", seconds_max)

    def barrier(self, primary: str) -> None:
        """Everything done in the primary's trees so far is in the log. Raises LabError."""
        self.order(primary, "barrier")

    def settle(self, primary: str, standby: str, seconds_max: float = 60.0) -> None:
        """A barrier, and the standby has applied it. Raises LabError."""
        sequence = self.order(primary, "barrier")["sequence"]

        def reached(facts: dict[str, Any]) -> bool:
            return any(view["name"] == standby and view["applied"] >= sequence for view in facts["machines"])

        self.wait_for(standby, reached, f"at record {sequence}", seconds_max)


def _put_into_failover(machine: Machine, lines: str) -> None:
    path = machine.path("/etc/holdfast/holdfast.toml")
    head, table, rest = path.read_text().partition("[failover]")
    _, _, rest = rest.partition("\n")
    path.write_text(f"{head}{table}\n{lines}{rest}")
