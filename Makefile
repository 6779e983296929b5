# make demo    try it out              make test   run every test, on real servers
# make bench   measure                 make check  format, lint and types
# make fmt     write the format        make clean  remove what these have made
# make docs    write what is generated in docs
# make simulate  run whole worlds of engines, brokers and faults: SEEDS=1000 many, SEED=7 one and its story
# make chaos MINUTES=10  move money while engines, broker and databases are killed, and see that no cent is lost; SEED=…
# make fuzz MINUTES=10  give spoilt messages, frames, sagas, tokens and addresses to whatever reads them
# make soak MINUTES=10 RATE=50  run an engine at a steady rate and see that nothing grows; BACKEND=trio, STORE=sqlite
# make mutation  break the core on purpose and see whether the tests notice: 20 minutes or more
#
# Everything runs in .venv, which is made from PYTHON with the versions of constraints.txt.

PYTHON ?= python3
ARGS ?=
SEEDS ?= 100
FIRST ?= 0
JOBS ?= 2
MINUTES ?= 10
SEED ?=
RATE ?= 50
BACKEND ?= asyncio
STORE ?= postgres

# A test that fails is to be seen behind a pipe.
SHELL := bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
# -c and not PIP_CONSTRAINT: a constraint of the user's own stays in force.
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test test-computing test-waiting check bench fmt clean dev docs mutation simulate chaos fuzz soak

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/saga demo $(ARGS)

# SAGA_TEST_AMQP_URL names a RabbitMQ to use, SAGA_TEST_POSTGRES_URL a PostgreSQL; without them the tests start private ones.
# Two halves side by side, of which one computes while the other waits for servers. With ARGS what these name, and no more.
ifeq ($(ARGS),)
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory --jobs=2 test-computing test-waiting
else
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)
endif

COMPUTING := core world stores barrier transports formats fuzz docs
BY_LINE := | $(BIN)/python -c 'import sys; [print(line, end="", flush=True) for line in sys.stdin]'
test-computing test-waiting: export PYTHONUNBUFFERED = 1

test-computing:
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(COMPUTING:%=tests/%) $(BY_LINE)
	$(BIN)/coverage report

test-waiting:
	$(BIN)/python -m pytest $(COMPUTING:%=--ignore=tests/%) $(BY_LINE)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright

# What it is compared with, it does without where that cannot be installed.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py

# FIRST is the first of the SEEDS, JOBS how many processes run them.
simulate: $(VENV)/.installed-dev
	$(BIN)/python -m saga_amqp.testing.world \
	    $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)) $(ARGS)

chaos: $(VENV)/.installed-dev
	$(BIN)/python -W error -m tests.faults.bank --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Inputs that did what they must not are kept in .fuzz/found; python -m tests.fuzz --help says how to try one again.
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -W error -m tests.fuzz --minutes $(MINUTES) $(ARGS)

# RATE is sagas a second; BACKEND asyncio, uvloop or trio; STORE memory, sqlite or postgres. Results are left in .soak.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --rate $(RATE) --backend $(BACKEND) --store $(STORE) $(ARGS)

mutation: $(VENV)/.installed-dev
	$(BIN)/python tests/mutation.py $(ARGS)

dev: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .fuzz .hypothesis .mypy_cache .pytest_cache .ruff_cache .soak
	rm -rf benchmarks/node/node_modules
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[trio]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev benchmarks/node/package.json
	-$(INSTALL) --editable '.[dev,peers]'
	-command -v npm >/dev/null && npm install --prefix benchmarks/node --silent --ignore-scripts --no-package-lock
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	$(INSTALL) --editable '.[fuzz]'
	@touch $@

# Debian splits venv off from Python. Without its package the first attempt leaves half an environment behind.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    package="python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"; \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing $$package" && apt-get update -qq && \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$package" && \
	        $(PYTHON) -m venv $(VENV); \
	    else \
	        echo "Python cannot make an environment here. Please run: apt-get install $$package" >&2; false; \
	    fi; } || { rm -rf $(VENV); exit 1; }
