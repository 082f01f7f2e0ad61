# Everything that a developer or CI runs. `make help` lists the targets.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

PYTHON := .venv/bin/python
# Arguments for what the target runs: make test ARGS='-k spool -x'
ARGS ?=
# Set by `run`: what the machine cannot build is named and left out.
LENIENT ?=

# ---- what is built from what --------------------------------------------------------------------

NATIVE := agent/tocsin/_native.so
NATIVE_C := $(sort $(shell find agent/tocsin -name '*.c'))
NATIVE_H := $(sort $(shell find agent/tocsin -name '*.h'))
# Looked up when the recipe runs: `setup` may have installed it just before. Only clang's warnings are errors.
NATIVE_CC = $(shell command -v clang || command -v cc || command -v gcc)
NATIVE_FLAGS = -O2 -std=c11 -shared -fPIC -Wall -Wextra $(if $(findstring clang,$(NATIVE_CC)),-Werror)

OBJECTS := agent/tocsin/kernel/objects
BPF_OBJECTS := $(patsubst bpf/%.c,$(OBJECTS)/%.o,$(sort $(wildcard bpf/*.bpf.c)))
# The same programs as text, for BCC on the host to compile: only our own macros are left to it.
BCC_TEXTS := $(OBJECTS)/sensor.bpf.i
BPF_PARTS := $(sort $(shell find bpf -name '*.[ch]'))
BPF_MANIFEST := $(OBJECTS)/manifest.json
MACHINE := $(shell uname -m)
BPF_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(MACHINE)))
# The prefix map keeps the folder's name out of BTF: the same sources give the same bytes anywhere.
BPF_FLAGS := -g -O2 -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Werror -fno-stack-protector \
	-ffile-prefix-map=$(CURDIR)=. -I bpf -I/usr/include/$(MACHINE)-linux-gnu
BPF_COMPILE = clang $(BPF_FLAGS) -c $< -o $@.new && llvm-strip -g $@.new && mv $@.new $@
# Not -D__bpf__: BCC reads the text as a program of the host, to which the registers in it mean nothing.
BCC_PREPROCESS = clang $(BPF_FLAGS) -U__bpf__ -DTOCSIN_BCC -E -P $< -o $@.new && mv $@.new $@
BPF_ABSENT = echo '$@ is left out: clang, llvm-strip or libbpf-dev is missing' >&2; $(if $(LENIENT),true,exit 1)
BPF_TOOLS = $(and $(shell command -v clang),$(shell command -v llvm-strip),$(wildcard /usr/include/bpf/bpf_helpers.h))

RELEASE := agent/tocsin/starter.release
# Folders too: a rule that was removed must leave the release.
RELEASE_FROM := $(sort $(shell find content -not -name '.*' 2>/dev/null)) \
	$(sort $(shell find agent/tocsin/content agent/tocsin/evaluate agent/tocsin/records agent/tocsin/api/content \
		agent/tocsin/api/event -name '*.py' 2>/dev/null))

C_FORMATTED = $(shell find bpf -path bpf/wire -prune -o -name '*.[ch]' -print) $(NATIVE_C) $(NATIVE_H)

# ---- the targets that people use ----------------------------------------------------------------

.PHONY: help setup run test lint native bpf build proto bench storms soak kernels clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## system packages and .venv; instant when nothing is missing
	@packaging/setup.sh $(if $(LENIENT),--lenient)

run: ## the agent in the foreground, on live events or, where it may not load eBPF, on recorded ones; ARGS
	@$(MAKE) --no-print-directory build LENIENT=1 >&2
	@exec .venv/bin/tocsin run $(ARGS)

test: build lint ## everything that can fail: build, lint, all tests; ARGS for pytest
	@.venv/bin/pytest $(ARGS)

lint: setup ## every static check; each alone as lint-ruff, lint-types, …
	@$(MAKE) --no-print-directory --keep-going --output-sync=target $(LINTS)

native: $(NATIVE) ## the C library of the user-space side

bpf: $(BPF_MANIFEST) ## the eBPF objects and the manifest of their digests

build: native bpf $(RELEASE) ## all that the package carries: native, bpf, the starter release

proto: setup ## all that is generated from proto/
	@$(PYTHON) proto/generate.py

bench: build ## measurements beside auditd; ARGS='--write' puts them into docs/BENCH.md
	@$(PYTHON) bench/run.py $(ARGS)

storms: build ## 50 000 execs, unlinks and connects: is each received, or counted as lost? ARGS
	@$(PYTHON) bench/run.py storms $(ARGS)

soak: build ## SOAK_MINUTES=30 of churn: does memory grow? ARGS
	@$(PYTHON) bench/run.py soak $(ARGS)

kernels: build ## the kernel tests on Debian's kernels, in virtual machines; writes docs/KERNELS.md; ARGS
	@PYTHONPATH=tests $(PYTHON) -m guests.matrix $(ARGS)

clean: ## removes what was built, not .venv
	rm -rf $(NATIVE) $(OBJECTS) $(RELEASE) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# ---- how each is built --------------------------------------------------------------------------
# Written under another name and renamed: a running agent has the old file mapped.

$(NATIVE): $(NATIVE_C) $(NATIVE_H) Makefile | setup
	$(if $(NATIVE_CC),,$(error no C compiler: install clang, or gcc))
	$(NATIVE_CC) $(NATIVE_FLAGS) -o $@.new $(NATIVE_C)
	@mv $@.new $@

# Stripped of DWARF; BTF stays.
$(OBJECTS)/%.bpf.o: bpf/%.bpf.c $(BPF_PARTS) Makefile | setup
	@mkdir -p $(@D)
	$(if $(BPF_TOOLS),$(BPF_COMPILE),@$(BPF_ABSENT))

$(OBJECTS)/%.bpf.i: bpf/%.bpf.c $(BPF_PARTS) Makefile | setup
	@mkdir -p $(@D)
	$(if $(BPF_TOOLS),$(BCC_PREPROCESS),@$(BPF_ABSENT))

$(BPF_MANIFEST): $(BPF_OBJECTS) $(BCC_TEXTS) packaging/manifest.py pyproject.toml | setup
	@mkdir -p $(@D)
	@$(PYTHON) packaging/manifest.py $@ $(BPF_OBJECTS) $(BCC_TEXTS)

$(RELEASE): $(NATIVE) $(RELEASE_FROM) | setup
	.venv/bin/tocsin content build content -o $@

# ---- lint ---------------------------------------------------------------------------------------

LINTS := lint-ruff lint-format lint-types lint-imports lint-proto lint-generated lint-c
.PHONY: $(LINTS)
lint-ruff:
	.venv/bin/ruff check --quiet
lint-format:
	.venv/bin/ruff format --check --quiet
lint-types:
	.venv/bin/mypy --no-error-summary
	.venv/bin/mypy --no-error-summary packaging/manifest.py
lint-imports:
	.venv/bin/lint-imports --no-logo
lint-proto:
	cd proto && ../.venv/bin/buf lint
lint-generated:
	$(PYTHON) proto/generate.py --check
lint-c:
	@echo .venv/bin/clang-format --dry-run -Werror bpf agent
	@.venv/bin/clang-format --dry-run -Werror $(C_FORMATTED) 2>&1 | grep -F ' error: '; exit $${PIPESTATUS[0]}
