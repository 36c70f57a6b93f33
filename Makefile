# One environment, made once: .venv holds flowgen and what its tests and checks need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What pytest makes of the tests is kept for the next time, though the environment may say otherwise.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-full mutants check format clean

demo: $(READY)
	$(BIN)/flowgen demo

test: $(READY)
	$(BIN)/pytest -m "not slow"

test-fast: $(READY)
	$(BIN)/pytest -m "not slow and not journey and not costly"

test-full: $(READY)
	$(BIN)/pytest --full

mutants: $(READY)
	$(BIN)/python tests/mutants.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'from flowgen.extras import torchvision_fault as fault; (line := fault()) and print(line)' || true
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
