# The one door: `make demo` and `make test` set up everything that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEED = @for tool in $(PYTHON) gcc; do command -v $$tool >/dev/null || \
	{ echo "siltstone needs $$tool: install it (Debian: apt install python3-venv python3-dev gcc make) and run make again"; exit 1; }; done

.PHONY: build demo serve test check bench clean

$(VENV)/ready: pyproject.toml meson.build
	$(NEED)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "meson-python>=0.22" "Cython>=3.3,<3.4" meson ninja
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[server,test]"
	touch $@

build: $(VENV)/ready

test: build
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist var .pytest_cache .mypy_cache .ruff_cache .hypothesis
