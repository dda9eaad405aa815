"""Other people's testers, against the servers directly and through the gates: the results must be the same.

* ImapTest, Dovecot's IMAP tester (https://github.com/dovecot/imaptest): its scripted tests (RFC 3501 and extensions),
  and its load of random commands, which checks every answer against what it did before.
* litmus, the WebDAV test suite (Debian's package). Radicale is no plain WebDAV server, so it fails in places: in the
  same ones.

As a program: ``make conformance``. Exit status 1 when a result differs, or ImapTest finds an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from holdfast.gate.barrier import PatientBarrier, SharedBarrier
from holdfast.gate.dav import DavGate
from holdfast.gate.imap import ImapSession
from holdfast.gate.passing import PassingGate
from holdfast.gate.serve import Place, listening_at
from tests.mail.boxes import PASSWORD, USER, DovecotBox, RadicaleBox, free_port

IMAPTEST: Final = Path("build/imaptest/src")
BARRIER_SECONDS: Final = 0.003
"""About what a barrier takes."""
LOAD_SECONDS: Final = 20
LIMITS: Final = "mail_max_userip_connections = 100\n"
CODEPATH: Final = {"LD_LIBRARY_PATH": "/usr/lib/dovecot"}


async def _barrier() -> None:
    await asyncio.sleep(BARRIER_SECONDS)


def patient() -> PatientBarrier:
    return PatientBarrier(SharedBarrier(_barrier), 10)


async def output(*argv: str | Path, folder: Path | None = None) -> str:
    """What a tester says on both its outputs; its exit status at the end."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env={**os.environ, **CODEPATH},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return said.decode("utf-8", "replace") + f"exit status {process.returncode}\n"


@contextlib.asynccontextmanager
async def dovecot(folder: Path, *, gated: bool) -> AsyncIterator[tuple[int, PassingGate | None]]:
    """Its IMAP port."""
    socket = folder / "imap-gate"
    folder.mkdir()
    box = DovecotBox(folder, extra=LIMITS + (f"service imap {{\n executable = imap {socket}\n}}\n" if gated else ""))
    gate = PassingGate("IMAP gate", ImapSession, patient()) if gated else None
    if gate is not None:
        await gate.start(listening_at(Place(str(socket))))
    await box.service.start()
    try:
        yield box.imap_port, gate
    finally:
        await box.service.stop(force=True)
        if gate is not None:
            await gate.stop()


async def imaptest(folder: Path, *, gated: bool) -> tuple[str, list[str]]:
    """The scripted tests' output, and the errors of the load."""
    async with dovecot(folder, gated=gated) as (port, gate):
        common: list[str | Path] = [
            IMAPTEST / "imaptest",
            "host=127.0.0.1",
            f"port={port}",
            f"user={USER}",
            f"pass={PASSWORD}",
        ]
        scripted = await output(*common, f"test={IMAPTEST / 'tests'}")
        load = await output(*common, f"mbox={IMAPTEST / 'tests' / 'default.mbox'}", "clients=8", f"secs={LOAD_SECONDS}")
        errors = [line for line in load.splitlines() if re.search("error|stalled", line, re.IGNORECASE)]
        if gate is not None:
            print(f"through the gate: {gate.counts}")
            assert gate.counts.held
            assert not gate.counts.broken
            assert not gate.counts.unsafe
    return scripted, errors


async def litmus(folder: Path) -> tuple[str, str]:
    """What litmus says of Radicale, directly and through the gate."""
    said = []
    for gated in (False, True):
        box = RadicaleBox(folder / str(gated))
        box.config.write_text(
            box.config.read_text() + "[rights]\ntype = authenticated\n"
        )  # its own folder is at the top
        await box.service.start()
        port, gate = free_port(), DavGate(Place("", "127.0.0.1", box.port), patient())
        await gate.start(listening_at(Place("", "127.0.0.1", port)))
        try:
            url = f"http://127.0.0.1:{port if gated else box.port}/"
            text = await output("litmus", "-k", url, USER, PASSWORD, folder=folder)
            text = re.sub(r"(PUT of `|LOCK on ).*?(':| via)", r"\1...\2", text)  # litmus shows memory that it has freed
            said.append(text.replace(str(port), "PORT").replace(str(box.port), "PORT"))
        finally:
            await gate.stop()
            await box.service.stop(force=True)
    return said[0], said[1]


def compared(name: str, direct: str, gated: str) -> bool:
    """Whether the two say the same; says so."""
    same = direct == gated
    last = [line for line in gated.splitlines() if re.search(r"failed|passed|exit status", line)][-4:]
    print(f"{name}: {'the same' if same else 'DIFFERENT'}\n  " + "\n  ".join(last))
    if not same:
        print("directly:", *direct.splitlines(), "through the gate:", *gated.splitlines(), sep="\n  ")
    return same


async def run(folder: Path) -> int:
    folder.chmod(0o755)
    direct, direct_errors = await imaptest(folder / "direct", gated=False)
    gated, gated_errors = await imaptest(folder / "gated", gated=True)
    good = compared("ImapTest, scripted tests", direct, gated) and "exit status 0" in gated
    print(
        f"ImapTest, load of {LOAD_SECONDS} s: {len(direct_errors)} errors directly, "
        f"{len(gated_errors)} through the gate"
    )
    print(*gated_errors[:20], sep="\n")
    good = good and not gated_errors
    return 0 if compared("litmus", *await litmus(folder)) and good else 1


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="hf-conformance-") as folder:
        return asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
