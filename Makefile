# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests are single-threaded inside and run side by side; more than four at once only fights for memory bandwidth.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-fast test-slow lint format conformance screenshots tiny benchmark clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --output demo

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

# The models and what feeds them, without the tests that start processes or run the shipped checkpoint; under 90 seconds.
test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "not slow and not checkpoint" tests/modeling_uniaudio2 tests/feature_extraction tests/processing

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# transformers' own model tests, from the source distribution of the installed version.
conformance: $(VENV)/.installed-test
	$(BIN)/python -m tests.conformance.run

# The demo on every tab, at a desk and on a phone, in build/screenshots. Needs an installed Chromium.
screenshots: $(VENV)/.installed-test
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.hub_cards.browser.screenshots build/screenshots

# Trains the shipped checkpoint from nothing, two steps at a time with a core each: about two and a half hours on two
# cores, resumable. A machine with a GPU runs `python -m uniaudio2.training.tiny` instead, one step after the other.
TINY := build/tiny
tiny: $(VENV)/.installed-test
	$(MAKE) --jobs 2 $(TINY)/export/finished

$(TINY)/%/finished:
	OMP_NUM_THREADS=1 $(BIN)/python -m uniaudio2.training.tiny --work-dir $(TINY) --step $*

# What a step reads: the longer of the two ways to the end comes first.
$(TINY)/export/finished: | $(TINY)/scalar_decoder_painted/finished $(TINY)/language_model_again/finished
$(TINY)/scalar_decoder_painted/finished: | $(TINY)/painted_latents/finished $(TINY)/scalar_decoder_again/finished
$(TINY)/painted_latents/finished: | $(TINY)/flow/finished
$(TINY)/scalar_decoder_again/finished: | $(TINY)/scalar_decoder/finished
$(TINY)/scalar_decoder/finished: | $(TINY)/scalar_codec/finished
$(TINY)/language_model_again/finished: | $(TINY)/language_model/finished
$(TINY)/language_model/finished $(TINY)/painted_latents/finished: | $(TINY)/codes/finished
$(TINY)/flow/finished $(TINY)/codes/finished: | $(TINY)/reconstruction/finished
$(TINY)/reconstruction/finished: | $(TINY)/latents/finished
$(TINY)/latents/finished: | $(TINY)/reasoning/finished $(TINY)/scalar_codec/finished
$(TINY)/reasoning/finished: | $(TINY)/features/finished
$(TINY)/features/finished: | $(TINY)/front_ends/finished
$(TINY)/front_ends/finished $(TINY)/scalar_codec/finished: | $(TINY)/corpus/finished

benchmark: $(VENV)/.installed-test
	$(BIN)/python benchmarks/tiny_quality.py
	$(BIN)/python benchmarks/streaming_latency.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $@

clean:
	rm -rf build demo .pytest_cache .ruff_cache .hypothesis
