# The commands of this project. `make demo` and `make test` need Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-text test test-all test-gpu lint types site check clean

demo: $(VENV)/.installed
	$(BIN)/logitcache demo

demo-text: $(VENV)/.installed-lm
	$(BIN)/logitcache demo --text

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile thorough

test-gpu: $(VENV)/.installed-dev
	LOGITCACHE_GPU_TESTS=cuda $(BIN)/python -m pytest tests/gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

site: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/site.py
	@echo "Open build/site/index.html"

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types site test

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "logitcache needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing logitcache and PyTorch into $(VENV) (a few GB, a few minutes) ..."
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-lm: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[lm]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
