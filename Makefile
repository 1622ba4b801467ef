# The two commands of the README: `make demo` runs the main job, `make test` runs the checks and tests.
PYTHON := $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

# Scenarios that `make chaos` plays: CHAOS_SEEDS=17 is that one again.
CHAOS_SEEDS ?= 0-49

# Benchmarks that `make bench` runs: ONLY="model pipeline" are those whose results begin so. CAMVID=folder adds three.
ONLY ?=
CAMVID ?=

# Processes that run tests. Each may start a Ray head of its own, and what it runs there; more than cores do not help.
TEST_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(max(2, min(os.cpu_count(), 8)))')
# ORDER=random shuffles files and the tests of each; the run prints the seed that repeats it.
ORDER ?= fixed
PYTEST = $(BIN)/python -m pytest $(if $(filter random,$(ORDER)),,-p no:randomly) -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations 20

.PHONY: help setup demo test test-all test-fast coverage chaos bench check docs format clean

help:
	@echo "make demo       train a small PSPNet, label a bucket with it and query the result, all on this machine"
	@echo "make test       lint, type checks, and the tests; CONTRIBUTING.md says how long it may take"
	@echo "make test-all   the same with the exhaustive tests: every chaos scenario, every fault alone"
	@echo "make test-fast  the same without the slow tests: no Ray head, few servers"
	@echo "make coverage   lines and branches of models/ and pipeline/ that the fast tests run"
	@echo "make chaos      hours of segmentation runs with killed processes, lost nodes, storage faults and second writers (CHAOS_SEEDS=first-last)"
	@echo "make bench      hours of benchmarks, and the documentation's tables of their results (ONLY=\"model pipeline\")"
	@echo "make setup      install everything for development in .venv, which the others do by themselves"
	@echo "make docs       build the documentation's site in build/docs"
	@echo "make format     format the code"
	@echo "make clean      remove .venv and what the demo wrote"

# Made again whenever the list of dependencies or their pinned versions change.
.venv/.demo: pyproject.toml constraints.txt scripts/install.sh
	@echo "Installing what the demo needs in .venv: 6.4 GB, most of it torch's CUDA build; some minutes (log: .venv/install.log)"
	@scripts/install.sh "$(PYTHON)" demo
	@touch $@

.venv/.ready: .venv/.demo
	@echo "Installing what the tests need in .venv: 1.6 GB more"
	@scripts/install.sh "$(PYTHON)" dev
	@touch $@

setup: .venv/.ready

demo: .venv/.demo
	$(BIN)/python jobs/demo.py

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(PYTEST) -m 'not exhaustive'

test-all: check
	$(PYTEST)

test-fast: check
	$(PYTEST) -m 'not slow and not exhaustive'

coverage: .venv/.ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not slow and not exhaustive'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

chaos: .venv/.ready
	CHAOS_SEEDS=$(CHAOS_SEEDS) $(BIN)/python -m pytest -s -q tests/test_segment_chaos.py -k "one_row or writers"

bench: .venv/.ready
	$(BIN)/python -m benchmarks.measure $(ONLY) $(if $(CAMVID),--camvid $(CAMVID))

docs: .venv/.ready
	$(BIN)/mkdocs build --strict --site-dir build/docs

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
