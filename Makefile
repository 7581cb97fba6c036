# Two commands are the whole set-up: `make demo` and `make test`. Both make .venv from constraints.txt first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
LOCK := pyproject.toml constraints.txt

# Tests run on all cores; one numerical thread in each process, so that they do not fight for them.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo test test-unit test-slow test-hostile test-all check fuzz mutants paths bench tables lock clean

demo: $(RUN_STAMP)
	$(BIN)/fedq run experiment=demo

test: $(DEV_STAMP)
	$(PYTEST)

# What needs no whole federation, other process or export: under a minute.
test-unit: $(DEV_STAMP)
	$(PYTEST) -m "not slow and not integration"

# Real SuperLinks and SuperNodes, Ray, real data: minutes.
test-slow: $(DEV_STAMP)
	$(PYTEST) -m slow

# Attacks on privacy, wire, server and audit, each of which once worked.
test-hostile: $(DEV_STAMP)
	$(PYTEST) -m hostile

# Every hostile test is in one of the first two.
test-all: test test-slow fuzz

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/test_architecture.py

# The codec reads 100,000 mutations of valid packets, then what atheris finds in a minute.
fuzz: $(DEV_STAMP)
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.fuzz.guided

# How many files a reader has to open to follow a round, a DP step or an encoding.
paths: $(DEV_STAMP)
	$(BIN)/python -m tests.paths

# What tests of codec, reply checks and privacy would not notice: docs/mutants.md. Hours; goes on where it stopped.
mutants: $(DEV_STAMP)
	$(BIN)/python -m tests.mutants

# The first run of `job` makes an environment for each peer: some minutes.
bench: $(DEV_STAMP)
	$(BIN)/python -m simulations.bench codec
	$(BIN)/python -m simulations.bench privacy
	$(BIN)/python -m simulations.bench quant
	$(BIN)/python -m simulations.bench runtime
	$(BIN)/python -m simulations.bench startup
	$(BIN)/python -m simulations.bench job

# Runs what is missing of every table in README.md and docs, then writes them.
tables: $(DEV_STAMP)
	$(BIN)/python -m simulations.demo_ablation
	$(BIN)/python -m simulations.fashion_mnist
	$(BIN)/python -m simulations.codec_accuracy
	$(BIN)/python -m simulations.codec_tables
	$(BIN)/python -m simulations.quant_accuracy
	$(BIN)/python -m simulations.demo_picture
	$(BIN)/python -m simulations.client_startup
	$(BIN)/python -m simulations.audit_detection

$(RUN_STAMP): $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(DEV_STAMP): $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@ $(RUN_STAMP)

# Resolve the newest versions that pyproject.toml allows, in a fresh environment, and write them down.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet "torch==2.13.0" -e ".[dev,ray]"
	( echo "# Written by 'make lock': the versions that CI tests. pyproject.toml states what fedq accepts."; \
	  .venv-lock/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu//' ) > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) build dist outputs .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants
