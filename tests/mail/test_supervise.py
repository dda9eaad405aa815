"""Which units systemd is given, by a ``systemctl`` that writes down what it is asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from holdfast.mail.commands import SystemCommands
from holdfast.mail.port import ServiceFailed
from holdfast.mail.supervise import Units

ASKED = "show --property=Wants --value postfix.service"


class Systemd:
    """The script, and what it was asked; *wants*: what it says of postfix.service."""

    def __init__(self, folder: Path, wants: str) -> None:
        self._said = folder / "said"
        program = folder / "systemctl"
        program.write_text(
            f'#!/bin/sh\necho "$*" >>{self._said}\ncase $1 in\nshow) {wants};;\nreload) exit 1;;\nesac\n'
        )
        program.chmod(0o755)

    @property
    def said(self) -> list[str]:
        return self._said.read_text().splitlines()


@pytest.fixture(autouse=True)
def _first_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def units(folder: Path, *names: str) -> Units:
    return Units(SystemCommands(), names, systemd=folder)


async def test_where_postfix_service_is_a_wrapper_the_real_unit_is_named_first(tmp_path: Path) -> None:
    """Debian 12. Started alone, an active wrapper would leave a dead Postfix dead."""
    systemd = Systemd(tmp_path, "echo network-online.target postfix@-.service postfix@other.service")
    postfix = units(tmp_path, "postfix.service")
    await postfix.start()
    await postfix.stop(force=False)
    assert systemd.said == [
        ASKED,
        "start postfix@-.service postfix.service",
        "stop postfix@-.service postfix.service",
    ]
    with pytest.raises(ServiceFailed, match=r"reload postfix@-\.service postfix\.service") as failed:
        await postfix.reload()
    assert "journalctl -u postfix@-.service" in failed.value.hint


async def test_where_it_is_no_wrapper_it_is_named_alone(tmp_path: Path) -> None:
    """Debian 13 and others: there is no postfix@-.service, and naming it would be an error."""
    systemd = Systemd(tmp_path, "echo network-online.target")
    await units(tmp_path, "postfix.service").start()
    assert systemd.said == [ASKED, "start postfix.service"]


async def test_units_without_a_wrapper_are_not_asked_about(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, "exit 1")
    await units(tmp_path, "postfix@-.service").start()
    await units(tmp_path, "dovecot.service").start()
    assert systemd.said == ["start postfix@-.service", "start dovecot.service"]


async def test_a_systemd_that_does_not_answer_holds_nothing_up_for_long(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path, "exec sleep 60")
    began = time.monotonic()
    await units(tmp_path, "postfix.service").stop(force=True)
    assert time.monotonic() - began < 10
    assert systemd.said == [ASKED, "stop postfix.service"]
