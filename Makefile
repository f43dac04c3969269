# The few words of this project. Needs Python >= 3.10, make and git; Zig comes from PyPI.
#
#   make demo    from nothing to a small trained model that answers (one to ten minutes the first time)
#   make test    everything: Zig unit tests and Python tests, with torch (CPU) and TRL
#   make check   lint and test

PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
PYTEST_ARGS ?=
DEMO_ARGS ?=

PIP_FLAGS := --quiet --disable-pip-version-check --no-input
ZIG_ENV := ZIG_DEBUG_CMD=1
SOURCES := pyproject.toml CMakeLists.txt build.zig build.zig.zon $(shell find zig -name '*.zig' -o -name '*.h')
PYTHON_SOURCES := $(shell find python -type f -not -path '*/__pycache__/*')

# Runs a quiet command and says every half minute that it is still at work.
comma := ,
define patiently
$(1) & job=$$!; trap 'kill $$job 2>/dev/null; exit 130' INT TERM; passed=0; \
	while kill -0 $$job 2>/dev/null; do \
		sleep 1; passed=$$((passed + 1)); \
		[ $$((passed % 30)) -ne 0 ] || echo "  still at work after $${passed}s"; \
	done; wait $$job
endef

.PHONY: help demo test test-zig test-python test-levels test-aarch64 have-qemu check build lint fmt docs bench durability tokens fuzz gguf-files clean

help:
	@sed -n '3,5s/^# *//p' $(firstword $(MAKEFILE_LIST))
	@echo 'also: build lint fmt docs bench durability tokens fuzz gguf-files test-levels test-aarch64 clean'

# ---- environments ----

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing (Debian and Ubuntu: apt install python3-venv)"; exit 1; }

$(TEST_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(TEST_VENV) || { echo "Python's venv module is missing (Debian and Ubuntu: apt install python3-venv)"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES) $(PYTHON_SOURCES)
	@echo 'installing abi-train into $(VENV): fetching build tools, then compiling Zig'
	@echo '(one to ten minutes the first time, depending on the machine)'
	@$(call patiently,$(VENV)/bin/python -m pip install $(PIP_FLAGS) .)
	@touch $@

# torch goes first and alone: what the constraints name is the CPU build.
$(TEST_VENV)/.dependencies: $(TEST_VENV)/bin/python constraints.txt pyproject.toml
	@echo 'installing what the tests need into $(TEST_VENV)'
	@$(TEST_VENV)/bin/python -m pip install $(PIP_FLAGS) $$(grep '^torch==' constraints.txt)
	@$(TEST_VENV)/bin/python -m pip install $(PIP_FLAGS) 'scikit-build-core>=0.11' 'cffi>=1.17' -c constraints.txt
	@touch $@

$(TEST_VENV)/.installed: $(TEST_VENV)/.dependencies $(SOURCES) $(PYTHON_SOURCES)
	@echo 'installing abi-train into $(TEST_VENV): fetching packages, then compiling Zig'
	@$(call patiently,$(TEST_VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt '.[test$(comma)lint]')
	@touch $@

# ---- what people type ----

demo: $(VENV)/.installed
	@$(VENV)/bin/abi-train demo $(DEMO_ARGS)

test: test-zig test-python

test-zig: $(TEST_VENV)/.installed
	@echo 'Zig unit tests'
	@$(ZIG_ENV) $(TEST_VENV)/bin/python -m ziglang build test examples bench-program --summary line --error-style minimal

test-python: $(TEST_VENV)/.installed
	@ABI_PROGRAM="$$($(TEST_VENV)/bin/python -c 'from abi_train._native.program import program_path; print(program_path())')" \
		$(TEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)

# All of tests/parity and the same bits on every CPU level this machine has; `test` runs a choice of them.
test-levels: $(TEST_VENV)/.installed
	@$(ZIG_ENV) $(TEST_VENV)/bin/python -m ziglang build test-levels --summary line --error-style minimal
	@export ABI_PROGRAM="$$($(TEST_VENV)/bin/python -c 'from abi_train._native.program import program_path; print(program_path())')"; \
	for level in $$($(TEST_VENV)/bin/python -c 'from abi_train._native import cpu_info; print(*cpu_info()["levels"])'); do \
		echo "Python tests on CPU level $$level"; \
		ABI_TRAIN_CPU=$$level $(TEST_VENV)/bin/python -m pytest tests/parity tests/durability/test_same_bits.py $(PYTEST_ARGS) || exit 1; \
	done

# The Zig unit tests as an ARM machine runs them: compiled for it, run by an emulator. Minutes, most of them in ops.
AARCH64_LAYERS ?= base tensor arch kernels ops model train infer
test-aarch64: have-qemu $(TEST_VENV)/.installed
	@$(ZIG_ENV) $(TEST_VENV)/bin/python -m ziglang build $(addprefix test-,$(AARCH64_LAYERS)) install \
		-Dtarget=aarch64-linux-musl -fqemu --prefix build/aarch64 --summary line --error-style minimal
	@ABI_AARCH64_PROGRAM="$(CURDIR)/build/aarch64/bin/abi" \
		ABI_PROGRAM="$$($(TEST_VENV)/bin/python -c 'from abi_train._native.program import program_path; print(program_path())')" \
		$(TEST_VENV)/bin/python -m pytest tests/levels/test_aarch64.py $(PYTEST_ARGS)

have-qemu:
	@command -v qemu-aarch64 >/dev/null || { echo 'qemu-aarch64 is missing (Debian and Ubuntu: apt install qemu-user)'; exit 1; }

check: lint test

build: $(VENV)/bin/python
	@$(VENV)/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

lint: $(TEST_VENV)/.installed
	@$(TEST_VENV)/bin/ruff check python tests examples benchmarks tools
	@$(TEST_VENV)/bin/ruff format --check python tests examples benchmarks tools
	@$(TEST_VENV)/bin/mypy
	@$(ZIG_ENV) $(TEST_VENV)/bin/python -m ziglang fmt --check build.zig build.zig.zon zig examples

fmt: $(TEST_VENV)/.installed
	@$(TEST_VENV)/bin/ruff check --fix --quiet python tests examples benchmarks tools
	@$(TEST_VENV)/bin/ruff format python tests examples benchmarks tools
	@$(TEST_VENV)/bin/python -m ziglang fmt build.zig build.zig.zon zig examples

docs: $(VENV)/.installed
	@$(VENV)/bin/python tools/make_cli_docs.py
	@$(VENV)/bin/python tools/make_config_docs.py
	@$(VENV)/bin/python tools/make_chat_docs.py
	@$(VENV)/bin/python tools/make_lint_docs.py

bench: $(TEST_VENV)/.installed
	@$(TEST_VENV)/bin/python benchmarks/all.py

# kill -9 two hundred times at random moments; ABI_SEED=N repeats an earlier run's moments.
durability: $(TEST_VENV)/.installed
	@ABI_KILLS=200 ABI_PROGRAM="$$($(TEST_VENV)/bin/python -c 'from abi_train._native.program import program_path; print(program_path())')" \
		$(TEST_VENV)/bin/python -m pytest tests/durability $(PYTEST_ARGS)

# Sound files with random changes through every reader, in a build that keeps all checks; what ends it is kept in fuzz-found/.
FUZZ_SECONDS ?= 600
fuzz: $(TEST_VENV)/.installed
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(TEST_VENV)/bin/python tests/fuzz/fuzz_run.py

# Two hundred GGUF files drawn by lot, through PyPI's gguf, llama.cpp and ours; ABI_GGUF_SEED=N draws others.
gguf-files: $(TEST_VENV)/.installed
	@ABI_GGUF_FILES=200 ABI_PROGRAM="$$($(TEST_VENV)/bin/python -c 'from abi_train._native.program import program_path; print(program_path())')" \
		$(TEST_VENV)/bin/python -m pytest tests/formats/test_generated_gguf.py $(PYTEST_ARGS)

# 200 MB of text for each pre-tokenizer against `tokenizers`, a million texts of special tokens' literals.
tokens: $(TEST_VENV)/.installed
	@ABI_TOKENS_MB=$${ABI_TOKENS_MB:-200} ABI_TOKENS_LITERALS=$${ABI_TOKENS_LITERALS:-1000000} \
		$(TEST_VENV)/bin/python -m pytest tests/parity/test_tokenizer_batches.py $(PYTEST_ARGS)

clean:
	rm -rf build dist zig-out .zig-cache zig-pkg $(VENV) $(TEST_VENV) abi-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
