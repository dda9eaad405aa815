"""Starting and stopping by systemd where it runs the machine, directly where it does not.

systemd must know about a stop, or it restarts what we ended; and about a start, or it kills what it does not own. So
where ``/run/systemd/system`` exists (the test of sd_booted(3)), its units are used, and what is left is swept after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast.mail.port import Commands, ServiceFailed

SYSTEMD: Final = Path("/run/systemd/system")
START_SECONDS_MAX: Final = 30.0
"""Postfix took 2.1 s the first time on a machine; a loaded one may take ten times that."""
STOP_SECONDS_MAX: Final = 10.0
FORCE_SECONDS_MAX: Final = 1.0
"""How long a fencing stop waits for systemd, after everything was killed, before it looks again by itself."""

ASK_SECONDS_MAX: Final = 1.0
"""systemd answers in milliseconds, or hangs: then the units are used as they are configured."""
WRAPPED: Final = {"postfix.service": "postfix@-.service"}
"""Debian up to 12: postfix.service runs /bin/true and stays "active (exited)", and its generator has it want the unit
that runs Postfix. Starting the wrapper does nothing while it is active, whatever became of Postfix. Later Debian, and
others, have no such second unit: so the wrapper is asked what it wants."""


class Units:
    """The systemd units of one service; ``present`` is False where systemd does not run this machine."""

    def __init__(self, commands: Commands, units: tuple[str, ...], *, systemd: Path = SYSTEMD) -> None:
        self._commands = commands
        self._units = units
        self._systemd = systemd
        self._found: tuple[str, ...] | None = None

    @property
    def present(self) -> bool:
        return bool(self._units) and self._systemd.is_dir()

    async def _all(self) -> tuple[str, ...]:
        """The units, behind those that really run the programs, where there are such; asked once."""
        if self._found is None:
            real = []
            for unit in self._units:
                if behind := WRAPPED.get(unit):
                    argv = ["systemctl", "show", "--property=Wants", "--value", unit]
                    result = await self._commands.run(argv, timeout_seconds=ASK_SECONDS_MAX)
                    if not result.ok:
                        return self._units
                    real += [behind] if behind in result.output.split() else []
            self._found = (*real, *self._units)
        return self._found

    async def start(self) -> None:
        await self._order("start")

    async def reload(self) -> None:
        await self._order("reload")

    async def _order(self, verb: str) -> None:
        units = await self._all()
        result = await self._commands.run(["systemctl", verb, *units], timeout_seconds=START_SECONDS_MAX)
        if not result.ok:
            raise ServiceFailed(result.words, hint=f"See: journalctl -u {units[0]}", retry=True)

    async def stop(self, *, force: bool) -> None:
        """Whatever systemd answers, the caller sweeps afterwards; so a failure here is not the end of it.

        With *force* the caller has killed everything before: this keeps systemd from starting it again.
        """
        timeout = FORCE_SECONDS_MAX if force else STOP_SECONDS_MAX
        await self._commands.run(["systemctl", "stop", *await self._all()], timeout_seconds=timeout)
