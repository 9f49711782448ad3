# `make demo` and `make test` work on an empty machine: each first makes .venv and installs dslite into it.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-long lint format gpu-check weights-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: .venv/.installed ## answer a question with the model that ships
	$(BIN)/dslite complete -m demo "How do I save a profile?"

test: .venv/.tests ## the tests (minutes)
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

test-long: .venv/.tests ## what takes longer: thousands of fuzz cases, fake systems
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile -m "long and not weights and not gpu"
	for system in macos windows; do \
		FAKE_SYSTEM=$$system $(BIN)/python -m pytest -q --numprocesses auto --dist loadfile $(FAKED) || exit 1; \
	done

# The suites that run under the fakes of macOS and Windows; docs/platforms.md says what these cannot show.
FAKED := $(addprefix tests/app/,chat commands completion plain server sessions settings) tests/runtime

lint: .venv/.dev build/typing/dslite ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev ## format the code and sort its imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

# On a machine with an NVIDIA GPU. GPU_PYTHON: a Python that has a CUDA build of torch and what dslite needs.
GPU_PYTHON ?= $(BIN)/python
gpu-check: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),.venv/.tests) build/typing/dslite ## tests and timings on an NVIDIA GPU
	PYTHONPATH=build/typing:tests:$(PYTHONPATH) $(GPU_PYTHON) tests/gpu/check.py $(GPU_FLAGS)

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

M ?= chat
weights-check: .venv/.installed ## check the weights of M (default: chat) and write a report
	$(BIN)/python tests/weights/check.py $(M) $(WEIGHTS_FLAGS)

# The type checker finds a package by its folder's name: app/ as dslite/app, and so on.
build/typing/dslite:
	mkdir -p $@
	for room in app assets model runtime; do ln -sfn ../../../$$room $@/$$room; done

clean: ## remove what was installed and built here
	rm -rf .venv build dist *.egg-info
