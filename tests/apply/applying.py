"""The process that is killed: applies a log to a standby made before, and says so after each frame.

``python -m tests.apply.applying FOLDER``; the log is in ``FOLDER/log``, msgpack of the frames.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.apply.model import read_log
from tests.apply.standby import Standby


def main() -> None:
    folder = Path(sys.argv[1])
    log = read_log(msgspec.msgpack.decode((folder / "log").read_bytes(), type=list[bytes]))
    standby = Standby(folder)
    for number, record in enumerate(log[standby.applier.chain.sequence :]):
        standby.applier.apply(*record)
        if number % 30 == 29:
            standby.applier.make_durable()
        print(record.chain.sequence, flush=True)
    sys.stdin.read()  # until it is killed


if __name__ == "__main__":
    main()
