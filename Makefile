# Two commands to begin with: `make demo` and `make test`. Both make the environment they need.

PYTHON ?= python3
BIN := .venv/bin
ROUNDS ?= 50
MINUTES ?= 120
SEED ?= 1
BOARD ?= yes

.DEFAULT_GOAL := help
.PHONY: help demo test test-stack test-failed test-chaos bench-quick lint clean

help: ## Say what there is.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/installed ## Run the main job over simulated events, check every document, show them (BOARD=no: don't).
	$(BIN)/velocity demo $(if $(filter no,$(BOARD)),--no-board)

test: lint ## Run ruff, mypy and all tests that need no server.
	$(BIN)/python -m pytest -q -n 2 -m "not stack and not chaos"

# The servers live for minutes, in which the optimising compiler would take much of the processors.
test-stack: .venv/installed ## Run the tests on real servers: needs a JDK 17 (and 21 or later), Maven.
	JDK_JAVA_OPTIONS=-XX:TieredStopAtLevel=1 $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder --durations 25 -m stack

test-failed: .venv/installed ## Run again only what failed last time.
	$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none -m "not chaos"

test-chaos: .venv/installed ## Kill, pause and cut for ROUNDS rounds, or MINUTES; SEED says which.
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_MINUTES=$(MINUTES) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -q -s -m chaos

bench-quick: .venv/installed ## Compare Velocity on Flink with a bare loop, and with what was recorded: two minutes.
	$(BIN)/python benchmarks/speed --systems floor,flink --events 1000000 --guard benchmarks/speed/ratios.json

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove the environment and what the demo wrote.
	rm -rf .venv demo build *.egg-info

# constraints.txt pins every package: the same environment today and next year.
.venv/installed: pyproject.toml setup.py constraints.txt io/kafka_native.c transforms/json_native.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@
