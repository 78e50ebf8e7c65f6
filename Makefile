# Everything starts here. `make` lists the targets; a fresh clone needs Python 3.11 or newer and make, nothing else.

BUDGET ?= 2min
VENV := .venv
BIN := $(VENV)/bin

# python3 if it is 3.11, 3.12 or 3.13 (what the pinned versions are tested with), else one that is, else a newer python3.
PYTHON ?= $(shell \
	for python in python3 python3.13 python3.12 python3.11; do \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
			&& echo "$$python" && exit; \
	done; echo python3)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-all bench clean

help: ## list the targets
	@echo "Thalweg. make demo: install and train for 2 minutes. make test: check and test."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'
	@echo
	@echo "  make demo BUDGET=10min, make install PYTHON=/path/to/python3: variables to override."

install: $(VENV)/installed ## create .venv and install Thalweg with the pinned versions

# The stamps make the second time quick: pip runs again only when the dependencies have changed.
$(VENV)/installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "error: $(PYTHON) is not Python 3.11 or newer"; echo "  try: make install PYTHON=/path/to/python3.12"; exit 2; }
	@if ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
		echo "Creating $(VENV) with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear $(VENV) \
			|| { echo "error: no virtual environment"; echo "  try: your system's package for venv (python3-venv)"; exit 2; }; \
	fi
	@echo "Installing Thalweg and its dependencies into $(VENV): torch is the largest, the first time takes minutes"
	@"$(BIN)/python" -m pip install -qq -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "Installing what the tests need"
	@"$(BIN)/python" -m pip install -qq -c constraints.txt -e ".[test]"
	@touch $@

demo: $(VENV)/installed ## train on the standard library's source for 2 minutes; ends with the report and the checkpoint
	@echo "+ thalweg train --budget $(BUDGET)"
	@"$(BIN)/thalweg" train --budget $(BUDGET)

check: $(VENV)/installed-test ## ruff check, ruff format --check, mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

# One torch thread a worker: two workers that each take every core would only wait for each other.
test: check ## check, then every test that takes seconds
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2

test-all: check ## check, then all tests, those of minutes included
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2 -m ""

bench: ## list the benchmark scripts, a line each
	@"$(PYTHON)" -c 'import ast, pathlib; [print(f"{path}\n    {(ast.get_docstring(ast.parse(path.read_text())) or str()).split(chr(10))[0]}") \
		for path in sorted(pathlib.Path("benchmarks").glob("[!_]*.py"))]'
	@echo "Run one with $(BIN)/python after make install; results are in benchmarks/README.md."

clean: ## remove caches and build results; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
