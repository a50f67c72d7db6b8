# SPDX-License-Identifier: Apache-2.0
# Needs Python >= 3.10, make and a package index; everything else goes into .venv.
#
#   make demo     enhance one real brain image and look at the report
#   make test     run the tests
#
# PYTHON=python3.12 make demo   chooses the interpreter; VENV=/somewhere/else the environment.

PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo
FAULTS_DIR ?= build/faults
FAULTS_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow test-faults lint format clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One call of pip: every version is pinned, torch's too (an unpinned one may draw in the newest
# build with gigabytes of CUDA libraries). Without --no-compile it takes half as long again.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("bmex_bids needs Python 3.10 or newer; this is %d.%d. Try: make PYTHON=python3.12 ..." % v[:2])'
	@echo "Installing into $(VENV) (about two minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## build a small dataset, enhance it, validate the output, show where the report is
	$(BIN)/bmex-demo $(DEMO_DIR)

test: $(READY) ## run the tests (those marked slow are left out)
	$(BIN)/python -m pytest

test-slow: $(READY) ## run the slow tests as well
	$(BIN)/python -m pytest -m "slow or not slow"

test-faults: $(READY) ## break whole runs on purpose (an hour); writes the tables of docs/reliability.md
	$(BIN)/python tests/faults/all.py $(FAULTS_DIR) $(FAULTS_FLAGS)

lint: $(READY) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, the demo and all caches
	rm -rf $(VENV) $(DEMO_DIR) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
