# Everything happens in one environment, .venv, with one set of version bounds (setup.cfg).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo app docs check test lint types format beats clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/.installed ## three prompts to three WAV files with pictures, in demo/
	$(BIN)/musicldm generate --out demo --seed 1 \
		"solo piano, slow, in a minor key" \
		"a fast rock band with drums and electric guitar" \
		"a string quartet plays a calm waltz"
	@echo "Listen to demo/*.wav and look at demo/*.png"

app: $(VENV)/.installed-app ## a page to make music in, in the browser
	$(BIN)/musicldm app

docs: $(VENV)/.installed-docs ## the documentation as web pages, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: $(VENV)/.installed-all lint types ## style, types and the quick tests, in under 3 minutes
	$(BIN)/python -m pytest -n 2 -m "not slow"

test: $(VENV)/.installed-all lint types ## the whole test suite, beats and vocoder training included
	$(BIN)/python -m pytest tests/data/test_cluster.py # starts Ray, which needs a process of its own
	$(BIN)/python -m pytest -n 2 --ignore=tests/data/test_cluster.py

lint: $(VENV)/.installed-all ## style checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-all ## types of the public modules (pyproject.toml lists them)
	$(BIN)/mypy

format: $(VENV)/.installed-all ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

beats: $(VENV)/.installed-beats ## madmom, for beat tracking

clean: ## remove the environment
	rm -rf $(VENV)

$(VENV)/.created:
	@echo "Creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml
	@echo "Installing the package (the first time this fetches PyTorch: some minutes)"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	@echo "Installing the app"
	$(BIN)/pip install --quiet --editable ".[app]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what builds the documentation"
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

# madmom 0.16.1 imports Cython and numpy in its setup.py, so they must be there first and its build not be isolated;
# it imports pkg_resources, which setuptools 81 removed.
$(VENV)/.installed-beats: $(VENV)/.installed
	@echo "Installing madmom"
	$(BIN)/pip install --quiet "setuptools<81" wheel cython
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[beats]" "madmom>=0.16.1"
	@touch $@

# tinysoundfont declares PyAudio, which needs PortAudio's headers and only matters for live sound; laion-clap declares
# numpy<2, and works without.
$(VENV)/.installed-all: $(VENV)/.installed-beats
	@echo "Installing what training, rendering and the tests need"
	$(BIN)/pip install --quiet --editable ".[all,test]"
	$(BIN)/pip install --quiet --no-deps "tinysoundfont>=0.3" "laion-clap>=1.1.7"
	@touch $@
