# Needs make and a python3 of at least 3.11 (with venv); everything else goes into .venv.
#
#   make run    the main job: a mixed workload on real processes for 45 seconds
#   make test   all tests
#   make coverage  the same, with the lines that they reach, in child processes too
#   make docs   the pages that are made from code, which takes some minutes
#   make site   all pages as a site, in docs/_build
#
# ARGS goes to the program or to pytest: make run ARGS="--seed 7", make test ARGS="-k chaos".

VENV ?= .venv
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN_STAMP = $(VENV)/.stamp-run
DEV_STAMP = $(VENV)/.stamp-dev

.PHONY: run test coverage dev docs site clean

run: $(RUN_STAMP)
	$(VENV)/bin/python launch.py stress --seconds 45 $(ARGS)

test: $(DEV_STAMP)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

dev: $(DEV_STAMP)
	@:

# Children count too: see [tool.coverage.run] in pyproject.toml.
coverage: $(DEV_STAMP)
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m pytest $(ARGS)
	$(VENV)/bin/python -m coverage combine --quiet
	$(VENV)/bin/python -m coverage report --skip-covered

docs: $(DEV_STAMP)
	$(VENV)/bin/python docs/generate.py
	$(VENV)/bin/python docs/schemas.py
	$(VENV)/bin/python docs/architecture.py
	$(VENV)/bin/python docs/races.py
	$(VENV)/bin/python docs/matrix.py

site: $(DEV_STAMP)
	$(VENV)/bin/python -m sphinx -q -W --keep-going docs docs/_build

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no python3 of at least 3.11 with venv found; name one with PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The development environment can run everything too, so it counts as both.
$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $(RUN_STAMP) $@

$(RUN_STAMP): pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
