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
# As INV of docs/operations.md: a path from here, or from ansible/.
INVENTORY_PATH = $(firstword $(wildcard $(INVENTORY) ansible/$(INVENTORY)))
LLMCTL := $(BIN)/python -m daemons.llmctl
UP := $(LLMCTL) up --engine "$(ENGINE)" --port "$(PORT)" $(if $(MODEL),--model "$(MODEL)")
DAEMONS := .venv/.daemons
DEV := .venv/.dev
COMPILE := .venv/.compile

.PHONY: help up setup download vllm gateway gpu-exporter monitoring loadtest status stop \
	test lint e2e soak bench wheel mirror deploy rules pictures lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(DAEMONS): requirements/daemons.txt pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv requirements/daemons.txt && touch $@

$(DEV): requirements/dev.txt pyproject.toml scripts/venv.sh
	@sh scripts/venv.sh .venv requirements/dev.txt && touch $(DAEMONS) $@

# What compiles the gateway. Without it the release is slower and as good: no reason to fail.
$(COMPILE): requirements/compile.txt | $(DAEMONS)
	@if $(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/compile.txt; then touch $@; else \
		echo "make wheel: mypy could not be installed. Is the package index reachable (pip config list)?" >&2; fi

up: $(DAEMONS) ## run the whole stack here: engine, gateway, GPU exporter (ENGINE=vllm|simulator MODEL= PORT=)
	@$(UP)

setup: $(DAEMONS) ## install the daemons into .venv

vllm: $(DAEMONS) ## run only the engine
	@$(UP) engine

gateway: $(DAEMONS) ## run only the gateway
	@$(UP) gateway

gpu-exporter: $(DAEMONS) ## run only the GPU exporter
	@$(UP) gpu-exporter

loadtest: $(DAEMONS) ## load the stack that runs here (CONCURRENCY= DURATION= seconds)
	@test -s .llm/run/gateway.url || { echo "make loadtest: nothing was started here yet: make up first" >&2; exit 2; }
	@$(LLMCTL) loadtest --url "$$(cat .llm/run/gateway.url)" --key-file .llm/key --keys-dir .llm/keys.d \
		--concurrency $(CONCURRENCY) --duration $(DURATION)s

download: $(DAEMONS) ## fetch a model into .llm/models (MODEL=ORGANISATION/NAME)
	@test -n "$(MODEL)" || { echo "make download: say which: make download MODEL=ORGANISATION/NAME" >&2; exit 2; }
	@$(LLMCTL) download --models-dir .llm/models --config-dir .llm "$(MODEL)"

monitoring: $(DEV) ## Prometheus with every rule and alert on what make up runs (apt-get install prometheus)
	@$(BIN)/python -m observability.prometheus.local

wheel: $(DAEMONS) $(COMPILE) ## build the release that deploy installs into dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build --target wheel --directory dist

mirror: ## gather what a deployment downloads into DIR=
	@test -n "$(DIR)" || { echo "make mirror: say where: make mirror DIR=FOLDER" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(DEV)
	@$(BIN)/python ansible/tools/gather_mirror.py "$(DIR)"

bench: $(DEV) ## the gateway and the load tester beside their peers
	@$(BIN)/python tests/bench/gateway_side_by_side.py
	@$(BIN)/python tests/bench/loadtest_side_by_side.py
	@$(BIN)/python tests/bench/tenants_cost.py

deploy: ## deploy to the hosts of INVENTORY=
	@test -n "$(INVENTORY)" || { echo "make deploy: say where: make deploy INVENTORY=inventory/..." >&2; exit 2; }
	@test -n "$(INVENTORY_PATH)" || { echo "make deploy: there is no inventory $(INVENTORY), neither here nor below ansible/" >&2; exit 2; }
	@$(MAKE) --no-print-directory wheel
	@sh scripts/venv.sh .venv-deploy requirements/deploy.txt
	cd ansible && ../.venv-deploy/bin/ansible-playbook -i "$(abspath $(INVENTORY_PATH))" deploy.yml

status: $(DAEMONS) ## say what runs here and how it is
	@$(LLMCTL) status || true

stop: $(DAEMONS) ## end what this checkout started
	@$(LLMCTL) stop

test: $(DEV) ## run every test that can run on this machine
	@$(BIN)/python scripts/run_tests.py

lint: $(DEV) ## ruff, mypy, import-linter, yamllint, ansible-lint
	@sh scripts/lint.sh

e2e: $(DEV) ## deploy to booted systemd hosts on this machine (root)
	@$(BIN)/python -m pytest tests/e2e

soak: $(DEV) ## the tests that are long by design
	@$(BIN)/python -m pytest -m slow --timeout 7200 --ignore=tests/e2e

rules: $(DEV) ## render Prometheus' rules and build the dashboards anew
	@$(BIN)/python -m observability.prometheus.render
	@$(BIN)/python -m observability.grafana.build

pictures: $(DEV) ## draw the dashboards into docs/img from minutes of load on simulated engines
	@$(BIN)/python -m pytest -q tests/integration/observability/test_proof.py --pictures docs/img

lock: $(DEV) ## write the locks of requirements/ anew
	@sh requirements/lock.sh

clean: ## remove what the build made; keys, logs and models stay
	rm -rf .venv .venv-vllm .venv-deploy .venv-uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
