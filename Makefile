# A bare machine with Python 3.11 or newer, make and a package index is enough: every target that needs the
# environment creates it first. PYTHON picks the interpreter, VENV the folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PDF ?= docs/manual.pdf
TESTS ?= tests
.DEFAULT_GOAL := help
.SILENT: help

help:  ## show this list
	awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## start everything, ingest a PDF, stay up (ONCE=1: exit when done; PDF=path, ASK=question: your own)
	$(BIN)/python -m api.demo --pdf "$(PDF)" $(if $(ONCE),--once) $(if $(ASK),--ask "$(ASK)")

test: $(STAMP)  ## run the whole suite on its own PostgreSQL and Valkey (TESTS=path picks)
	$(BIN)/python -m pytest -n auto --dist worksteal $(TESTS)

prove: $(STAMP)  ## the proofs at full size, into docs/proofs.md (ONLY=engine picks)
	PROVE=1 $(BIN)/python -m pytest -m "$(if $(ONLY),proof(of='$(ONLY)'),proof)" tests

bench: $(STAMP)  ## measure beside the peers, hours (SHORT=1: a quarter of an hour; ONLY=noop,crud picks)
	$(BIN)/python -m benchmarks $(if $(SHORT),--short) $(if $(ONLY),--only "$(ONLY)")

conformance: $(STAMP)  ## play the same scenarios on Celery 5.7 and on celeriq, and compare
	$(BIN)/python -m tests.conformance

check: $(STAMP)  ## format, lint, types, imports: changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright

format: $(STAMP)  ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

matrix:  ## run the suite on every Python named in PYTHONS
	for version in $(or $(PYTHONS),3.11 3.12 3.13); do \
		$(MAKE) test PYTHON=python$$version VENV=.venv-$$version || exit 1; done

manual: $(STAMP)  ## typeset docs/manual.md into docs/manual.pdf
	$(BIN)/python docs/typeset.py

lock: $(STAMP)  ## pin the newest versions, with hashes and without addresses
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --generate-hashes --no-header --annotation-style line -q \
		--extra fastapi --extra speed --group app -o requirements/app.txt
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --generate-hashes --no-header --annotation-style line -q \
		--extra fastapi --extra speed --extra embedded --extra processes --group app --group docs --group test --group check -o requirements/dev.txt
	for name in $(basename $(notdir $(wildcard benchmarks/requirements/*.in))); do \
		$(BIN)/uv pip compile benchmarks/requirements/$$name.in \
			$$(test $$name != celeriq || echo pyproject.toml --extra speed) --upgrade --universal --python-version 3.11 \
			--generate-hashes --no-header --annotation-style line -q -o benchmarks/requirements/$$name.txt || exit 1; done

clean:  ## remove the environment and what the services stored
	rm -rf .venv .venv-* .bench .conformance .services .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist

$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "celeriq needs Python 3.11 or newer; name one with PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: help demo test prove bench conformance check format matrix manual lock clean
