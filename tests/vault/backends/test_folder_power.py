"""Real power cuts under a folder's store: what a put acknowledged is there, whole, and nothing half is listed."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from holdfast.drill.lab.disk import format_image, wait_released
from holdfast.drill.lab.linux import shut_filesystem_down
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.port import BackendRefused, BackendUnavailable

CUTS = 4
IMAGE_BYTES = 128 * 1024 * 1024

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]


class Disk:
    """An ext4 of its own that can lose power."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.at = folder / "mnt"
        self.at.mkdir()
        format_image(self.image, IMAGE_BYTES)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,noinit_itable", self.image, self.at], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.at], check=True)
        wait_released(self.image)

    def cut_power(self) -> None:
        shut_filesystem_down(self.at)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.unmount()


def _write_until_dark(store: FolderBackend, there: dict[str, bytes], chance: random.Random) -> None:
    """Puts, now and then a delete, until the disk fails; *there*: what was acknowledged."""
    try:
        while True:
            data = chance.randbytes(chance.choice((10, 3_000, 200_000)))
            name = f"{chance.choice(('packs', 'index', 'snapshots'))}/{blake3(data).hexdigest()}"
            store.put(name, data)
            there[name] = data
            if chance.random() < 0.2:
                gone = chance.choice(sorted(there))
                del there[gone]  # until it is acknowledged it may be there or not
                store.delete(gone)
    except (BackendUnavailable, BackendRefused):
        return


def test_what_was_acknowledged_outlives_a_power_cut(disk: Disk) -> None:
    store = FolderBackend(disk.at / "vault", create=True)
    store.put("vault.json", b"{}")
    there: dict[str, bytes] = {}
    for cut in range(CUTS):
        parts: list[dict[str, bytes]] = [{}, {}]
        threads = [
            threading.Thread(target=_write_until_dark, args=(store, part, random.Random(10 * cut + number)))
            for number, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        while min(map(len, parts)) < 5 + 3 * cut:
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.001)
        disk.cut_power()
        for thread in threads:
            thread.join(30)
        disk.unmount()
        disk.mount()
        store = FolderBackend(disk.at / "vault")
        there |= parts[0] | parts[1]
        listed = {found.name for found in store.list("")} - {"vault.json"}
        assert there.keys() <= listed
        for name in listed:
            data = store.get(name)
            assert name.rpartition("/")[2] == blake3(data).hexdigest()
            assert there.get(name, data) == data
        there = {name: store.get(name) for name in listed}
