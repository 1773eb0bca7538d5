# Needs only make, git and Python >= 3.11. Everything is installed into .venv, once.
# `make help` lists the targets; ARGS is handed on: make test ARGS="-k ranges -x"

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Each process would compile the project anew: demo, UI and tests start many.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first interpreter that runs and is new enough; override with `make demo PYTHON=/path/to/python`.
PYTHON ?=
CANDIDATES := python3.13 python3.12 python3.11 python3 python

# Dagster reads ./dagster.yaml, and with it a storage database, unless DAGSTER_HOME points elsewhere.
define CHECK_DEFINITIONS
home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT \
&& printf 'telemetry: {enabled: false}\n' >"$$home/dagster.yaml" \
&& export DAGSTER_HOME="$$home" VIRTUAL_ENV="$(CURDIR)/$(VENV)" PATH="$(CURDIR)/$(BIN):$$PATH" \
&& dg check yaml && dg check defs
endef

.PHONY: help demo dev test bench lint lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)$$/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(STAMP)  ## a complete migration under live traffic, on an embedded Postgres with a replica
	@exec $(BIN)/python -m zdm_pipelines.sandbox.demo $(ARGS)

dev: $(STAMP)  ## the Dagster UI with your migrations
	@exec $(BIN)/zdm dev $(ARGS)

test: $(STAMP)  ## every test, against real Postgres servers
	@exec $(BIN)/python -m pytest -n 4 --dist load --maxschedchunk 1 $(ARGS)

bench: $(STAMP)  ## what is claimed of time and speed, measured; see docs/benchmarks.md
	@exec $(BIN)/python -m zdm_pipelines_tests.benchmarks $(ARGS)

lint: $(STAMP)  ## style, types, import layers, definitions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@if [ -f zdm_pipelines/definitions.py ]; then $(CHECK_DEFINITIONS); fi

lock: $(STAMP)  ## resolve the dependencies anew into requirements.lock (downloads the resolver)
	@$(BIN)/python -m pip install -qq uv
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

clean:  ## remove the environment, caches and sandbox data
	@rm -rf $(VENV) .zdm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@set -e; python="$(PYTHON)"; \
	new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -z "$$python" ]; then \
	  for candidate in $(CANDIDATES); do \
	    if $$candidate -c "$$new_enough" >/dev/null 2>&1; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ] || ! "$$python" -c "$$new_enough" >/dev/null 2>&1; then \
	  echo "Python 3.11 or newer is needed (looked for: $(or $(PYTHON),$(CANDIDATES)))." \
	       "Install it or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	echo "Installing into $(VENV) with $$("$$python" -V), once; this takes a minute or two" >&2; \
	if ! $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	  "$$python" -m venv --clear $(VENV) || { \
	    echo "$$python cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi; \
	pip="$(BIN)/python -m pip --disable-pip-version-check --no-input -qq install"; \
	$$pip -r requirements.lock; \
	$$pip --no-deps --no-build-isolation -e .; \
	touch $(STAMP)
