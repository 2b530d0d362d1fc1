# Everything runs in a virtual environment of its own, made by the first command that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint typecheck docs benchmark clean

demo: $(VENV)/.starter
	$(BIN)/sklearn-ape demo --output demo_report

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(VENV)/.dev
	$(BIN)/mypy

# Warnings are errors. `make docs GALLERY=0` leaves the examples unexecuted: seconds, not minutes.
GALLERY ?= 1
docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -b html -D plot_gallery=$(GALLERY) docs docs/_build/html

benchmark: $(VENV)/.starter
	$(BIN)/python benchmarks/first_run.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo_report docs/_build docs/auto_examples docs/generated

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"sklearn-ape needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.starter: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[starter,openvino]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.starter
