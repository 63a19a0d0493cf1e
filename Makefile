# `make` alone prints the targets. All of them work in .venv, which `make setup` builds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ORACLES := .venv-oracles
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist worksteal
# Where a container sets this, every process that a test starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup train check format test test-slow dropin gymnasium-tests test-gpu oracles learn mutants coverage bench bench-quick bench-save bench-compare bench-stepping solve clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP) ## Build .venv and install fastdqn with its development tools

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

train: $(STAMP) ## Train Double DQN on LunarLander-v3 until it is solved
	$(BIN)/fastdqn train --preset lunarlander $(ARGS)

check: $(STAMP) ## Format, lint, types and doors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP) ## Run the tests, JOBS at a time (2; about four minutes on two cores)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not learning and not cuda and not dropin and not oracle and not slow' $(ARGS)

test-slow: $(STAMP) ## Run the tests that take minutes: whole runs, everything compiled, the C under sanitizers
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow and not oracle' --timeout 900 $(ARGS)

dropin: $(STAMP) ## Compare GroupedVectorEnv with Gymnasium's AsyncVectorEnv, call by call
	$(BIN)/python -m pytest $(PARALLEL) -m dropin $(ARGS)

gymnasium-tests: $(STAMP) ## Run the tests of a clone of Gymnasium (GYMNASIUM=path) with GroupedVectorEnv
	$(BIN)/python -m tests.dropin $(GYMNASIUM) $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need a CUDA device; FASTDQN_REQUIRE_CUDA=1 fails without one
	$(BIN)/python -m pytest -m cuda --timeout 600 $(ARGS)

oracles: $(ORACLES)/.installed ## Compare with TorchRL, Stable-Baselines3 and sb3-contrib; in .venv-oracles, which it builds
	FASTDQN_REQUIRE_ORACLES=1 $(ORACLES)/bin/python -m pytest $(PARALLEL) -m oracle tests/peers --timeout 600 $(ARGS)
	FASTDQN_REQUIRE_ORACLES=1 $(ORACLES)/bin/python -m tests.mutants.peers

$(ORACLES)/.installed: pyproject.toml
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --upgrade pip
	$(ORACLES)/bin/python -m pip install --quiet --editable '.[oracles]'
	@touch $@

learn: $(STAMP) ## Run the learning tests: both presets, from nothing to solved
	$(BIN)/python -m pytest -m learning --timeout 900 $(ARGS)

mutants: $(STAMP) ## Plant named bugs and see that each turns a test red
	$(BIN)/python -m tests.mutants

coverage: $(STAMP) ## Run the tests with branch coverage
	$(BIN)/coverage run -m pytest -m 'not learning and not cuda and not oracle and not slow' -q
	$(BIN)/coverage report

bench: $(STAMP) ## Time everything: the parts, stepping, tensor environments, all guarded ratios
	$(BIN)/python -m pytest benchmarks -q -o addopts= --benchmark-only --benchmark-columns=median,iqr,ops,rounds
	$(BIN)/python -m benchmarks.studies.stepping --quick
	$(BIN)/python -m benchmarks.studies.tensor_cartpole
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(STAMP) ## Measure the guarded ratios of LunarLander-v3 and of one update, within three minutes
	$(BIN)/python -m benchmarks --quick $(ARGS)

bench-save: $(STAMP) ## Measure all guarded ratios and write them to benchmarks/results/NAME.md and .json
	$(BIN)/python -m benchmarks --save $(or $(NAME),$(error Say where to: make bench-save NAME=x)) $(ARGS)

bench-compare: $(STAMP) ## Measure again; fail where a ratio is 10 % worse than in BASE (the newest saved)
	$(BIN)/python -m benchmarks --compare $(if $(BASE),--base $(BASE)) $(ARGS)

bench-stepping: $(STAMP) ## Time stepping alone, 1 to 256 environments; written to NAME.md and .json if given
	$(BIN)/python -m benchmarks.studies.stepping $(if $(NAME),--save $(NAME)) $(ARGS)

solve: $(STAMP) ## Train PRESET (lunarlander) with ten seeds, caches cold (ARGS=--warm), and print how long each took
	$(BIN)/python -m benchmarks.studies.solve --preset $(or $(PRESET),lunarlander) $(ARGS)

clean: ## Delete .venv, .venv-oracles and all caches; runs/ stays
	rm -rf $(VENV) $(ORACLES) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
