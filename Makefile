# make run and make test are all that is needed; both set up .venv the first time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCE := $(shell find src -type f -not -name '*.pyc') README.md LICENSE

.DEFAULT_GOAL := help
.PHONY: help run quick test test-rest test-all lint format docs bench bench-all clean

# Markers of pyproject.toml. Tests that TESTS names run whatever their markers are.
PYTEST := $(BIN)/python -m pytest
REST   := slow or ray or containers

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/installed  ## Run the default experiment in this process; FILE=... for another
	$(BIN)/flsim run $(FILE)

quick: $(VENV)/installed  ## Run the tests of units alone, in less than a minute: for each save
	$(PYTEST) -m "not (seconds or $(REST))" $(TESTS)

test: $(VENV)/installed  ## Run the tests without containers, Ray, whole networks; TESTS=... for others
	$(PYTEST) $(if $(TESTS),$(TESTS),-m "not ($(REST))")

test-rest: $(VENV)/installed  ## Run the tests that `make test` leaves out; Docker is needed
	$(PYTEST) -m "$(REST)" $(TESTS)

test-all: $(VENV)/installed  ## Run all tests; without Docker those of containers are skipped
	$(PYTEST) $(TESTS)

lint: $(VENV)/installed  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dependencies  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed  ## Write the generated pages, dashboards and alerts anew
	$(BIN)/python docs/generate.py
	$(BIN)/python monitoring/generate.py

bench: $(VENV)/installed  ## Compare seconds a round with a bare PyTorch loop
	$(BIN)/python benchmarks/rounds.py

bench-all: $(VENV)/installed  ## Measure everything anew into benchmarks/results, for hours
	for name in rounds peers engine overhead command network threads; do \
	  $(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit; done

clean:  ## Remove the virtual environment and what tools left
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Everything the package and its tests need, in the versions of constraints.txt.
$(VENV)/dependencies: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch, Lightning and Flower take a few minutes the first time ..."
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["build-system"]["requires"], *p["project"]["dependencies"], *p["project"]["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@$(PIP) install --constraint constraints.txt --requirement $(VENV)/requirements.txt
	@touch $@

# The package itself as a wheel, as users get it: no test sees the source folder.
$(VENV)/installed: $(VENV)/dependencies $(SOURCE)
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
