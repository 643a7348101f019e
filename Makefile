# SPDX-License-Identifier: GPL-2.0-or-later
# What a newcomer types. `make` alone lists the targets.

PYTHON := .venv/bin/python
OBJECTS := guard/guard.bpf.o guard/lsm.bpf.o guard/holders.bpf.o guard/handin.bpf.o \
	guard/php.bpf.o
BPF_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(shell uname -m)))
# asm/types.h stands in a directory of the machine's own on Debian.
MULTIARCH := /usr/include/$(shell uname -m)-linux-gnu
BPF_FLAGS := -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Werror \
	-Ibpf -I$(MULTIARCH)
# More for the program a target runs: make test ARGS='-k postfix'
ARGS ?=
# Tests at once, by file: they wait for half of their time. 0: in this process.
JOBS ?= 2

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
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --ignore tests/vm $(ARGS)

.PHONY: test-vm
test-vm: setup ## in guests: other kernels, systemd; ARGS='-k object-loads'
	$(PYTHON) -m pytest -o faulthandler_timeout=0 tests/vm $(ARGS)

.PHONY: demo
demo: setup ## a rogue script against a mail host, in network namespaces
	@$(PYTHON) -m tests.lab.demo $(ARGS)

# All packages are built from the sdist, so it is whole, and beside the checkout, so
# nothing in it changes. By Debian's Python and tools; no .venv is needed.
.PHONY: sdist
sdist: ## dist/smtp-guard-VERSION.tar.gz, which builds all the others
	rm -rf smtp_guard.egg-info dist/*.tar.gz # or what is gone is packed again
	/usr/bin/python3 -c 'from setuptools.build_meta import build_sdist as build; \
		build("dist")' >/dev/null

.PHONY: wheel
wheel: sdist ## dist/*.whl, with the compiled kernel programs inside
	rm -f dist/*.whl
	/usr/bin/python3 -m pip wheel --quiet --no-index --no-deps \
		--no-build-isolation --wheel-dir dist dist/*.tar.gz

.PHONY: deb
deb: sdist ## dist/*.deb: apt install ./dist/smtp-guard_*.deb
	rm -rf build/deb dist/*.deb
	mkdir -p build/deb/source
	tar -xf dist/*.tar.gz --strip-components 1 -C build/deb/source
	cd build/deb/source && dpkg-buildpackage --build=binary --no-sign
	mv build/deb/*.deb dist

# --nodeps: what it needs to be built has other names on other distributions.
.PHONY: rpm
rpm: sdist ## dist/*.rpm, for distributions that have it, from smtp-guard.spec
	rm -rf build/rpm dist/*.rpm
	rpmbuild -tb --nodeps --define '_topdir $(CURDIR)/build/rpm' dist/*.tar.gz
	mv build/rpm/RPMS/*/*.rpm dist

# What packages have besides Python modules, and where it goes.
UNIT_DIR = /usr/lib/systemd/system
ZSH_DIR = /usr/share/zsh/vendor-completions
MODULES = /usr/lib/smtp-guard
.PHONY: install-data
install-data:
	$(call put,/usr/share/smtp-guard/policies,policies/*.toml)
	$(call put,/usr/lib/systemd/catalog,units/*.catalog)
	$(call put,$(UNIT_DIR),units/*.service units/*.path)
	$(call put,/usr/share/smtp-guard/examples,units/*.conf)
	$(call put_as,/usr/lib/sysusers.d/smtp-guard.conf,units/smtp-guard.sysusers)
	$(call put_as,/usr/lib/tmpfiles.d/smtp-guard.conf,units/smtp-guard.tmpfiles)
	$(call put_as,/usr/lib/tmpfiles.d/smtp-guard-postfix.conf,units/smtp-guard-postfix.tmpfiles)
	$(call put,/usr/share/man/man1,docs/man/*.1)
	$(call put,/usr/share/man/man5,docs/man/*.5)
	$(call put,/usr/share/man/man7,docs/man/*.7)
	$(call put,/usr/share/man/man8,docs/man/*.8)
	$(call put,/usr/share/fish/vendor_completions.d,docs/completion/*.fish)
	$(call put,$(ZSH_DIR),docs/completion/_*)
	$(call put_as,$(BASH_DIR)/guardctl,docs/completion/guardctl.bash)
	$(call put_as,$(BASH_DIR)/guardd,docs/completion/guardd.bash)
	$(call program,/usr/bin/guardctl,guard.cli.main)
	$(call program,/usr/sbin/guardd,guard.daemon)
BASH_DIR = /usr/share/bash-completion/completions

put = $(if $(wildcard $(2)),install -D -m 644 -t $(DESTDIR)$(1) $(wildcard $(2)))
put_as = $(if $(wildcard $(2)),install -D -m 644 -T $(2) $(DESTDIR)$(1))
define program
install -D -m 755 -T units/program.in $(DESTDIR)$(1)
sed -i 's|@program@|$(notdir $(1))|; s|@module@|$(2)|; s|@library@|$(MODULES)|' \
	$(DESTDIR)$(1)
endef

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
