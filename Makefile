# Two commands matter: `make demo` and `make test`. Each sets up what it needs, as root on Debian 12.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
.DEFAULT_GOAL := help

.PHONY: help setup demo test check bench bench-delivery bench-scan bench-log bench-vault bench-gate bench-drain lab docs drill-failover worst-cases drill-mail chaos conformance clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

setup:  ## system packages and the virtual environment
	@tools/setup

demo: setup  ## a mail site in a lab: main dies, backup carries on; report in build/demo/
	@$(PYTHON) -m holdfast.drill.demo

check: setup  ## style, types, layering, generated docs
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PYTHON) tools/generate_docs.py --check

test: setup check  ## all checks and tests, the real mail software included; two at a time where they may: tests/lanes.py
	@$(PYTEST) -n 2

bench: bench-scan bench-log bench-vault bench-gate bench-delivery  ## every speed claim, beside a peer, in one run each

bench-delivery: setup  ## deliveries: bare Dovecot, Dovecot's replicator, Holdfast
	@$(PYTHON) -m bench.delivery $(ARGUMENTS)

bench-gate: setup  ## what the gates cost: deliveries and acceptances with and without
	@$(PYTHON) -m bench.gate $(ARGUMENTS)

bench-drain: setup  ## a relay's hold queue handed on, beside the same straight into Dovecot
	@$(PYTHON) -m bench.drain $(ARGUMENTS)

bench-scan: setup  ## a scan beside rsync
	@$(PYTHON) bench/scan.py

bench-log: setup  ## appends to the log
	@$(PYTHON) -m bench.log

bench-vault: setup  ## backups beside restic and borg
	@$(PYTHON) -m bench.vault $(ARGUMENTS)

lab: setup  ## a lab to look around in; `.venv/bin/holdfast lab --help`
	@.venv/bin/holdfast lab up

docs: setup  ## write the generated pages anew
	@$(PYTHON) tools/generate_docs.py

drill-failover: setup  ## the primary dies under load, RUNS=50 times, and nobody gives an order: build/drill/failover.json
	@$(PYTHON) -m holdfast.drill.failover --runs $(or $(RUNS),50)

drill-mail: setup  ## faults under mail load, RUNS=100 of them: nothing accepted is lost or doubled: build/drill/mail.json
	@$(PYTHON) -m holdfast.drill.mail --runs $(or $(RUNS),100) $(if $(SEED),--seed $(SEED))

worst-cases: setup  ## the worst cases of docs/operations/worst-cases.md on machines of a lab, copies at intervals too
	@$(PYTEST) tests/scenario/worst_cases.py

# Those that ask tests/examples.py how many.
PROPERTIES := tests/changes/test_exchange.py tests/flow tests/vault/test_exact.py tests/vault/test_feed.py \
    tests/vault/test_instant.py tests/vault/test_keeping_anything.py tests/vault/test_logfed.py tests/watch/test_anything.py
chaos: setup  ## long runs: a million fuzzed frames and sessions, SEEDS=10000 of a simulated site, LAB_SEEDS=20 of a lab; SEED=N
	@HOLDFAST_FUZZ_FRAMES=1000000 $(PYTHON) -m tests.changes.fuzz_frame
	@HOLDFAST_FUZZ_CODECS=1000000 $(PYTHON) -m tests.gate.fuzz_codecs
	@HOLDFAST_EXAMPLES=400 $(PYTEST) $(PROPERTIES)
	@$(PYTHON) -m holdfast.drill.simulated_site --seeds $(or $(SEEDS),10000) $(if $(SEED),--seed $(SEED))
	@$(PYTHON) -m holdfast.drill.chaos --seeds $(or $(LAB_SEEDS),20) $(if $(SEED),--seed $(SEED))

conformance: setup  ## ImapTest and litmus, directly and through the gates: the same results
	@tools/imaptest
	@$(PYTHON) -m tests.gate.conformance

clean:  ## remove the virtual environment and everything built
	@rm -rf .venv build
