# `make quickstart`, `make test` and `make bench-smoke` each do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint bench-smoke

quickstart: $(VENV)/installed
	$(BIN)/python -m jaxattn.train --config=configs/quickstart.py

test: lint
	$(BIN)/python -m pytest

# Every benchmark at toy size; part of `make test` too.
bench-smoke: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/benchmarks/test_smoke.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(VENV)/installed $@
