# Every target sets up what it needs in .venv, on a machine with nothing but Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
EDGETUNE := EDGETUNE_CACHE=demo/cache $(BIN)/edgetune

.PHONY: help demo test check test-gpu clean

help:
	@echo "make demo      install, then fit, export, quantize, prove and predict on handwritten digits, offline"
	@echo "make test      install, then lint, type-check and run the tests"
	@echo "make check     lint, type-check and check the floors"
	@echo "make test-gpu  run the tests that need an NVIDIA GPU"

$(VENV)/.demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing edgetune with PyTorch; this fetches several GB the first time"
	$(PIP) --editable '.[train,cpu,serve]'
	touch $@

$(VENV)/.test-installed: $(VENV)/.demo-installed
	$(PIP) --editable '.[train,cpu,serve,dev]'
	touch $@

demo: $(VENV)/.demo-installed
	@set -e; start=$$(date +%s); rm -rf demo/cache; \
	set -x; \
	$(EDGETUNE) sample-data digits demo/data --force; \
	$(EDGETUNE) fit demo/data --out demo/run --force; \
	$(EDGETUNE) export demo/run --out demo/bundle --int8 --target cpu-x86 --force; \
	$(EDGETUNE) parity demo/bundle --data demo/data --out demo/parity --force; \
	$(EDGETUNE) predict demo/bundle "$$(ls demo/data/val/7/*.png | head -n 1)"; \
	{ set +x; } 2>/dev/null; \
	echo; echo "demo: $$(( $$(date +%s) - start )) s after installation; look at demo/run/report.html and demo/bundle/parity.html"

check: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf $(VENV) demo build dist
