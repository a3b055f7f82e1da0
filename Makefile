# Every target is a thin call; `make` alone lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help

ENGINE ?= vllm
PORT ?= 8080
MODEL ?=
INVENTORY ?=
CONCURRENCY ?= 8
DURATION ?= 60

BIN := .venv/bin
LLMCTL := $(BIN)/python -m daemons.llmctl
UP := $(LLMCTL) up --engine "$(ENGINE)" --port "$(PORT)" $(if $(MODEL),--model "$(MODEL)")
DAEMONS := .venv/.daemons
DEV := .venv/.dev

.PHONY: help up setup download vllm gateway gpu-exporter monitoring loadtest status stop \
	test lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(DAEMONS): requirements/daemons.txt pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv requirements/daemons.txt && touch $@

$(DEV): requirements/dev.txt pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv requirements/dev.txt && touch $(DAEMONS) $@

up: $(DAEMONS) ## run the whole stack here: engine, gateway, GPU exporter (ENGINE=vllm|simulator MODEL= PORT=)
	@$(UP)

setup: $(DAEMONS) ## install the daemons into .venv

vllm: $(DAEMONS) ## run only the engine
	@$(UP) engine

gateway: $(DAEMONS) ## run only the gateway
	@$(UP) gateway

gpu-exporter: $(DAEMONS) ## run only the GPU exporter
	@$(UP) gpu-exporter

status: $(DAEMONS) ## say what runs here and how it is
	@$(LLMCTL) status

stop: $(DAEMONS) ## end what this checkout started
	@$(LLMCTL) stop

test: $(DEV) ## run every test that can run on this machine
	@$(BIN)/python scripts/run_tests.py

lint: $(DEV) ## ruff, mypy, import-linter, yamllint, ansible-lint
	@sh scripts/lint.sh

lock: $(DEV) ## write the locks of requirements/ anew
	@sh requirements/lock.sh

clean: ## remove what the build made; keys, logs and models stay
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
