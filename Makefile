# make setup | demo | test | lint | stress | cases | mutants | rounds | bench | bench-simgrid | validate-emulated |
# validate-calibrated | validate-calibrated-network — each sets up everything it needs in .venv first; make clean
# removes it, runs and builds.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SIMGRID := build/simgrid-workload
SELECT ?= not large
PAGE ?= simulator/engine/COSTS.md
VALIDATION ?= analysis/validate/README.md
PACKAGES := algorithms analysis simulator topologies traces

.PHONY: setup demo test lint stress cases mutants rounds bench bench-simgrid validate-emulated validate-calibrated validate-calibrated-network clean

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

# The random cases of the network core, 60 times as many as in `make test`: about 300,000, in an hour or so.
cases: $(INSTALLED)
	PACELINE_CASES=60 $(BIN)/python -m pytest -n 2 -q tests/simulator/engine/test_fairshare.py \
	  tests/simulator/engine/test_core_collectives.py tests/simulator/engine/test_clock.py

# Every algorithm and codec with one sign, operator or number changed, each of which a test must notice.
mutants: $(INSTALLED)
	PACELINE_MUTANTS=all $(BIN)/python -m pytest -n 2 -q tests/algorithms -k mutant

# Every real run of the asynchronous algorithms, 20 times, and all simulated seeds that they are held against.
stress: $(INSTALLED)
	PACELINE_STRESS=20 $(BIN)/python -m pytest -n 1 -q tests/simulator/execution/test_asynchronous.py

# A hundred starts and ends of local ranks in a row, good and failing ones, must leave nothing behind.
rounds: $(INSTALLED)
	PACELINE_ROUNDS=100 $(BIN)/python -m pytest -q -p no:xdist \
	  tests/simulator/execution/test_patience.py -k runs_in_a_row

bench: $(INSTALLED)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -q -p no:xdist -m "$(SELECT)"

# The same workload files on ours and in SimGrid; rewrites the page's tables. A shorter run, for a look:
# make bench-simgrid PAGE= ARGUMENTS="--nodes 64 --rounds 1"
bench-simgrid: $(INSTALLED) $(SIMGRID)
	$(BIN)/python -m tests.benchmarks.compare $(SIMGRID) $(if $(PAGE),--write $(PAGE)) $(ARGUMENTS)

$(SIMGRID): tests/benchmarks/simgrid/workload.cpp
	@echo '#include <simgrid/s4u.hpp>' | $(CXX) -x c++ -E - >/dev/null 2>&1 || \
	  { echo "bench-simgrid needs a C++ compiler and SimGrid's headers: install libsimgrid-dev" >&2; exit 2; }
	mkdir -p $(@D)
	$(CXX) -O2 -std=c++17 -Wall -Wextra $< -lsimgrid -o $@

# Simulation against real TCP in emulated networks: 320 cases, five runs each, some hours on a machine with
# nothing else to do; needs root. It goes on where it was stopped. A part of it, for a look:
# make validate-emulated VALIDATION= ARGUMENTS="--only star-4-200-even --runs 2"
validate-emulated: $(INSTALLED)
	$(BIN)/python -m analysis.validate.emulated $(if $(VALIDATION),--write $(VALIDATION)) $(ARGUMENTS)

# Calibrate this machine, then simulate and execute the same scenarios on it: some minutes.
validate-calibrated: $(INSTALLED)
	$(BIN)/python -m analysis.validate.calibrated $(ARGUMENTS)

# Calibrate an emulated network, then predict what is executed there: some minutes, and as root.
validate-calibrated-network: $(INSTALLED)
	$(BIN)/python -m analysis.validate.calibrated_network $(ARGUMENTS)

clean:
	rm -rf $(VENV) runs build *.egg-info
