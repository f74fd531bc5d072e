# `make demo` and `make test` need Python 3.11-3.13 and nothing else: everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
RUN := runs/demo

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/tbnn train --config experiments/01_first_light/digits.yaml --output $(RUN) --overwrite true
	$(BIN)/tbnn train --config experiments/01_first_light/digits.yaml --output $(RUN)-baseline --overwrite true \
		--model.weights float --model.gradient surrogate
	$(BIN)/tbnn evaluate $(RUN)-baseline
	$(BIN)/tbnn evaluate $(RUN)
	$(BIN)/tbnn pack $(RUN)
	$(BIN)/tbnn simulate $(RUN)
	$(BIN)/tbnn report $(RUN) --baseline $(RUN)-baseline

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) runs

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"tbnn needs Python 3.11-3.13, this is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[data]'
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[data,test]'
	touch $@

$(VENV)/.lint: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[data,test,dev]'
	touch $@
