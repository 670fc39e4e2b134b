# Each target sets itself up in .venv on a fresh machine; nothing else needs to be typed first.
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.edge-distill-ready

.PHONY: help demo test parts check bench clean pi pi-all pi-baseline
help:
	@echo "make demo    generate data, distil, deploy to every runtime, bench, open the report"
	@echo "make test    run the tests (ARGS='-k name' for some of them, TESTS=tests/deploy for a part)"
	@echo "make check   lint, types, import contracts"
	@echo "make pi      bench make demo's bundles on an emulated Raspberry Pi, against this machine (pi-all: every engine)"
	@echo "make bench   bench the newest bundles below runs/ (ARGS='--device pi …' for more)"

# The first Python of a version the tool chains support.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with venv found: install one, or name it: make PYTHON=…"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version): a few minutes and about 8 GB, once"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	@# OpenCV's wheel links against the system's OpenGL and GLib, which a bare server may lack.
	@$(PY) -c 'import cv2' || { echo "error: OpenCV cannot be loaded: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

demo: $(READY)
	$(PY) examples/demo.py --open

# A process per part, two at a time: engines, exporters and trainers of several libraries do not share one for long.
TESTS ?=
JOBS ?= 2
test: $(READY)
	@$(PY) tests/run_parts.py --jobs $(JOBS) $(TESTS) $(if $(strip $(ARGS)),--pytest $(ARGS))

parts: $(READY)
	@$(PY) tests/run_parts.py --list

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# On an emulated Raspberry Pi, skipped where QEMU is not installed. What make demo left last, its instructions counted;
# pi-baseline records their number anew, after a change that is meant to cost some or with other versions of the engines.
PI_RUN ?= $(shell ls -dt demo-run demo-run-* 2>/dev/null | head -n 1)
PI_TESTS := tests/bench/test_emulated_pi.py
pi pi-baseline: $(READY)
	@test -n "$(PI_RUN)" || { echo "error: no bundles to run there: make demo"; exit 1; }
	EDGE_PI_RUN="$(PI_RUN)" EDGE_PI_RECORD="$(findstring baseline,$@)" $(PY) -m pytest -m pi $(PI_TESTS) $(ARGS)

pi-all: $(READY)
	$(PY) -m pytest -m pi $(PI_TESTS) $(ARGS)

bench: $(READY)
	$(PY) bench/run.py $(ARGS)

clean:
	rm -rf $(VENV) demo-run demo-run-*
