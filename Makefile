# make demo   the miniature experiment, from nothing to its table, on this machine (no account, no GPU, no hub)
# make test   the quick tests, each real thing once;  make test-slow  all others;  make check  style and types
# make test-draws  property tests with new random draws;  make test-lowest  the oldest versions that pyproject allows
# make bench  figures
# make bench-gpu   Gemma 2 2B on this machine's GPUs, under ten minutes: a table, and the JSON to commit
# make real   sweeps/gemma3-270m-lt.toml through slurm/sandbox (root, Debian's Slurm, real texts in SHARED); again: goes on
# make docs   docs/reference and the README's picture;  make site  all pages as a site in site/, without a network
# Each fills .venv first. Another Python: make PYTHON=/path/to/python3.12 demo

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
# The tests pretrain the miniature once, and keep it here.
export HPC_EWC_TEST_CACHE ?= $(CURDIR)/.cache

# Real texts and benchmark rows, and the tool that makes a pretrained Gemma out of packages.
SHARED ?= ../shared

.PHONY: demo real test test-slow test-draws test-lowest check format bench bench-gpu docs site clean
.DELETE_ON_ERROR:

# torch first and by its exact version: a range would take gigabytes of CUDA where a CPU build is at hand.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpc_ewc needs Python 3.11 or newer; make PYTHON=… ")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep -E '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
# BackPACK, an oracle of one test, names torchvision as a need of its own; what is tested here does not use it.
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps backpack-for-pytorch einops unfoldNd
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m examples.miniature
	$(BIN)/hpc-ewc submit sweeps/miniature.toml --profile slurm/local.toml

# Two nodes of half the machine each: one training at a time, which needs 11 GB.
real: $(VENV)/.installed
	$(BIN)/python sweeps/gemma3_270m_lt.py --shared $(SHARED)
	python3 slurm/sandbox up --nodes 2
	eval "$$(python3 slurm/sandbox env)"; $(BIN)/hpc-ewc submit sweeps/gemma3-270m-lt.toml --profile slurm/sandbox.toml --yes \
	    && $(BIN)/hpc-ewc status runs/gemma3-270m-lt --watch

# Two processes; the tests of a file stay on one (tests/conftest.py). PYTEST=-x passes anything on to pytest.
PROCESSES ?= 2
RUN_TESTS := $(BIN)/python -m pytest --numprocesses $(PROCESSES) $(PYTEST)

test: $(VENV)/.installed
	$(RUN_TESTS) -m 'not slow and not gpu'

# Files whose tests need the machine to themselves: several GiB, or as many busy processes as there are cores.
ALONE := tests/distributed/test_gemma2_2b_widths.py tests/distributed/test_train_oracle.py \
         tests/end_to_end/test_evaluate_array.py tests/end_to_end/test_real_gemma.py

test-slow: $(VENV)/.installed
	$(RUN_TESTS) -m 'slow and not gpu' $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest $(PYTEST) -m 'slow and not gpu' $(ALONE)

# The seed is printed; the same draws again: make test-draws SEED=…
SEED ?= $(shell date +%s)
test-draws: $(VENV)/.installed
	@echo "hypothesis seed: $(SEED)"
	HPC_EWC_DRAWS=free $(RUN_TESTS) -m 'hypothesis and not gpu' --hypothesis-seed=$(SEED)

# The unit tests at the lower bounds of pyproject.toml, in an environment of their own.
LOWEST ?= .venv-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check "$$($(PYTHON) tests/lowest_versions.py torch)"
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]' $$($(PYTHON) tests/lowest_versions.py)
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check --no-deps backpack-for-pytorch einops unfoldNd
	$(LOWEST)/bin/python -m pytest -n $(PROCESSES) -m 'not slow and not gpu' tests/unit

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/all.py

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py

docs: $(VENV)/.installed
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/images/front.py

# What the site is built with is no part of the development installation.
$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; to search: $(BIN)/python -m http.server -d site"

clean:
	rm -rf $(VENV) $(LOWEST) .cache site .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
