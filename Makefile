# `make` lists the targets. ARGS reaches the command behind a target, quoted as in a shell:
#   make train ARGS='--run.steps 20 --mesh.data 4'
#   make test ARGS='tests/laws -k layout'
# PYTHON names the interpreter that .venv/ is made from; remove .venv/ to change it.

CONFIG ?= configs/python_stdlib.py
EXTRA ?=
ARGS ?=

BIN := .venv/bin
SETUP := .venv/.setup
BENCHMARKS ?= $(sort $(wildcard scripts/benchmarks/*.py))
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test test-long chaos lint format notebooks bench lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(SETUP) $(EXTRA:%=$(SETUP)-%)  ## make .venv/ with the lock and the command; EXTRA=cuda13 (cuda12, tpu, torch, ray, wandb) adds to it

$(SETUP): pyproject.toml requirements/dev.txt scripts/setup
	@scripts/setup
	@touch $@

$(SETUP)-%: $(SETUP)
	@scripts/setup $*
	@touch $@

$(SETUP)-torch: requirements/torch.txt

$(SETUP)-ray: requirements/ray.txt

train: $(SETUP)  ## train a small language model on 8 virtual devices of this CPU; CONFIG= another run
	$(BIN)/research train $(CONFIG) --cpu-devices 8 $(ARGS)

test: $(SETUP)  ## all tests but the long ones
	$(BIN)/python -m pytest $(ARGS)

test-long: $(SETUP)  ## the tests that take minutes each
	$(BIN)/python -m pytest -m long -o faulthandler_timeout=0 $(ARGS)

chaos: $(SETUP)  ## kill, stop, cut and fill what a run needs, for minutes; the links of hosts need root
	$(BIN)/python -m pytest -m "long or not long" -o faulthandler_timeout=0 tests/chaos $(ARGS)

lint: $(SETUP)  ## style, types, and which room imports which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy research
	$(BIN)/lint-imports

format: $(SETUP)  ## rewrite what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

notebooks: $(SETUP)  ## execute every notebook; copies with their outputs go to build/notebooks/
	$(BIN)/python scripts/execute_notebooks.py --output build/notebooks $(NOTEBOOKS)

bench: $(SETUP)-torch  ## run scripts/benchmarks/, PyTorch's side included
	@set -e; for benchmark in $(BENCHMARKS); do \
	  echo "== $$benchmark"; $(BIN)/python "$$benchmark" $(ARGS); done

lock:  ## compile requirements/*.txt from pyproject.toml (needs uv); ARGS=--upgrade for newest versions
	scripts/lock $(ARGS)

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
