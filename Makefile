# The commands that people type. They use the Python of the active environment.
PYTHON ?= python

.PHONY: help install test check format gate settings site

help:  ## Show this list.
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

install:  ## Install the project in editable mode with what the tests need.
	$(PYTHON) -m pip install -e '.[test]'

test:  ## Run the tests, without the slow ones.
	$(PYTHON) -m pytest

check:  ## Lint, formatting and types: seconds.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyrefly check

format:  ## Format the code and mend what ruff can mend.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

gate:  ## Everything that a merge needs, in a fresh environment: many minutes.
	.ci/run

settings:  ## Write docs/settings.md again, after a field of an experiment changed.
	$(PYTHON) -m tests.settings_page

site:  ## Build the documentation into site/, and check its links.
	$(PYTHON) -m pip install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
