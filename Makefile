# make demo | test | lint | bench — each sets up everything it needs in .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := algorithms analysis simulator topologies traces

.PHONY: setup demo test lint bench clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml .constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(shell grep ^torch== .constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint .constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/paceline demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 -q

bench: $(INSTALLED)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -q -p no:xdist

clean:
	rm -rf $(VENV) runs build *.egg-info
