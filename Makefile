# SPDX-License-Identifier: GPL-2.0-or-later
# What a newcomer types. `make` alone lists the targets.

PYTHON := .venv/bin/python
OBJECTS := guard/guard.bpf.o guard/lsm.bpf.o guard/holders.bpf.o
BPF_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(shell uname -m)))
# asm/types.h stands in a directory of the machine's own on Debian.
MULTIARCH := /usr/include/$(shell uname -m)-linux-gnu
BPF_FLAGS := -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Werror \
	-Ibpf -I$(MULTIARCH)
# More for the program a target runs: make test ARGS='-k postfix'
ARGS ?=

ifneq ($(shell id -u),0)
ifneq ($(filter setup run test test-vm demo bench fuzz soak,$(MAKECMDGOALS)),)
$(error must be run as root, it works on the kernel: sudo make $(MAKECMDGOALS))
endif
endif

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## all that is needed, on a fresh Debian 12 machine
	@tests/setup.sh
	@$(MAKE) --no-print-directory object

.PHONY: object
object: $(OBJECTS) ## compile the kernel programs
	@:

# The BTF that CO-RE needs survives llvm-strip -g, only DWARF goes.
guard/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) Makefile
	clang $(BPF_FLAGS) -c $< -o $@.new
	llvm-strip -g $@.new
	mv $@.new $@

.PHONY: run
run: setup ## watch this host: guardd in observe mode, findings as they come
	@$(PYTHON) -m tests.watch_host $(ARGS)

.PHONY: test
test: setup ## all tests but those in guests
	$(PYTHON) -m pytest --ignore tests/vm $(ARGS)

.PHONY: test-vm
test-vm: setup ## in guests: other kernels, systemd; ARGS='-k object-loads'
	$(PYTHON) -m pytest tests/vm $(ARGS)

.PHONY: demo
demo: setup ## a rogue script against a mail host, in network namespaces
	@$(PYTHON) -m tests.lab.demo $(ARGS)

.PHONY: bench
bench: setup ## the figures of docs/, measured on this machine
	@$(PYTHON) -m tests.bench $(ARGS)

.PHONY: fuzz
fuzz: setup ## hostile input, guided by coverage; ARGS='policy --seconds 600'
	@$(PYTHON) -m tests.fuzz $(ARGS)

.PHONY: security
security: ## write the lists of SECURITY.md from tests/matrix.toml
	$(PYTHON) -m tests.probes.security

.PHONY: soak
soak: setup ## the fault tests at full size, and docs/faults.md: half an hour
	@$(PYTHON) -m tests.faults $(ARGS)

.PHONY: lint
lint: ## what tests/house checks: style, types, layers
	$(PYTHON) -m pytest -q tests/house $(ARGS)

.PHONY: format
format: ## let ruff and clang-format lay out the code
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .
	clang-format -i bpf/*.[ch]

.PHONY: clean
clean: ## remove what the targets above made
	rm -rf .venv .venv-fuzz build dist *.egg-info $(OBJECTS)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find guard tests -name __pycache__ -prune -exec rm -rf {} +
