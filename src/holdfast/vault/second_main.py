"""The second process of a restore (see ``second``): ``python -m holdfast.vault.second_main``, never called by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from holdfast.errors import HoldfastError
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.keys import Readers, Secrets
from holdfast.vault.objects import Codec
from holdfast.vault.patient import DISK, PatientBackend
from holdfast.vault.repository import Vault
from holdfast.vault.restore import Restored, restore_from_the_back
from holdfast.vault.second import TOLD_EVERY_FILES, Errand, Told

_PR_SET_PDEATHSIG: Final = 1


class _Teller:
    """Says now and then how much has been done."""

    def __init__(self) -> None:
        self._files = 0
        self._bytes = 0

    def __call__(self, restored: Restored) -> None:
        if restored.files - self._files >= TOLD_EVERY_FILES:
            self.say(restored, Told())

    def say(self, restored: Restored, told: Told) -> None:
        """*told*, and what was done since the last time."""
        told.files_made, told.bytes_made = restored.files - self._files, restored.bytes - self._bytes
        self._files, self._bytes = restored.files, restored.bytes
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


def _vault(errand: Errand) -> Vault:
    """As the first process has it: what is in the store was looked at there."""
    backend = PatientBackend(FolderBackend(Path(errand.folder)), DISK)
    codec = Codec(Secrets(errand.vault, errand.secret))
    return Vault(backend, codec, Readers(errand.identities), None, Path(errand.catalog))


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    errand = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Errand)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != errand.parent:
        return 1
    teller = _Teller()
    restored, told = Restored(teller), Told(ended=True)
    try:
        with _vault(errand) as vault:
            vault.hold_less()
            told.directories, links = restore_from_the_back(vault, errand, restored)
            told.links = list(links.items())
    except HoldfastError as error:
        told.kind, told.problem, told.hint = type(error).__name__, error.message, error.hint
    except OSError as error:
        told.errno = error.errno or 0
    told.failures = [(failure.path, failure.reason) for failure in restored.failures]
    told.failures_total = restored.failures_total
    teller.say(restored, told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
