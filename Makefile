SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
# spaces in the checkout's path are fine: every path here is relative to it
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: install demo test browser lint bench study certify clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "uhr needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make $(MAKECMDGOALS) PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[all,dev]' | { grep -v '^Requirement already' || true; }
	@# ultralytics asks for opencv-python, which wants libGL: the headless build, installed last, is the one in use
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps --constraint constraints.txt opencv-python-headless
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m uhr demo

test: $(STAMP) browser
	@# two processes: a third makes tests with time limits fail on two cores. A file stays in one, for the fixtures
	@# that its tests share. Files come in their order (tests/conftest.py), not by number of tests: the long files
	@# of few tests would come last, and one process would wait for the other. Compiled tests are kept, whatever
	@# the environment says: each process would compile all of them anew
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

browser:
	@# Debian's Chromium for the tests of pages, where it can be installed without a question; without it they are
	@# skipped, and say so
	@command -v chromium chromium-browser google-chrome > /dev/null || { \
		command -v apt-get > /dev/null || exit 0; \
		root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
		[ -z "$$root" ] || sudo -n true 2> /dev/null || exit 0; \
		install="$$root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends chromium"; \
		$$install > /dev/null 2>&1 || { $$root apt-get update > /dev/null 2>&1 && $$install > /dev/null 2>&1; } \
			|| echo "chromium could not be installed: the tests of pages are skipped"; \
	}

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# the links into uhr/ are not followed by themselves
	$(BIN)/ty check uhr uhr/curate uhr/manifests uhr/models uhr/train

bench: $(STAMP)
	$(BIN)/python -m benchmarks

study: $(STAMP)
	$(BIN)/python -m benchmarks.study

certify: $(STAMP)
	@# one row by ROW=hiflow; folders and other options by ARGS='--weights DIR --official DIR'
	$(BIN)/python -m benchmarks.certify $(ROW) $(ARGS)

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
