# `make quickstart`, `make test` and `make test-all` each do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=30

.PHONY: quickstart test test-long test-all fuzz lint lock aot

# Trains on the embedded data, evaluates and reports.
quickstart: $(VENV)/installed
	$(BIN)/python -m jaxattn.train --config=quickstart

# Lint, types and the unit tests: minutes.
test: lint
	$(PYTEST) tests/unit

# The other tests: integration, parity with Keras and PyTorch, memory, benchmarks at toy size.
test-long: $(VENV)/installed-test
	$(PYTEST) tests/integration tests/parity tests/fuzz

test-all: test test-long

# Damages files for every reader, and kills a run at each of its file operations: many minutes.
fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz --inputs=10000
	PYTHONPATH=. $(BIN)/python tests/integration/kill_points.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compilers for GPUs and TPUs, in an environment on top of the other: where they are installed, JAX
# looks for their devices.
aot: $(VENV)/installed-test
	$(PYTHON) -m venv $(VENV)/aot
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> `$(VENV)/aot/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/base.pth
	$(VENV)/aot/bin/pip install --quiet --no-deps --constraint constraints.txt \
		jax-cuda13-pjrt jax-cuda13-plugin libtpu

# Compiles constraints.txt, the versions that are installed, from pyproject.toml.
lock: $(VENV)/installed-test
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --strip-extras --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra=test --extra=aot --output-file=constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(VENV)/installed $@
