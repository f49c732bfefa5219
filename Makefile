# Headrace. `make help` explains every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ONCE ?=
DATA ?=
ARGS ?=
UNIT_TESTS := tests/unit tests/contract -m "not integration and not container"

.PHONY: help setup protos format check test test-unit coverage test-integration cases demo kernels up down clean
.PHONY: bench bench-quality bench-decode bench-ranker bench-serving bench-memory bench-kernels bench-trends bench-quick

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | while IFS=$$'\t' read -r target text; do printf '  make %-18s %s\n' "$$target" "$$text"; done

setup: $(STAMP) ## Make .venv and install Headrace with its pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing what Headrace needs into .venv: two to four minutes, in which pip says nothing"
	@$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	@echo "Compiling the kernels, once: a minute or two"
	@$(BIN)/python -m models.compilation.precompile
	@touch $@

protos: setup ## Generate the typed Python stubs from protos/headrace/v1/*.proto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m protos.generate

format: setup ## Format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup ## Lint, types, import rules, buf lint, and whether generated code is up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m protos.generate --check

test: coverage ## All tests: unit (with coverage), integration on the embedded broker, and on Apache Kafka in a container
	deploy/with-test-tools $(BIN)/pytest -m "integration or container"

test-unit: setup ## The unit tests and the contracts of interfaces: no network, no broker
	$(BIN)/pytest $(UNIT_TESTS)

coverage: setup ## As test-unit, and which lines are missed; fails below the floor in pyproject.toml
	$(BIN)/pytest $(UNIT_TESTS) --cov

test-integration: setup ## Integration tests on the embedded broker only
	$(BIN)/pytest -m "integration and not container"

cases: setup ## Situations that went wrong once, on real brokers: one table with the outcome of each
	deploy/with-test-tools $(BIN)/pytest --cases

demo: setup ## The whole river on real data; ONCE=1 ends after the tour, DATA=folder brings your own data
	$(BIN)/headrace demo $(if $(ONCE),--once) $(if $(DATA),--data $(DATA))

bench: bench-quality bench-decode bench-ranker bench-serving bench-memory bench-trends ## Every benchmark that needs no GPU: results, plots and the tables of the documents

bench-quality: setup ## Accuracy beside popularity, SASRec and TIGER, and the ablations; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_quality.py $(ARGS)

bench-decode: setup ## Decoding speed beside Hugging Face generate and plain torch, and its floor; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_decode.py $(ARGS)

bench-ranker: setup ## The ranker's accuracy and cost beside target attention; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_ranker.py $(ARGS)

bench-serving: setup ## Latency and throughput of all services together; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_serving.py $(ARGS)

bench-memory: setup ## Memory and idle CPU of each process of a running stack; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_memory.py $(ARGS)

bench-kernels: setup ## The Triton kernels beside torch and torch.compile, on a GPU; ARGS=--quick
	$(BIN)/python tests/benchmarks/bench_kernels.py $(ARGS)

bench-trends: setup ## The trends worker on both brokers, as JSON on standard output
	$(BIN)/python tests/benchmarks/bench_trends.py --broker embedded
	deploy/with-test-tools $(BIN)/python tests/benchmarks/bench_trends.py --broker container

bench-quick: setup ## Whether the benchmarks run and their numbers are finite; says nothing of speed
	$(MAKE) bench-quality ARGS=--quick
	$(MAKE) bench-decode ARGS=--quick
	$(MAKE) bench-ranker ARGS=--quick
	$(MAKE) bench-serving ARGS=--quick
	$(MAKE) bench-memory ARGS=--quick

kernels: setup ## Compile the GPU kernels (no GPU needed) and report registers, spills and shared memory
	$(BIN)/python -m models.compilation.compile --output tests/benchmarks/results/kernels.json

up: setup ## Start the embedded broker and every service on loopback; Ctrl-C (or `make down`) stops all
	$(BIN)/headrace up

down: ## Stop what `make up` started
	@pid=$$(cat .headrace/up.pid 2>/dev/null) && ps -o args= -p "$$pid" | grep -q headrace \
		&& kill -TERM "$$pid" && echo "stopping" || echo "nothing is up"

clean: ## Remove the environment and all local state
	rm -rf .venv .headrace *.egg-info
