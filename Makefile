# The commands of the project; `.ci/run` calls the same ones.

CARGO ?= cargo
# Seconds per target of `make fuzz-smoke` and `make fuzz`; `FUZZ_TARGETS="core tlv"` in the environment chooses targets.
FUZZ_SECONDS ?=
FUZZ_SMOKE := $(or $(FUZZ_SECONDS),5)
FUZZ_LONG := $(or $(FUZZ_SECONDS),300)
# Requests of `make api-fuzz` for each operation.
EXAMPLES ?= 25
# Size of `make soak`.
DEVICES ?= 1000
HOURS ?= 24
# `make crash-test`: how many seeds, the first of them, and the mode (embedded, clustered-1, clustered-3; none: embedded).
RUNS ?= 100
SEED ?= 1
MODE ?=

.PHONY: help run test crash-test lint fmt bench bench-smoke soak fuzz-smoke fuzz api-fuzz demo

help:
	@echo "run         build, and serve with the embedded store in ./data"
	@echo "test        all tests; installs PostgreSQL and Redis where they are missing (Debian)"
	@echo "crash-test  $(RUNS) seeds of kill -9 in a storm, each about a minute, then the store is compared with what was acknowledged"
	@echo "lint        format, clippy, documentation; licences and advisories where cargo-deny is installed"
	@echo "fmt         format the code"
	@echo "bench       every benchmark in five rounds, then all figures beside their goals: 40 to 60 minutes on two idle cores"
	@echo "            (BENCH_ONLY=\"cost api\": some parts); installs PostgreSQL and Redis where they are missing (Debian)"
	@echo "bench-smoke that the benchmarks run: each for a moment, in a debug build"
	@echo "soak        $(DEVICES) simulated devices for $(HOURS) hours of virtual time, then the books are compared"
	@echo "fuzz-smoke  each fuzz target for $(FUZZ_SMOKE) s; needs a nightly toolchain"
	@echo "fuzz        the same for $(FUZZ_LONG) s (FUZZ_SECONDS=...)"
	@echo "api-fuzz    $(EXAMPLES) requests for each operation of the API, made out of /openapi.json; needs python3"
	@echo "demo        the gateway with simulated devices that charge"

run:
	$(CARGO) run --release --bin chargegate -- serve

test:
	scripts/install-services
	$(CARGO) test --workspace

crash-test:
	scripts/install-services
	RUNS=$(RUNS) SEED=$(SEED) $(if $(MODE),MODE=$(MODE)) $(CARGO) test --release --test crash_suite what_was_acknowledged -- --nocapture

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: skipped"; fi
	@if command -v shellcheck >/dev/null; then shellcheck tuning/check tuning/pin; else echo "shellcheck is not installed: skipped"; fi

fmt:
	$(CARGO) fmt --all

bench:
	scripts/install-services
	scripts/bench

bench-smoke:
	scripts/install-services
	scripts/bench --smoke

soak:
	DEVICES=$(DEVICES) HOURS=$(HOURS) $(CARGO) test --release --test whole_day -- --nocapture

fuzz-smoke:
	scripts/fuzz-smoke $(FUZZ_SMOKE)

fuzz:
	scripts/fuzz-smoke $(FUZZ_LONG)

api-fuzz:
	scripts/api-fuzz $(EXAMPLES)

demo:
	scripts/demo
