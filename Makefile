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

.PHONY: help venv quickstart recipes test test-all test-slow soak check format docs gpu gpu-wheels gpu-rivals clean

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

# One worker per core, and a file with its shared launches on one worker, in the order they stand: sorted by their number of
# tests, the long launches of few tests would come last and keep one worker waiting for the other. Some tests start two ranks at a time: on a small
# machine, more threads than cores makes every step slower. Bytecode is kept, because hundreds of processes are started.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q \
  --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## the CPU test suite of every day
	@$(PYTEST) $(ARGS)

test-all: $(STAMP) ## also the slow tests: planted bugs, kernels compiled for every GPU, long matrices
	@$(PYTEST) -m "not gpu and not multi_gpu" $(ARGS)

soak: $(STAMP) ## twenty rounds of faults on a real Slurm, about ten minutes; prints how long each took
	@$(PYTEST) -m soak -s --numprocesses 0 tests/e2e $(ARGS)

test-slow: $(STAMP) ## only the slow tests; ARGS names their folders
	@$(PYTEST) -m "slow and not gpu and not multi_gpu" $(ARGS) || [ $$? -eq 5 ]  # 5: none of them is slow

recipes: $(STAMP) ## every recipe that does not write text, and preferences, end to end on shipped data, about six minutes
	@$(BIN)/python -m pytest -q -m "soak or not soak" --numprocesses 0 tests/e2e/test_shown_recipes.py $(ARGS)

check: $(STAMP) ## ruff, mypy, import-linter and pydoclint (in flake8); runs all of them, fails if any does
	@failed=; for step in "ruff check ." "ruff format --check ." "mypy" "lint-imports --no-logo" "flake8 aitrain"; do \
	  echo "== $$step"; $(BIN)/$$step || failed="$$failed, $$step"; \
	done; \
	if [ -n "$$failed" ]; then echo "check failed:$${failed#,}" >&2; exit 1; fi

format: $(STAMP) ## let ruff fix layout and import order
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

docs: $(STAMP) ## write the generated pages and build the documentation into site/
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "docs: open site/index.html"

# A GPU machine may have torch already and no network: then .whl/ (from `make gpu-wheels`) brings the rest, and
# .whl-rivals/ (from `make gpu-rivals`) what `bench ops` compares with. A .venv in this folder is whole and goes first.
# Parts: tests (whole runs), ops (kernels), sanitizer, bench_ops, train; or parts of the benchmark, for instance
# `make gpu PART="norms glu"`. Each ends within nine minutes; all are tried, and one that fails makes the whole fail.
gpu: GPU_PYTHON := $(or $(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,python3))
gpu: ## on a GPU machine: tests, kernels, compute-sanitizer, benchmarks; PART=name does one
	@set -e; export PYTHONPATH="$(CURDIR)" PYTHONUNBUFFERED=1; \
	unpack() { if ls $$1/*.whl >/dev/null 2>&1; then rm -rf "$$2"; \
	  $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$$2" $$1/*.whl; \
	  export PYTHONPATH="$$PYTHONPATH:$(CURDIR)/$$2"; fi; }; \
	if [ "$(GPU_PYTHON)" != "$(BIN)/python" ]; then unpack .whl build/gpu-site; fi; \
	unpack .whl-rivals build/gpu-rivals/site-packages; \
	$(GPU_PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch %s of %s sees no GPU" % (torch.__version__, sys.executable))'; \
	marks=$$($(GPU_PYTHON) -c 'import torch; print("gpu or multi_gpu" if torch.cuda.device_count() > 1 else "gpu")'); \
	within() { timeout -k 20 -s INT "$$@"; }; \
	part() { case $$1 in \
	  tests) within 540 $(GPU_PYTHON) -m pytest -q -m "$$marks" --ignore tests/gpu/ops tests/gpu ;; \
	  ops) code=0; \
	    within 240 $(GPU_PYTHON) -m pytest -q -m "$$marks" tests/gpu/ops || code=1; \
	    AITRAIN_TEST_OPS_DEVICE=cuda within 300 $(GPU_PYTHON) -m pytest -q tests/ops \
	      --ignore tests/ops/test_aot.py --ignore tests/ops/test_mutants.py --ignore tests/ops/attention || code=1; \
	    return $$code ;; \
	  sanitizer) if ! command -v compute-sanitizer >/dev/null; then \
	      echo "make gpu: compute-sanitizer is not on PATH: the kernels' accesses and races were not checked"; return 0; fi; \
	    code=0; for tool in memcheck racecheck; do \
	      PYTORCH_NO_CUDA_MEMORY_CACHING=1 within 265 compute-sanitizer --tool $$tool --error-exitcode 9 \
	        $(GPU_PYTHON) tests/gpu/ops/every_op.py || code=1; \
	    done; return $$code ;; \
	  bench_ops) $(GPU_PYTHON) -m aitrain.bench.ops --minutes 9 --out tests/bench/results ;; \
	  train) within 540 $(GPU_PYTHON) -m aitrain bench train --precision bf16 --out tests/bench/results $(ARGS) ;; \
	  *) $(GPU_PYTHON) -m aitrain.bench.ops "$$1" --minutes 9 --out tests/bench/results $(ARGS) ;; \
	esac; }; \
	failed=; for name in $(or $(PART),tests ops sanitizer bench_ops train); do \
	  echo "== $$name"; part "$$name" || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "make gpu: failed:$$failed" >&2; exit 1; fi

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

# What `aitrain bench ops` compares with. bitsandbytes is cut down to the library for CUDA 13. The Quack set is larger than
# everything else together: QUACK=1 adds it.
RIVALS := liger-kernel==0.8.5 cut-cross-entropy==25.1.1 torchao==0.18.0 einops==0.8.2 bitsandbytes==0.50.2
QUACK_SET := quack-kernels==0.6.5 nvidia-cutlass-dsl==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1 \
  nvidia-cutlass-dsl-libs-core==4.8.1 nvidia-cutlass-dsl-libs-cu13==4.8.1 apache-tvm-ffi==0.1.15 \
  torch-c-dlpack-ext==0.1.5 protobuf

gpu-rivals: $(STAMP) ## collect the rivals of `bench ops` into .whl-rivals/ (at most 40 MiB; QUACK=1 adds Quack, 110 MiB)
	@set -e; rm -rf .whl-rivals; mkdir .whl-rivals; \
	$(BIN)/python -m pip download --quiet --quiet $(PIP_ARGS) --no-deps --only-binary=:all: --python-version 3.12 \
	  --implementation cp $(GPU_PLATFORMS) -d .whl-rivals $(RIVALS) $(if $(QUACK),$(QUACK_SET)); \
	cd .whl-rivals; for wheel in bitsandbytes-*.whl; do \
	  ../$(BIN)/python -c 'import sys, zipfile; whole = zipfile.ZipFile(sys.argv[1]); cut = zipfile.ZipFile("cut", "w", zipfile.ZIP_DEFLATED); [cut.writestr(entry, whole.read(entry)) for entry in whole.infolist() if not entry.filename.endswith(".so") or entry.filename.endswith(("_cuda130.so", "_cpu.so"))]; cut.close()' "$$wheel"; \
	  mv cut "$$wheel"; done; cd ..; \
	size=$$(du -sk .whl-rivals | cut -f1); echo "gpu-rivals: $$(ls .whl-rivals | wc -l) wheels, $$((size / 1024)) MiB in .whl-rivals/"; \
	[ -n "$(QUACK)" ] || [ $$size -le 40960 ] || { echo "gpu-rivals: more than 40 MiB: the largest are:" >&2; ls -S .whl-rivals | head -5 >&2; exit 1; }

clean: ## remove what builds and tests leave behind; keeps .venv and runs/
	rm -rf build site *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find aitrain tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
