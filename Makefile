# make repro    run the pipeline on the embedded corpus
# make check    the quick part of the tests, while you work
# make test     every check; CI runs this
# make stress   kill the store many times, and record the result in benchmarks/results/stress.md
# make format   format the code
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE # each worker and each stage would compile the code again

.PHONY: repro check test lint stress install format

repro: install
	@python -m stages.digits
	@dvc repro
	@cat reports/evaluate.txt
	@echo 'file://$(CURDIR)/reports/index.html'

check: lint
	pytest -n 2 --dist worksteal -m "not slow"

test: lint
	pytest -n auto --dist load --maxschedchunk 2

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
