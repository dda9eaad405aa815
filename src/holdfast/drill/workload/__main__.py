"""``python -m holdfast.drill.workload --plan PLAN --journal JOURNAL``: run a workload.

Ends by itself, or in good order on SIGTERM or SIGINT. Prints the seed first and the counts last, as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import threading
from pathlib import Path

import msgspec

from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.journal import Journal
from holdfast.drill.workload.run import Workload
from holdfast.errors import ExitStatus, HoldfastError


def main(arguments: list[str] | None = None) -> ExitStatus:
    parser = argparse.ArgumentParser(prog="holdfast.drill.workload", description="Run a recorded mail workload.")
    parser.add_argument("--plan", type=Path, required=True, help="JSON, see holdfast.drill.workload.plan")
    parser.add_argument("--journal", type=Path, required=True, help="where to append JSON lines")
    parser.add_argument("--seed", type=int, help="instead of the plan's; a plan's 0 means: draw one")
    options = parser.parse_args(arguments)
    plan = plans.load(options.plan)
    seed = options.seed if options.seed is not None else plan.seed or secrets.randbelow(2**32)
    plan = msgspec.structs.replace(plan, seed=seed)
    print(json.dumps({"seed": seed, "messages": plan.deliveries.messages, "accounts": len(plan.accounts)}), flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    journal = Journal(options.journal)
    Workload(plan, journal, stop).run()
    print(json.dumps({"seed": seed, "stopped": stop.is_set(), **journal.counts}), flush=True)
    return ExitStatus.DONE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HoldfastError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_status)
