# Short names for the commands of this repository; what they do is in the scripts.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
locked := \# Versions of what pyproject.toml leaves open, for pip install -c; made by make lock.
python := bash scripts/python.sh
.PHONY: help setup test fast attack types lint lock train clean

help: ## print these lines
	@sed -n 's/^\([a-z]*\): ## /make \1\t/p' Makefile | expand -t 14

setup: ## make .venv, unless the active environment has everything
	$(python) --version

test: ## every test, after ruff and mypy; ARGS="..." goes to pytest
	bash scripts/test.sh $(ARGS)

fast: ## the fast tests, likewise
	bash scripts/test.sh -m "not slow" $(ARGS)

attack: ## kills, damage, signals, faults and full disks, for hours
	bash scripts/test.sh -m attack $(ARGS)

types: ## mypy
	$(python) -m mypy

lint: ## what is looked at before each commit
	$(python) -m pre_commit run --all-files

lock: ## write requirements.lock anew from the installed packages
	$(python) -m pip freeze --all --exclude pip --exclude-editable | sed 's/+.*//' | \
	    grep -Ev '^(cuda|nvidia|triton)' | sed '1i $(locked)' > requirements.lock.new
	mv requirements.lock.new requirements.lock

train: ## train.sh; ARGS="--config.seed=1" goes to it
	bash train.sh $(ARGS)

clean: ## remove caches and builds; environments and runs stay
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find config rewards scripts srrl tests -name __pycache__ -prune -exec rm -r {} +
