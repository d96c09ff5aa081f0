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
.PHONY: help demo test test-browser test-systemd soak faults lint format bench bench-http docs wheel sdist clean

help:    ## this list
	@sed -n 's/^\([a-z-]*\): .*## */\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
	    printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(DEMO)    ## a real Kafka and PostgreSQL, 300,000 requests, a worker killed, the proof; KEEP=1 leaves it all up
	$(BIN)/python -m kbatchd demo

# A file's tests stay together: what they share is made once. The files keep the order that tests/conftest.py gives them.
test: $(TEST)    ## all tests, against real servers, in four processes; PYTEST='-n0 -k word' for some
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-browser: $(TEST)    ## the pages in a real browser; needs Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser $(PYTEST)

test-systemd: $(TEST)    ## the units, and the daemon as a service; needs root and systemd, not as process 1
	$(BIN)/python -m pytest -m systemd $(PYTEST)

soak: $(TEST)    ## the tests that take minutes each
	$(BIN)/python -m pytest -m soak -o timeout=3600 $(PYTEST)

faults: $(TEST)    ## every fault comes and goes, docs/faults.md is written; SEED=n as then; FAULTS='--pairs-minutes 60'
	$(BIN)/python -m tests.faults.matrix docs/faults.md $(if $(SEED),--seed $(SEED)) $(FAULTS)

lint: $(TEST)    ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(TEST)    ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(TEST)    ## bench/drain.py: rows per second, next to PostgreSQL's own limit
	$(BIN)/python bench/drain.py $(BENCH)

bench-http: $(TEST)    ## bench/http.py: requests per second through a gateway, next to its server's own limit
	$(BIN)/python bench/http.py $(BENCH)

docs: $(TEST)    ## docs/configuration.md from the models, docs/house.svg from the floors
	$(BIN)/python -m tests.reference docs/configuration.md
	$(BIN)/python -m tests.house docs/house.svg

wheel: $(TEST)    ## dist/kbatchd-*.whl, with the compiled encoder where there is a compiler
	rm -rf dist/*.whl build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

sdist: $(TEST)    ## dist/kbatchd-*.tar.gz
	rm -rf dist/*.tar.gz build
	$(BIN)/python -m build --sdist --outdir dist .

clean:    ## remove the environment and everything made
	rm -rf $(VENV) dist build *.egg-info kbatchd/encode/*.so .pytest_cache .mypy_cache .ruff_cache .benchmarks
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
