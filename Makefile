# `make demo` and `make test` set everything up by themselves, in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Small networks run slower on several torch threads than on one; the tests use one process per core instead.
export OMP_NUM_THREADS := 1

.PHONY: demo test lint format test-sb3 clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/sb3-ddpg-scratch demo

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# SB3's own test-suite with DDPG and TD3 replaced by ScratchDDPG. Its tests come with its source distribution.
test-sb3: $(READY)
	rm -rf build/sb3 && mkdir -p build/sb3
	version=$$($(BIN)/python -c 'import stable_baselines3; print(stable_baselines3.__version__)') && \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest build/sb3 stable-baselines3==$$version && \
	tar -xzf build/sb3/stable_baselines3-$$version.tar.gz -C build/sb3 --strip-components=1
	cd build/sb3 && rm -rf stable_baselines3 && \
	PYTHONPATH=$(CURDIR)/tests $(CURDIR)/$(BIN)/python -m pytest -q -n auto -p sb3_replaced tests --ignore tests/test_utils.py

clean:
	rm -rf $(VENV) build dist
