# The two commands of the README: `make demo` runs the main job, `make test` runs the checks and tests.
PYTHON := $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

# Scenarios that `make chaos` plays: CHAOS_SEEDS=17 is that one again.
CHAOS_SEEDS ?= 0-49

# Benchmarks that `make bench` runs: ONLY="model pipeline" are those whose results begin so. CAMVID=folder adds three.
ONLY ?=
CAMVID ?=

.PHONY: help setup demo test test-fast coverage chaos bench check docs format clean

help:
	@echo "make demo       train a small PSPNet, label a bucket with it and query the result, all on this machine"
	@echo "make test       lint, type checks and every test"
	@echo "make test-fast  the same without the slow tests"
	@echo "make coverage   lines and branches of models/ and pipeline/ that the fast tests run"
	@echo "make chaos      an hour of segmentation runs that lose processes, nodes and storage requests (CHAOS_SEEDS=first-last)"
	@echo "make bench      hours of benchmarks, and the documentation's tables of their results (ONLY=\"model pipeline\")"
	@echo "make setup      build .venv, which the others do by themselves"
	@echo "make docs       build the documentation's site in build/docs"
	@echo "make format     format the code"
	@echo "make clean      remove .venv and what the demo wrote"

# Rebuilt whenever the list of dependencies or their pinned versions change.
.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed, and no python3 was found: install python3.11 with its venv module"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, $(PYTHON) is `$(PYTHON) -V`: install python3.11, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@echo "Building .venv: about 7 GB, most of it torch's CUDA build; some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: .venv/.ready

demo: .venv/.ready
	$(BIN)/python jobs/demo.py

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

test-fast: check
	$(BIN)/python -m pytest -m 'not slow'

coverage: .venv/.ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not slow'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

chaos: .venv/.ready
	CHAOS_SEEDS=$(CHAOS_SEEDS) $(BIN)/python -m pytest -s -q tests/test_segment_chaos.py -k one_row

bench: .venv/.ready
	$(BIN)/python -m benchmarks.measure $(ONLY) $(if $(CAMVID),--camvid $(CAMVID))

docs: .venv/.ready
	$(BIN)/mkdocs build --strict --site-dir build/docs

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
