# Bare `make` lists the targets. Each is one line: what it does lies in the scripts that it calls.
.DEFAULT_GOAL := help
.PHONY: help demo test guards simulate lint fmt servers servers-stop bench faults fuzz

SERVERS_ENV := .cache/servers.env

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Show the whole pipeline in one process, on generated groceries
	cargo run --release --locked -- demo

test: ## Run every test on real Kafka, registry, Postgres and Redis; installs, starts and stops them
	@system-tests/run

SEEDS ?= 10000

simulate: ## Run SEEDS=n seeds of the simulator: faults between any two steps, the invariants checked by id (FLAGS="…")
	cargo run --release --locked -p simulator -- --seeds $(SEEDS) $(FLAGS)

guards: ## Turn each guard off in turn and see the checker report what it is there for
	@system-tests/guards/run

lint: ## Check format and lints, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format the code
	cargo fmt --all

servers: ## Start a set of servers for tests by hand, and print its addresses
	@system-tests/servers/install
	@[ -e $(SERVERS_ENV) ] || system-tests/servers/start $(SERVERS_ENV)
	@cat $(SERVERS_ENV)

servers-stop: ## Stop that set and remove its data
	@system-tests/servers/stop $(SERVERS_ENV)

bench: ## Measure from acknowledged command to visible stock and search, in one process (BENCH="…" for its flags)
	@system-tests/bench $(BENCH)

faults: ## Inject every fault under load on real servers and check against an oracle (ONLY=7, EVENTS=100000, FAULTS="…" for its flags)
	@system-tests/faults/run $(if $(ONLY),--only $(ONLY)) $(if $(EVENTS),--events $(EVENTS)) $(FAULTS)

fuzz: ## Feed hostile input to every parser and decoder at an edge (INPUTS=1000000, TARGET=event-schema, FUZZ="…" for its flags)
	cargo run --release --locked -p fuzz -- $(if $(INPUTS),--inputs $(INPUTS)) $(if $(TARGET),--target $(TARGET)) $(FUZZ)
