# The one door. Every target sets up .venv by itself; nothing else is touched outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SOURCES := $(shell find src -name '*.py*' -not -name '*.pyc' -o -name '*.pxd' -o -name meson.build)
SOURCES += $(wildcard src/siltstone/serve/web/*) tools/web/package.json
# meson finds ninja and cython by PATH
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONPATH

.PHONY: build demo serve test test-crash check format bench clean
.DEFAULT_GOAL := build

$(VENV)/ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "siltstone needs $(PYTHON), version 3.11 or newer (Debian: apt install python3)"; exit 1; }
	@$(PYTHON) tools/need.py
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(PYTHON) tools/need.py --requirements server metrics test > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/requirements.txt
	@touch $@

# The objects stay in build/make, so that a change costs only its own module.
$(VENV)/installed: $(VENV)/ready meson.build $(SOURCES)
	@$(BIN)/python tools/web.py
	@echo "building siltstone"
	@$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall \
	  --config-settings=build-dir=build/make .
	@touch $@

build: $(VENV)/installed

demo: build
	@$(BIN)/python -m siltstone.demo $(ARGS)

serve: build
	@mkdir -p var
	$(BIN)/siltstone serve --data var $(ARGS)

test: build
	@$(BIN)/python -m pytest $(ARGS) || \
	  { status=$$?; cat build/running 2>/dev/null; exit $$status; }

# Power cuts at every write and hundreds of kills: half an hour.
test-crash: build
	$(BIN)/python -m pytest -m crash --thorough -o timeout=3600 -o faulthandler_timeout=3600 $(ARGS)

# Lint, types, stubs against the compiled modules; tidiness and the import graph are tests.
check: build
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/stubs.py
	$(MAKE) --no-print-directory test

format: build
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: build
	@$(PYTHON) tools/need.py --requirements bench > $(VENV)/bench.txt
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/bench.txt
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build dist var .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench tools -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
