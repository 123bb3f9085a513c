# Everything a newcomer needs: `make demo` and `make test` set up all they use in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIXTURES ?= ../shared/fixtures/sam3_parity

.PHONY: venv demo test check audit parity screenshots benchmark clean

venv: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dicom,agent,training]'
	touch $@

demo: venv
	$(BIN)/medsam3 demo

test: venv
	QT_QPA_PLATFORM=offscreen HF_ENDPOINT=http://127.0.0.1:9 $(BIN)/python -m pytest -m "not slow"

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Asks the advisory database over the network; pip-audit is no part of the environment that it looks at.
audit: $(VENV)/.audit
	$(VENV)/.audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

$(VENV)/.audit: $(VENV)/.complete
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet 'pip-audit>=2.9'

parity: venv
	$(BIN)/python Testing/models/parity.py $(FIXTURES)

screenshots: venv
	QT_QPA_PLATFORM=offscreen $(BIN)/python Testing/screenshots.py

benchmark: venv
	$(BIN)/medsam3 benchmark --size demo

clean:
	rm -rf $(VENV) build dist *.egg-info
