# aitrain: every command of the house. `make` alone lists them.
#
# PYTHON   interpreter to build .venv with (3.11 or 3.12), or to run `make gpu` with
# PIP_ARGS more words for pip, for instance an index with CPU builds of torch
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv quickstart test check format docs soak gpu gpu-wheels clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP) ## build .venv in this folder, every version as in constraints.txt

$(STAMP): constraints.txt pyproject.toml
	@set -e; python="$(PYTHON)"; \
	if [ -z "$$python" ]; then for name in python3.11 python3.12 python3; do \
	  if "$$name" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then python="$$name"; break; fi; \
	done; fi; \
	if [ -z "$$python" ]; then echo "make: no Python 3.11 or 3.12 found: install one, or write make PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	if ! "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	  echo "make: PYTHON=$$python is not Python 3.11 or 3.12: write for instance make PYTHON=python3.11" >&2; exit 2; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV); \
	echo "make: installing into $(VENV) (about two minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'; \
	touch $@

quickstart: $(STAMP) ## fine-tune a real language model with LoRA on this machine
	@set -e; model=; status=0; \
	$(BIN)/aitrain fetch smollm2-135m-instruct || status=$$?; \
	case $$status in \
	  0) ;; \
	  2) echo "quickstart: SmolLM2-135M-Instruct is not at hand; going on with the tiny model that aitrain ships"; \
	     model="model.path=asset:tiny-llama" ;; \
	  *) exit $$status ;; \
	esac; \
	$(BIN)/aitrain train quickstart $$model $(ARGS)

# The tests start two ranks at a time: on a small machine, more threads than cores makes every step slower.
test: $(STAMP) ## the whole CPU test suite
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q $(ARGS)

check: $(STAMP) ## ruff, mypy, import-linter and pydoclint (in flake8); runs all of them, fails if any does
	@failed=; for step in "ruff check ." "ruff format --check ." "mypy" "lint-imports --no-logo" "flake8 aitrain"; do \
	  echo "== $$step"; $(BIN)/$$step || failed="$$failed, $$step"; \
	done; \
	if [ -n "$$failed" ]; then echo "check failed:$${failed#,}" >&2; exit 1; fi

format: $(STAMP) ## let ruff mend layout and import order
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

docs: $(STAMP) ## write the generated pages and build the documentation into site/
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "docs: open site/index.html"

soak: ## long test of stops and restarts (comes with the checkpoint issue)
	@echo "soak: will stop a run with kill -9 at random moments and prove that each restart ends at the same loss; not written yet"

# A GPU machine may have torch already and no network: then .whl/ (from `make gpu-wheels`) brings the rest. A .venv in
# this folder is whole and goes first.
gpu: GPU_PYTHON := $(or $(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,python3))
gpu: ## on a GPU machine: tests marked gpu, then the training benchmark
	@set -e; export PYTHONPATH="$(CURDIR)"; \
	if [ "$(GPU_PYTHON)" != "$(BIN)/python" ] && ls .whl/*.whl >/dev/null 2>&1; then \
	  rm -rf build/gpu-site; \
	  $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target build/gpu-site .whl/*.whl; \
	  export PYTHONPATH="$(CURDIR):$(CURDIR)/build/gpu-site"; \
	fi; \
	$(GPU_PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch %s of %s sees no GPU" % (torch.__version__, sys.executable))'; \
	marks=$$($(GPU_PYTHON) -c 'import torch; print("gpu or multi_gpu" if torch.cuda.device_count() > 1 else "gpu")'); \
	$(GPU_PYTHON) -m pytest -q -m "$$marks" tests/gpu; \
	$(GPU_PYTHON) -m aitrain bench train --precision bf16 --out tests/bench/results $(ARGS)

# What a machine with Python 3.12, torch, triton, transformers, pytorch-lightning, safetensors, tokenizers and numpy
# still lacks. pyarrow (Parquet), wandb and bitsandbytes are left out: they alone are larger than all of these.
GPU_WHEELS := accelerate annotated-types datasets dill einops gguf hjson hydra-core iniconfig lightning \
  msgpack multiprocess ninja omegaconf peft pluggy psutil py-cpuinfo pydantic pydantic-core \
  Pygments pytest pytest-timeout trl typing-inspection xxhash
# deepspeed and antlr4 publish no wheels; DS_BUILD_OPS=0 keeps deepspeed pure Python (its ops are built when first used).
GPU_SDISTS := deepspeed antlr4-python3-runtime
GPU_PLATFORMS := $(foreach n,28 27 24 17 12 5,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64

gpu-wheels: $(STAMP) ## collect what a GPU machine without network lacks into .whl/ (at most 40 MiB)
	@set -e; rm -rf .whl; mkdir .whl; \
	pinned() { for name in "$$@"; do grep -iE "^$${name//-/[-_.]}==" constraints.txt || \
	  { echo "gpu-wheels: $$name has no version in constraints.txt" >&2; exit 1; }; done; }; \
	binary=$$(pinned $(GPU_WHEELS)); source=$$(pinned $(GPU_SDISTS)); \
	$(BIN)/python -m pip download --quiet --quiet $(PIP_ARGS) --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp $(GPU_PLATFORMS) -d .whl $$binary; \
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --quiet $(PIP_ARGS) --no-deps -w .whl $$source; \
	size=$$(du -sk .whl | cut -f1); echo "gpu-wheels: $$(ls .whl | wc -l) wheels, $$((size / 1024)) MiB in .whl/"; \
	[ $$size -le 40960 ] || { echo "gpu-wheels: more than 40 MiB: the largest are:" >&2; ls -S .whl | head -5 >&2; exit 1; }

clean: ## remove what builds and tests leave behind; keeps .venv and runs/
	rm -rf build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find aitrain tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
