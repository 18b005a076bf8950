# The one door: make demo test fast lint bench. Everything lives in .venv; nothing is installed by hand.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/
READY  := $(VENV)/.ready
DEMO_ARGS ?=
BUNDLE ?= demo/bundle
PROGRAMS := chromium mosquitto openssh-server gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
            gstreamer1.0-plugins-ugly postgresql prometheus

unexport PYTHONDONTWRITEBYTECODE  # what a test starts is compiled once, not each time

.DEFAULT_GOAL := help
.PHONY: help demo test fast docs lint format bench real arm64 programs clean

help:            ## this list
	@grep -E '^[a-z0-9]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Stillwatch needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@echo "building $(VENV) (once; PyTorch is large: a few minutes)"
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	@$(RUN)python -m pip install --quiet --disable-pip-version-check --editable '.[lab,dev]'
	@touch $@

demo: $(READY)   ## drawn drivers: from the data to a live page (4 to 6 minutes on 2 cores)
	@$(RUN)stillwatch demo $(DEMO_ARGS)

test: $(READY)   ## the whole suite (7 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2

fast: $(READY)   ## what needs no PyTorch, no clock, process or browser (40 s on one core with two threads)
	@OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2 -m 'not real and not torch and not slow'

docs: $(READY)   ## the site, in site/; strict, and nothing in it loads from another host
	@NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet

lint: $(READY)   ## ruff and mypy
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)mypy

format: $(READY) ## let ruff put the code in order
	@$(RUN)ruff check --fix .
	@$(RUN)ruff format .

bench: $(READY)  ## the naive loop and ours; the street and score on BUNDLE, side by side with decoding alone
	@$(RUN)python -m benchmarks.distil
	@test -f $(BUNDLE)/bundle.json || { echo "the street: make bench BUNDLE=a bundle's folder (make demo makes $(BUNDLE))"; exit 1; }
	@$(RUN)python -m benchmarks.street $(BUNDLE)
	@$(RUN)python -m benchmarks.score $(BUNDLE)

real: $(READY)   ## checks on the real data: STILLWATCH_DATA=… STILLWATCH_WEIGHTS=… make real
	@$(RUN)python -m pytest -m real tests/real

arm64: $(READY)  ## an emulated aarch64 Debian runs BUNDLE (root; qemu-user-static, binfmt-support, debootstrap; 20 minutes)
	@$(RUN)python -m benchmarks.arm64 $(BUNDLE)

programs:        ## Debian's programs that some tests talk to: a browser, an MQTT broker, an sshd, Postgres, promtool; without them those tests skip
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  dpkg -s $(PROGRAMS) >/dev/null 2>&1 || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PROGRAMS) >/dev/null; } || \
	  echo "not all of $(PROGRAMS) could be installed: the tests that need them will say that they skip"; \
	else echo "wanted by some tests: $(PROGRAMS)"; fi

clean:           ## forget .venv, the demo and the caches of tools
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
