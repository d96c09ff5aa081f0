# What to do with a checkout. Needs Python 3.11 or newer with its venv module, and nothing else.
#   make demo          PYTHON=python3.13 make demo          KEEP=1 make demo

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST ?=

# The package is installed as a link to this directory (pip install --editable): a changed source needs no
# installation. Changed requirements do.
DEMO   := $(VENV)/.demo
TEST   := $(VENV)/.test

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench wheel clean

help:    ## this list
	@sed -n 's/^\([a-z]*\): .*## */\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
	    printf '  make %-8s %s\n' "$$name" "$$text"; done

demo: $(DEMO)    ## a real Kafka and PostgreSQL, 300,000 requests, and the proof; KEEP=1 leaves it all up
	$(BIN)/python -m kbatchd demo

test: $(TEST)    ## all tests, against real servers; PYTEST='-k word' for some
	$(BIN)/python -m pytest $(PYTEST)

lint: $(TEST)    ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST)    ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(TEST)    ## bench/drain.py: rows per second, next to PostgreSQL's own limit
	$(BIN)/python bench/drain.py $(BENCH)

wheel: $(TEST)    ## dist/kbatchd-*.whl
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:    ## remove the environment and everything made
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit( \
	    "kbatchd needs Python 3.11 or newer, and $(PYTHON) is " + v + ". Name another: PYTHON=python3.12 make ...")'
	@echo 'Making a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo 'Python cannot make a virtual environment: install its venv module (Debian, Ubuntu: python3-venv)' >&2; \
	    exit 1; }

$(DEMO): pyproject.toml | $(BIN)/python
	@echo 'Installing kbatchd and what the demo needs'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(TEST): pyproject.toml | $(BIN)/python
	@echo 'Installing kbatchd and what the tests need'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(DEMO)
