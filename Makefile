# Every target creates .venv if it is missing and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# ONNX Runtime's wheels write telemetry into the home folder unless told not to.
export ORT_DISABLE_TELEMETRY := 1

# How often `make faults` kills each command at a random moment.
KILLS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-long fuzz faults check lint build clean

help:
	@echo 'make demo       train, prune and compare small models; prints one table'
	@echo 'make test       run the tests that take a minute (ARGS=... goes to pytest)'
	@echo 'make test-long  run all tests'
	@echo 'make fuzz       read 200,000 damaged and hostile files (ARGS="--count 5000 --seed 1 --jobs 4")'
	@echo 'make faults     kill, interrupt and starve every command that writes (KILLS=300 is thorough)'
	@echo 'make lint       ruff and mypy'
	@echo 'make check      lint, test and build'
	@echo 'make build      wheel and source archive in dist/'
	@echo 'make clean      remove all that these targets made'
	@echo
	@echo 'PYTHON=python3.12 make ... chooses the interpreter of a new $(VENV).'

demo: $(VENV)/.samples
	$(BIN)/python samples/demo.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -m 'not long' $(ARGS)

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzzing $(ARGS)

faults: $(VENV)/.dev
	ONNXPRUNE_KILLS=$(KILLS) $(BIN)/python -m pytest -n auto --dist loadgroup tests/faults $(ARGS)

check: lint test build

# mypy wants folders named like the packages in them, and cli/ holds the package onnxprune_cli.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/types
	ln -sfn ../../cli $(VENV)/types/onnxprune_cli
	MYPYPATH=$(VENV)/types $(BIN)/mypy

build: $(VENV)/.dev
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist demo-output fuzzing-failures *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an installation is repeated when the requirements change, and never counts unless it succeeded.
$(VENV)/.samples: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing into $(VENV); this takes a few minutes'
	$(PIP) -e '.[samples]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing into $(VENV); this takes a few minutes'
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.samples

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: onnxprune needs Python 3.10 or newer, this is %d.%d; try PYTHON=python3.12 make ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
