"""A network namespace with one interface of its own, ``hf0``, for tests that add and remove addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
PYTHON = (sys.executable, "-c")
HOLDFAST = (sys.executable, "-P", "-m", "holdfast.console.main")
SECONDS_MAX = 60.0


def in_namespace(*steps: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run *steps* one after another in a fresh namespace, which is gone afterwards; what each one said."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; read end"], stdin=-1, stdout=-1, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        make = "ip link set lo up && ip link add hf0 type veth peer hf1 && ip link set hf1 up && ip link set hf0 up"
        subprocess.run([*enter, "sh", "-e", "-c", make], check=True, timeout=SECONDS_MAX)
        return [
            subprocess.run([*enter, *step], capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
            for step in steps
        ]
    finally:
        holder.communicate("\n", timeout=SECONDS_MAX)
