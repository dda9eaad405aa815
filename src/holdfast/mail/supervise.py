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


class Units:
    """The systemd units of one service; ``present`` is False where systemd does not run this machine."""

    def __init__(self, commands: Commands, units: tuple[str, ...], *, systemd: Path = SYSTEMD) -> None:
        self._commands = commands
        self._units = units
        self._systemd = systemd

    @property
    def present(self) -> bool:
        return bool(self._units) and self._systemd.is_dir()

    async def start(self) -> None:
        result = await self._commands.run(["systemctl", "start", *self._units], timeout_seconds=START_SECONDS_MAX)
        if not result.ok:
            raise ServiceFailed(result.words, hint=f"See: journalctl -u {self._units[0]}", retry=True)

    async def reload(self) -> None:
        result = await self._commands.run(["systemctl", "reload", *self._units], timeout_seconds=START_SECONDS_MAX)
        if not result.ok:
            raise ServiceFailed(result.words, hint=f"See: journalctl -u {self._units[0]}", retry=True)

    async def stop(self, *, force: bool) -> None:
        """Whatever systemd answers, the caller sweeps afterwards; so a failure here is not the end of it.

        With *force* the caller has killed everything before: this keeps systemd from starting it again.
        """
        timeout = FORCE_SECONDS_MAX if force else STOP_SECONDS_MAX
        await self._commands.run(["systemctl", "stop", *self._units], timeout_seconds=timeout)
