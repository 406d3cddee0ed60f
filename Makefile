# Everything from a bare clone: `make` lists what there is. Needs a POSIX shell, make and a Python of at least 3.11; no network but pip's.

TORCH := 2.13.0
VENV := .venv
PYTHON_IN := $(VENV)/bin/python
STAMP := $(VENV)/installed

# Pins hold in pip's build environments too. Tests are small single-thread jobs: one process a core is much faster than two threads each.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_RETRIES ?= 8
export PIP_DEFAULT_TIMEOUT ?= 60
JOBS ?= 2
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON_IN) -m pytest -n $(JOBS) --dist worksteal

# Prints "found NAME", or "missing" and the one line that says what to do. A version manager's empty shim does not count: each name is tried.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
VERSION_LINE := import sys; print("%d.%d.%d" % sys.version_info[:3])
find_python = without=; old=; \
	for name in $(if $(PYTHON),"$(PYTHON)",python3.14 python3.13 python3.12 python3.11 python3 python); do \
		"$$name" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || { \
			version=$$("$$name" -c '$(VERSION_LINE)' 2>/dev/null) && [ -n "$$version" ] && old="$${old:-; $$name is $$version}"; continue; }; \
		if "$$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then echo "found $$name"; exit; fi; \
		without="$${without:-$$name}"; \
	done; \
	if [ -n "$$without" ]; then \
		echo "missing: $$without has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)"; \
	else \
		echo "missing: no Python 3.11 or newer found$$old; install one, or name yours with: make setup PYTHON=/path/to/python"; \
	fi
found_python = $(eval FOUND := $(shell $(find_python)))$(if $(filter found,$(firstword $(FOUND))),,$(error $(FOUND)))

# The stamp names the place it was made in: a copied or moved clone, or one whose Python has gone, is set up anew.
READY := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" ] && $(PYTHON_IN) -c '$(NEW_ENOUGH)' 2>/dev/null && echo yes)

.PHONY: help setup run test test-long check families docs clean again
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: $(STAMP)  ## make .venv with pinned versions (minutes; quick the second time)
	@echo "ready: $(VENV)/bin/instructgpt --help"

$(STAMP): pyproject.toml constraints.txt $(if $(READY),,again)
	@$(if $(READY),:,$(found_python)echo "making $(VENV) with $(wordlist 2,99,$(FOUND))")
	@rm -f $(STAMP)
	@$(if $(READY),:,"$(wordlist 2,99,$(FOUND))" -m venv --clear $(VENV))
	$(PYTHON_IN) -m pip install torch==$(TORCH)
	$(PYTHON_IN) -m pip install -c constraints.txt -e '.[dev]'
	@pwd -P > $(STAMP)

run: $(STAMP)  ## the whole paper on the small world: models and report in runs/demo
	$(VENV)/bin/instructgpt run --preset demo --out runs/demo

test: $(STAMP)  ## format, lint, types and every test
	@.ci/needs
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m mypy
	$(TEST)

test-long: $(STAMP)  ## the tests that take minutes: many users and labelers on one site, workers of a sweep, through kills
	INSTRUCTGPT_TEST_LONG=1 $(TEST) tests/label/playground/test_load.py tests/label/playground/test_erasure.py tests/sweep/test_sweep_claims.py tests/docs/test_site.py tests/docs/test_tutorials.py tests/plan/test_recipes.py

check: $(STAMP)  ## the same without the slow tests
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m mypy
	$(TEST) -m "not slow"

families: $(STAMP)  ## try every family of causal models and write docs/reference/families.md (15 minutes)
	$(PYTHON_IN) docs/generate_families.py

docs: $(STAMP)  ## write the generated pages, build the documentation in build/docs and check its links
	$(PYTHON_IN) docs/generate_options.py
	$(PYTHON_IN) docs/generate_notebook.py
	$(PYTHON_IN) -m sphinx -W --keep-going -q docs build/docs

clean:  ## remove .venv and what the tools left; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
