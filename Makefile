# clusternet: everything a person runs by hand. `make help` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint advisories fuzz miri bench install clean

CARGO ?= cargo
PREFIX ?= $(HOME)/.local
# Who runs the demo when root asks for it: PVM, Open MPI and LAM refuse uid 0.
DEMO_USER ?=
FUZZ_SECONDS ?= 30
# Options of the bench, such as --quick, --offload nic, --only tcp,rtt.
BENCH_ARGS ?=

# Under sudo, use the toolchain of whoever called it: root seldom has one.
ifneq ($(SUDO_USER),)
ifeq ($(shell command -v cargo),)
sudo_home := $(shell getent passwd $(SUDO_USER) | cut -d: -f6)
export PATH := $(sudo_home)/.cargo/bin:$(PATH)
export RUSTUP_HOME ?= $(sudo_home)/.rustup
export CARGO_HOME ?= $(sudo_home)/.cargo
endif
endif

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## install the Debian packages that demo and tests use (as root; otherwise name them)
	@netns-tests/setup.sh

build: ## build everything
	$(CARGO) build --workspace --locked

demo: setup ## a LAN of three nodes on this machine, with PVM and Open MPI across it
	$(CARGO) build --release --locked -p clusternet-ctl -p clusternetd
	@DEMO_USER='$(DEMO_USER)' netns-tests/demo.sh "$${CARGO_TARGET_DIR:-target}/release"

# Standard output of tests that passed is shown, since that is where one says that it was skipped.
test: setup ## every test; those in network namespaces only as root
	$(CARGO) build --workspace --locked
	@log="$${CARGO_TARGET_DIR:-target}/test.log"; status=0; \
	$(CARGO) test --workspace --locked --no-fail-fast -- --show-output 2>&1 | tee "$$log" || status=$$?; \
	netns-tests/summary.sh "$$log"; exit $$status

lint: ## formats, lints and documentation, warnings denied; licences where cargo-deny is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items --locked
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --workspace check bans licenses sources; \
	else echo 'skipped: cargo-deny is not installed; run: cargo install cargo-deny'; fi

fuzz: ## fuzz every decoder for FUZZ_SECONDS each (needs a nightly and cargo-fuzz)
	@if ! cargo +nightly --version >/dev/null 2>&1 || ! command -v cargo-fuzz >/dev/null; then \
	  echo 'skipped: no nightly toolchain with cargo-fuzz; run: rustup toolchain install nightly && cargo install cargo-fuzz'; \
	elif [ ! -d fuzz ]; then echo 'skipped: no fuzz directory'; \
	else $(CARGO) test -q --test fuzz -- --ignored write_the_seeds && \
	  for target in $$(cargo +nightly fuzz list); do \
	  cargo +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); done; fi

miri: ## the parts that read hostile input, under miri (needs a nightly)
	@if ! cargo +nightly miri --version >/dev/null 2>&1; then \
	  echo 'skipped: no nightly toolchain with miri; run: rustup toolchain install nightly --component miri'; \
	else MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=$${PROPTEST_CASES:-8} cargo +nightly miri test -p clusternet --lib -- \
	  wire:: words:: channel::replay dataplane::segment dataplane::coalesce; fi

bench: setup ## beside other tunnels: tables, plots, JSON (as root; BENCH_ARGS=--quick takes three minutes, --help lists more)
	$(CARGO) build --release --workspace --bins --locked
	@netns-tests/peers.sh "$${CARGO_TARGET_DIR:-target}/peers"
	@"$${CARGO_TARGET_DIR:-target}/release/bench" $(BENCH_ARGS)

install: ## install both programs below PREFIX (~/.local)
	$(CARGO) build --release --locked -p clusternet-ctl -p clusternetd
	install -D -t '$(PREFIX)/bin' "$${CARGO_TARGET_DIR:-target}"/release/{clusternet,clusternetd}

advisories: ## known faults of dependencies (fetches the advisory database)
	$(CARGO) deny --workspace check advisories

clean: ## remove what was built
	$(CARGO) clean
