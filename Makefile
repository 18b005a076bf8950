# The one door: make demo test lint bench. Everything lives in .venv; nothing is installed by hand.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/
READY  := $(VENV)/.ready
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench real clean

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Stillwatch needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@echo "building $(VENV) (once; PyTorch is large: a few minutes)"
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --editable '.[lab,dev]'
	@touch $@

demo: $(READY)   ## drawn drivers: audit, teach, distil, report.html (under 5 minutes on 2 cores)
	@$(RUN)stillwatch demo $(DEMO_ARGS)

test: $(READY)   ## the whole suite (4 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2

lint: $(READY)   ## ruff and mypy
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)mypy

format: $(READY) ## let ruff put the code in order
	@$(RUN)ruff check --fix .
	@$(RUN)ruff format .

bench: $(READY)  ## the naive loop and ours, side by side in one run
	@$(RUN)python -m benchmarks.distil

real: $(READY)   ## checks on the real data: STILLWATCH_DATA=… STILLWATCH_WEIGHTS=… make real
	@$(RUN)python -m pytest -m real tests/real

clean:           ## forget .venv, the demo and the caches of tools
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
