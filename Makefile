# `make run` and `make test` are enough; both create .venv the first time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCE := $(shell find src -type f -not -name '*.pyc') README.md LICENSE

.DEFAULT_GOAL := help
.PHONY: help run quick test test-rest test-all lint format docs bench bench-all clean

# Markers of pyproject.toml. Tests in TESTS run regardless of their markers.
PYTEST := $(BIN)/python -m pytest
REST   := slow or ray or containers
# A worker for each core, at most eight: each imports PyTorch. The tests of one file share a worker.
SPREAD := --numprocesses logical --maxprocesses 8 --dist loadfile

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/installed  ## Run the default experiment in this process; FILE=... for another
	$(BIN)/flsim run $(FILE)

quick: $(VENV)/installed  ## Run the unit tests, in less than a minute: for each save
	$(PYTEST) $(SPREAD) -m "not (seconds or $(REST))" $(TESTS)

test: $(VENV)/installed  ## Run the tests without containers, Ray and networks; TESTS=... for others
	$(PYTEST) $(if $(TESTS),$(TESTS),$(SPREAD) -m "not ($(REST))")

test-rest: $(VENV)/installed  ## Run the tests that `make test` omits; needs Docker
	$(PYTEST) -m "$(REST)" $(TESTS)

test-all: $(VENV)/installed  ## Run all tests; without Docker, those of containers are skipped
	$(PYTEST) $(TESTS)

lint: $(VENV)/installed  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dependencies  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed  ## Generate the pages, dashboards and alerts that are made from code
	$(BIN)/python docs/generate.py
	$(BIN)/python monitoring/generate.py

bench: $(VENV)/installed  ## Compare seconds per round with a plain PyTorch loop
	$(BIN)/python benchmarks/rounds.py W1 W2 W3 W4

bench-all: $(VENV)/installed  ## Run all benchmarks and write benchmarks/results; takes hours
	for name in rounds peers engine overhead command network privacy dpsgd secagg threads; do \
	  $(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit; done

clean:  ## Remove the virtual environment and the caches of tools
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Everything the package and its tests need, in the versions of constraints.txt.
$(VENV)/dependencies: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; choose another with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch, Lightning and Flower take a few minutes the first time ..."
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["build-system"]["requires"], *p["project"]["dependencies"], *p["project"]["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@$(PIP) install --constraint constraints.txt --requirement $(VENV)/requirements.txt
	@touch $@

# The package itself as a wheel, as users install it: no test imports from the source folder.
$(VENV)/installed: $(VENV)/dependencies $(SOURCE)
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
