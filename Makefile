# Two commands for a newcomer: `make demo` and `make test`. The rest is for those who work on Sluice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

SEED ?= 1
FAULTS ?= 60
SAMPLES ?= 50000
DELIVERY ?= exactly-once
RATE ?= 25

.PHONY: away demo test chaos test-models test-device lint unit fuzz bench clean

demo: $(VENV)/demo
	$(BIN)/sluice demo

test: lint
	$(BIN)/python -m pytest tests/unit --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest tests/e2e tests/integration --numprocesses 3 --dist loadfile

# Kafka away for AWAY_S seconds while devices work
AWAY_S ?= 600
away: $(VENV)/dev
	AWAY_S=$(AWAY_S) $(BIN)/python -m pytest -s tests/integration/test_kafka_away.py

test-models: $(VENV)/dev
	$(BIN)/python -m pytest tests/models

test-device: $(VENV)/dev
	$(BIN)/python -m pytest tests/device

chaos: $(VENV)/dev
	$(BIN)/python -m tests.e2e.chaos --seed $(SEED) --faults $(FAULTS) --samples $(SAMPLES) --delivery $(DELIVERY) --rate $(RATE)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/dev
	$(BIN)/python -m pytest tests/unit --numprocesses 2 --dist loadfile

# INPUTS in all, from SEED on; needs no network. What breaks a decoder is kept in build/fuzz.
INPUTS ?= 1000000
SEED ?= 1
fuzz: $(VENV)/fuzz
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED)

bench: $(VENV)/dev
	$(BIN)/python -m bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A marker file for each set of packages, made anew when what it depends on has changed.
$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (TensorFlow is large: some minutes on a slow line)"
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (TensorFlow is large: some minutes on a slow line)"
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/demo

$(VENV)/fuzz: $(VENV)/dev
	$(PIP) --editable '.[fuzz]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
