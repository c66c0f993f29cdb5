# Everything that a fresh machine with Python 3.11+ needs is made by the targets themselves.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from: empty is pip's default (on Linux, PyPI's build is the CUDA one). A small CPU build:
#   make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
# Of the demo: the method to train, where to, and for how long.
METHOD ?= xfusion
OUT ?= runs/demo$(if $(filter vpit,$(METHOD)),-vpit)
MINUTES ?=
# Arguments passed on to pytest, such as PYTEST_ARGS='-k sampler'.
PYTEST_ARGS ?= -n 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# The benchmark harnesses have an environment of their own: lmms-eval requires torchvision, and is installed without that.
HARNESS_VENV ?= .venv-harnesses

.PHONY: setup assets demo test test-harnesses check format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"diptych needs Python 3.11 or newer, $(PYTHON) is {v}; say make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing packages into $(VENV); torch alone is 0.2 GB (CPU) to several GB (CUDA), see TORCH_INDEX_URL in the Makefile"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

assets: $(STAMP)
	$(BIN)/diptych assets fetch --default

demo: $(STAMP)
	$(BIN)/diptych demo --method $(METHOD) --out $(OUT) $(if $(MINUTES),--minutes $(MINUTES))

test: $(STAMP) assets
	DIPTYCH_REQUIRE_ASSETS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-harnesses:
	$(MAKE) setup VENV=$(HARNESS_VENV)
	$(HARNESS_VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[lm-eval,lmms-eval]'
	$(HARNESS_VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt --no-deps lmms-eval
	$(HARNESS_VENV)/bin/python -c 'import lm_eval, lmms_eval.evaluator'
	$(HARNESS_VENV)/bin/python -m pytest tests/harnesses $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) assets
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) $(HARNESS_VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
