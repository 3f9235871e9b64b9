# `make repro` runs the pipeline on the embedded corpus, `make test` is the one gate, `make check` a quick
# part of it while you work, `make stress` kills the store more often and records it.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro check test lint stress install format

repro: install
	@dvc repro
	@cat reports/evaluate.txt

check: lint
	pytest -n 2 --dist worksteal -m "not slow"

test: lint
	pytest -n auto --dist worksteal

lint: install
	ruff format --check .
	ruff check .
	mypy
	lint-imports

stress: install
	python -m tests.stress

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar on --quiet -e '.[dev]'
	@touch $@

format: install
	ruff format .
	ruff check --fix .
