# All commands run in a virtual environment, which the first command that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An environment with the lowest versions that pyproject.toml allows, and the tests that depend on versions.
LOWEST := .venv-lowest
EXTRAS := starter,tables,plots,openvino,onnx,sentence-transformers,distributed,index,serve
LOWEST_TESTS := tests/test_package.py tests/app tests/curation tests/training \
	$(addprefix tests/common/test_,aligners.py aligners_on_raw_inputs.py callbacks.py encoders.py html_representation.py \
	metadata_routing.py sklearn_tools.py) \
	tests/aligners/test_lit.py::TestWhatIsTrained tests/aligners/test_clip.py \
	$(addprefix tests/encoders/test_,bitmaps.py engines.py head_pairs.py images.py jpeg.py open_clip.py \
	sentence_transformers.py tiff.py timm.py text_encoder.py transformers.py unreachable_hub.py weights.py) \
	$(addprefix tests/persistence/test_,formats.py round_trip.py) tests/retrieval/test_index.py tests/utils/test_files.py \
	tests/cli/test_fit.py tests/cli/test_classify.py tests/zero_shot/test_probe.py
# Tests that fail with the lowest versions: the exporter of torch 2.6 does not work with the packages that
# onnxscript requires today (a warning is raised, and torch is used instead). timm 1.0.26 ignores the
# arguments of a model in a folder (swin, unsuitable_network). The processor of transformers 5.3 resizes images
# differently (by up to 0.003: image_pooling, missing_pooler, masked_autoencoder). The error messages of typer
# differ. Pillow 10.1 does not read AVIF. OpenVINO 2025.3 writes incomplete files to a full disk without an error.
LOWEST_ONLY := not (onnx or swin or unsuitable_network or image_pooling or missing_pooler or masked_autoencoder or \
	are_messages or avif or full_disk)

# Keep compiled modules, also where the shell forbids it: tests start many processes, each of which would compile
# the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-lowest coverage lint typecheck docs benchmark clean

demo: $(VENV)/.starter
	$(BIN)/sklearn-ape demo --output demo_report

# Two test processes with one thread each are faster than one process with two threads. Files are taken in
# their order: those with the fewest tests, which pytest-xdist puts last, hold some of the longest.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The quick tests cover every module and every promise of the README in about six minutes on two cores.
test: $(VENV)/.dev
	$(PYTEST) -m "not exhaustive" tests sklearn_ape README.md

# All tests: also exhaustive tables, fuzzing, kills, the browser, documentation pages and examples.
# `make test-all TIER=exhaustive` skips those that `make test` runs.
TIER ?= exhaustive or not exhaustive
test-all: $(VENV)/.dev
	$(PYTEST) -m "$(TIER)"

test-lowest: $(LOWEST)/.installed
	SKLEARN_APE_LOWEST=1 OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile \
		-m "not exhaustive" -k "$(LOWEST_ONLY)" $(LOWEST_TESTS)

# Run this by hand: measuring coverage takes too long for CI.
coverage: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=95

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(VENV)/.dev
	$(BIN)/mypy

# Warnings are errors. `make docs GALLERY=0` does not run the examples and takes seconds instead of minutes.
GALLERY ?= 1
docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W --keep-going -b html -D plot_gallery=$(GALLERY) docs docs/_build/html

benchmark: $(VENV)/.starter
	$(BIN)/python -m benchmarks.first_run

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info demo_report docs/_build docs/auto_examples docs/generated

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"sklearn-ape needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.starter: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[starter,openvino]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.starter

# pip cannot install the lowest allowed versions, so uv is used. Indirect dependencies have their newest version.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[$(EXTRAS)]' 'polars>=1.0'
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python pytest pytest-xdist hypothesis
	@touch $@
