# `make demo` runs the main job, `make test` the checks and all but the slow tests, `make test-all` the slow ones, too. Each
# installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder --cov=dlsr --cov-report=term:skip-covered \
	--cov-fail-under=90 -q

.PHONY: demo check test test-all clean

demo: .venv/demo
	$(BIN)/dlsr demo

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-output
