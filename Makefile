# make demo     installs what is needed, trains the demo suite, shows the results
# make test     installs what is needed, runs the tests
# make lint     checks style, formatting and type hints
# make lowest   runs a short test set with the lowest versions that setup.cfg allows, in an environment of their own
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
EXTRAS := .venv/extras
LOWEST := .venv/lowest
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint lowest clean

demo: $(INSTALLED)
	$(BIN)/local-learning suite suites/demo

test: $(INSTALLED) $(EXTRAS)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest tests/losses tests/datamodules tests/models tests/experiments/test_run.py

# Made anew only when the pinned set or the packaging changes; works offline after that.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "local-learning needs Python 3.11 or newer; say which with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	touch $@

# Optional packages, which tests use if they are there.
$(EXTRAS): $(INSTALLED)
	$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[corruptions,safetensors]'
	touch $@

# Every "name>=version" of install_requires becomes "name==version".
$(LOWEST)/installed: requirements.txt setup.cfg pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	sed -nE 's/^ +([A-Za-z_-]+(\[[a-z]+\])?)>=([0-9.]+).*/\1==\3/p' setup.cfg > $(LOWEST)/requirements.txt
	grep '^pytest' requirements.txt >> $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) -r $(LOWEST)/requirements.txt 'setuptools>=77'
	$(LOWEST)/bin/python $(PIP_INSTALL) --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf .venv *.egg-info
