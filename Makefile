# `make demo` and `make test` work on an empty machine: each first makes .venv and installs dslite into it.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint gpu-check clean

demo: .venv/.installed
	$(BIN)/dslite complete -m demo "How do I save a profile?"

test: .venv/.tests
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

lint: .venv/.dev build/typing/dslite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with an NVIDIA GPU. GPU_PYTHON: a Python that has a CUDA build of torch and what dslite needs.
GPU_PYTHON ?= $(BIN)/python
gpu-check: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.tests) build/typing/dslite
	PYTHONPATH=build/typing:tests $(GPU_PYTHON) tests/gpu/check.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.tests: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch .venv/.installed $@

.venv/.dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/.installed .venv/.tests $@

# The type checker finds a package by its folder's name: app/ as dslite/app, and so on.
build/typing/dslite:
	mkdir -p $@
	for room in app assets model runtime; do ln -sfn ../../../$$room $@/$$room; done

clean:
	rm -rf .venv build dist *.egg-info
