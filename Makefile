# Each target sets up what it needs by itself, in .venv beside this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

# Small networks run slower on several torch threads than on one; the tests use one process per core instead.
export OMP_NUM_THREADS := 1

.PHONY: demo test lint format docs test-sb3 clean

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# What the demonstration needs and no more.
$(VENV)/.ready-demo: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/.ready-docs: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[docs]'
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) '.[dev]'
	touch $@

demo: $(VENV)/.ready-demo
	$(BIN)/sb3-ddpg-scratch demo

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal --cov

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in build/docs/index.html. A warning, such as a link to a page that does not exist, is an error.
docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env docs build/docs

# SB3's own tests of DDPG and TD3 with ScratchDDPG in their place, and its HER tests with our buffer, whether or not the former pass. They come
# with its source distribution.
test-sb3: $(VENV)/.ready
	rm -rf build/sb3 && mkdir -p build/sb3
	version=$$($(BIN)/python -c 'import stable_baselines3; print(stable_baselines3.__version__)') && \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest build/sb3 stable-baselines3==$$version && \
	tar -xzf build/sb3/stable_baselines3-$$version.tar.gz -C build/sb3 --strip-components=1
	cd build/sb3 && rm -rf stable_baselines3 && export PYTHONPATH=$(CURDIR)/tests && failed=0 && \
	{ $(CURDIR)/$(BIN)/python -m pytest -q -n auto -p sb3_replaced tests --ignore tests/test_utils.py || failed=1; } && \
	{ $(CURDIR)/$(BIN)/python -m pytest -q -p sb3_her_replaced tests/test_her.py || failed=1; } && exit $$failed

clean:
	rm -rf $(VENV) build dist
