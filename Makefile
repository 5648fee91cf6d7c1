# Every target does its own set-up; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint types tests format

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

install: $(READY) ## set up .venv: Python >= 3.11 (PYTHON=python3.12 names another one), about 6 GB
	@echo "Ready. Next: make quickstart"

quickstart: $(READY) ## pretrain a small model and write report/index.html (DATA=/path/to/images for your own)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/quickstart.py $(if $(DATA),--data "$(DATA)")

test: $(READY) ## lint, types and tests, as .ci/run does
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(MAKE) --no-print-directory tests

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy
	$(BIN)/mypy

# One process per core (8 at most), each with one thread: more threads than cores only slow each other down.
tests: $(READY) ## pytest alone (ARGS="-m 'not slow'" and other options pass through)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt franca/__init__.py
	@command -v $(PYTHON) >/dev/null || \
		{ echo "Franca needs Python 3.11 or newer, and '$(PYTHON)' is not there. Name one: make install PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Franca needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another one: make install PYTHON=/path/to/python3" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
