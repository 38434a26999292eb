# The commands of this project. "make" alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup announce demo compare test lint format lock preset clean

BIN := .venv/bin
LOCKED := .venv/locked
COMPLETE := .venv/complete

# No tool reports home. environment.pth says the same to commands that a person types.
export DO_NOT_TRACK ?= true
export MLFLOW_DISABLE_TELEMETRY ?= true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DVC_NO_ANALYTICS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS ?= 1

# The python that makes .venv: 3.11 is the one the lock file was tested with.
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	"$$name" -c '$(RECENT)' 2>/dev/null && { echo "$$name"; exit; }; done; echo python3)

# The stages' command is "python -m ...": DVC and what it starts find .venv's python first.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# Outside a git repository (an unpacked archive), DVC works once it is told so. A repository of another
# user ("safe.directory") is one all the same.
WITHOUT_GIT := ! git rev-parse --git-dir >/dev/null 2>&1 && ! git rev-parse --git-dir 2>&1 | grep -q safe.directory

help:  ## List the commands
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(COMPLETE)  ## Make .venv and install everything into it, as requirements.lock says

# Each stamp is the last thing its rule writes: an interrupted setup starts again and reuses what is there.
$(LOCKED): requirements.lock
	@found="$$("$(PYTHON)" --version 2>&1)" || found="none"; "$(PYTHON)" -c '$(RECENT)' 2>/dev/null \
		|| { echo "make setup needs Python 3.11 or newer, found $$found ($(PYTHON))" >&2; exit 1; }
	@$(BIN)/python -c 'import pip; $(RECENT)' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --requirement requirements.lock
	@touch $@

$(COMPLETE): $(LOCKED) pyproject.toml environment.pth
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@cp environment.pth "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/"
	@touch $@

announce:
	@if $(WITHOUT_GIT); then echo "no git repository here: all runs without one but dvc exp and dvc metrics diff"; fi

demo: announce setup  ## Run the whole pipeline on params.yaml (as cloned: handwritten digits) and sum it up
	@if $(WITHOUT_GIT); then $(BIN)/dvc config --local core.no_scm true && \
		echo "DVC goes on without git; after git init: .venv/bin/dvc config --local --unset core.no_scm"; fi
	$(RUN) $(BIN)/dvc repro
	$(RUN) $(BIN)/python -m stages.summary

compare: setup  ## Show what the runs changed and what came of it (COMPARE_ARGS=--all)
	@$(RUN) $(BIN)/python -m stages.compare $(COMPARE_ARGS)

# All tests share three processes, as many wait for programs that they start. A choice of tests runs in one.
test: lint  ## Check format, style, types and imports, then run the tests (PYTEST_ARGS="-k name")
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),--numprocesses=3 --dist=worksteal)

lint: setup  ## Check format, style, types and imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup  ## Format the code and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: setup  ## Write requirements.lock anew, keeping its versions where pyproject.toml allows (LOCK_ARGS=--upgrade)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command "make lock" $(LOCK_ARGS) --output-file requirements.lock pyproject.toml

preset: setup  ## Write params.yaml for a preset (NAME=folder; REPLACE=1 drops edits)
	$(RUN) $(BIN)/python -m stages.presets $(NAME) $(if $(REPLACE),--replace)

clean:  ## Remove caches of the tools; no environment, result or checkpoint
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache dvc_plots
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
