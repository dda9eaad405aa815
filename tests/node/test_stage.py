"""The stage of a rehearsal: nothing gets out of it, nothing is written outside, nothing is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast.mail.rehearse import Play
from holdfast.mail.settings import MailSettings
from holdfast.node import stage

pytestmark = pytest.mark.system

PROGRAM = """
import json, os, socket, sys
import msgspec
from holdfast.node import stage

def fails(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return ""

setting = msgspec.json.decode(sys.stdin.buffer.read(), type=stage.Setting)
outside, door, port, sampled = sys.argv[1:]
stage.build(setting)
(pid,) = [name for name in os.listdir("/proc") if name == "1"]
tree = setting.binds[0][1]
print(json.dumps({
    "write outside": fails(lambda: open(outside, "a")),
    "socket outside": fails(lambda: socket.socket(socket.AF_UNIX).connect(door)),
    "port outside": fails(lambda: socket.create_connection(("127.0.0.1", int(port)), 2)),
    "another machine": fails(lambda: socket.create_connection(("192.0.2.1", 25), 2)),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "sees": os.listdir(tree),
    "writes to the sample": fails(lambda: open(os.path.join(tree, "new"), "w").close()),
    "writes to the log": fails(lambda: open("/var/log/x", "w").close()),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "service address": fails(lambda: socket.socket().bind(("192.0.2.10", 2525))),
}))
"""


def test_nothing_gets_out_and_nothing_is_written_and_nothing_is_left(tmp_path: Path) -> None:
    tree, sampled, outside = tmp_path / "vmail", tmp_path / "stage", Path("/var/lib") / f"holdfast-test-{os.getpid()}"
    for folder, name in ((tree, "all"), (sampled, "some")):
        folder.mkdir()
        (folder / name).write_text(name)
    door = f"/run/holdfast-test-{os.getpid()}.sock"
    setting = stage.Setting(Play(MailSettings(), ("192.0.2.10/24",)), ((str(sampled), str(tree)),))
    mounts = Path("/proc/mounts").read_text()
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        unix.bind(door)
        unix.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        try:
            done = subprocess.run(
                [*stage.UNSHARE, sys.executable, "-c", PROGRAM, str(outside), door, str(tcp.getsockname()[1]), ""],
                input=msgspec.json.encode(setting),
                capture_output=True,
                check=False,
                timeout=60,
            )
        finally:
            Path(door).unlink()
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found == {
        "write outside": "Read-only file system",
        "socket outside": "No such file or directory",
        "port outside": "Connection refused",
        "another machine": "Network is unreachable",
        "interfaces": ["lo"],
        "sees": ["some"],
        "writes to the sample": "",
        "writes to the log": "",
        "processes": 1,
        "service address": "",
    }
    assert os.listdir(tree) == ["all"]
    assert not outside.exists()
    assert Path("/proc/mounts").read_text() == mounts
