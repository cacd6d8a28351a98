PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TENSORRT := $(VENV)/.tensorrt

MODEL ?= facebook/MEXMA
OUT ?= engines/mexma
PRECISIONS ?= fp32 fp16
RECIPES ?= fast

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lint format test coverage test-full-size test-integrations gpu-check demo export build engines parity bench bench-int8 bench-full peers clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv with all that development needs (PYTHON=... chooses the Python)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "$(PYTHON) is not Python 3.11 or later ($$($(PYTHON) --version 2>&1)): say which Python to use with PYTHON=..." >&2; exit 1; }
	@echo "Installing the development environment into $(VENV): this takes some minutes, most of them for PyTorch."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[cpu,export,reference,bench,dev]'
	@touch $@

lint: $(READY) ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/check_tensorrt.py
	$(BIN)/lint-imports --no-logo

format: $(READY) ## lay out the code and sort its imports
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test: $(READY) ## run the tests but those that need full size, a GPU or a long time
	$(BIN)/pytest

coverage: $(READY) ## the same, and which lines and branches no test has run
	$(BIN)/pytest --cov --cov-report=term

test-full-size: $(READY) ## run the tests on models of full size (5 GB of memory, 10 GB of disk)
	$(BIN)/pytest -m 'full_size and not soak'

test-integrations: $(READY) ## run other libraries on a bundle, each installed into its own environment in .libraries (LIBRARY: one)
	@$(BIN)/python tools/check_libraries.py $(LIBRARY)

# A machine with a GPU brings its own Python, with onnxruntime-gpu and PyTorch: nothing is installed there.
gpu-check: ## on a machine with a GPU: its tests, parity, memory and speed against bars, in eight minutes, by PYTHON
	@PYTHONPATH="$(CURDIR)/runtime:$(CURDIR)/export:$(CURDIR)/benchmarks$${PYTHONPATH:+:$$PYTHONPATH}" \
	  $(PYTHON) -m mexma_benchmarks.gpu_check

demo: $(READY) ## export a small real model, check it against PyTorch, embed sentences with it
	@$(BIN)/python -m mexma_benchmarks.studies.demo

export: $(READY) ## export MODEL into OUT in PRECISIONS (facebook/MEXMA, engines/mexma, "fp32 fp16"; RECIPES of int8: "fast")
	@$(BIN)/mexma export '$(MODEL)' --out '$(OUT)' $(PRECISIONS:%=--precision %) \
	  $(if $(filter int8,$(PRECISIONS)),$(RECIPES:%=--recipe %))

$(TENSORRT): $(READY)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[tensorrt]'
	@touch $@

build: $(TENSORRT) ## on a machine with a GPU: build TensorRT plans for it, of what `make export` has put into OUT
	@$(BIN)/mexma build '$(OUT)' --target tensorrt

engines:
	@echo "make engines is make build now" >&2; exit 2

parity: $(READY) ## compare the bundle in OUT with MODEL in PyTorch
	@$(BIN)/mexma parity --bundle '$(OUT)' --reference '$(MODEL)'

bench: $(READY) ## measure engines against PyTorch at full size and on MiniLM, in ten minutes
	@$(BIN)/mexma bench run

bench-int8: $(READY) ## the same with our int8 engines of both recipes; quantizing them takes some minutes, once
	@$(BIN)/mexma bench run --int8

bench-full: $(READY) ## the same with more shapes, rates and rounds, and every peer: an hour or two
	@$(BIN)/mexma bench run --effort full --peers

peers: $(READY) ## install the libraries that bench-full compares with, each into its own environment in .peers
	@$(BIN)/mexma bench peers --make

clean: ## remove build products and caches (.venv and engines stay)
	@rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find benchmarks export runtime tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv, .libraries, .peers and engines too
	@rm -rf $(VENV) .libraries .peers engines
