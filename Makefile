# `make help` lists all targets. The first call of a target creates the environment that it needs; later calls reuse it.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
LOCK_VENV := .venv-lock
SBOM_VENV := .venv-sbom
SBOMS := edge-cpu edge-gpu cloud-cpu cloud fleet-ray
AXE := .axe/package/axe.min.js
AXE_VERSION := 4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
CLIENT_VENV := .venv-client
EDGE_VENV = .venv-edge-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
PIP_FLAGS := -qq --disable-pip-version-check
PINS := pyproject.toml constraints.txt $(wildcard requirements/*.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo run test perf check lint types format lock lock-check docs dist protos bench fuzz simulate soak field abuse golden results notebook \
  test-full test-edge test-isa test-fleet test-hostile test-unauthenticated test-browser screenshots test-ops test-images test-compose test-quickstart test-quickstart-arm test-skipped clean \
  packages-browser packages-ops packages-fleet packages-field packages-isa packages-images packages-compose packages-quickstart packages-client

help: ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## create the full environment in .venv, for every command, training and tests

demo: $(DEMO_VENV)/.installed ## run both services on loopback, send examples/ through them, write out/demo/
	$(DEMO_VENV)/bin/python -m aeic_tools.demo --out out/demo examples

run: $(DEMO_VENV)/.installed ## run both services on loopback until Ctrl-C and print their addresses
	$(DEMO_VENV)/bin/python -m aeic_tools.demo --keep

test: install ## install everything and run all tests
	$(BIN)/python -m pytest

perf: install ## run the tests that assert durations (on an idle machine)
	$(BIN)/python -m pytest -m perf

test-skipped: install packages-browser packages-ops packages-fleet packages-field packages-client ## run what the last `make test` skipped, after installing Debian packages; a skip is a failure
	$(BIN)/python -m tests.support.skips

check: lint types ## run all static checks: style, imports, types, gRPC messages

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

types: install
	$(BIN)/mypy

format: install ## format the code and sort imports, in place
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lock: $(LOCK_VENV)/.installed ## write constraints.txt and requirements/ from pyproject.toml (UPGRADE=1: newest versions)
	$(LOCK_VENV)/bin/python requirements/lock.py --uv $(LOCK_VENV)/bin/uv $(if $(UPGRADE),--upgrade)

lock-check: $(LOCK_VENV)/.installed ## check that the lock files match pyproject.toml and that every extra resolves
	$(LOCK_VENV)/bin/python requirements/lock.py --uv $(LOCK_VENV)/bin/uv --check

docs: install ## build the documentation site in out/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: install $(SBOM_VENV)/.installed ## build the wheel, the source archive and bills of materials in dist/; check the former with twine
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	for name in $(SBOMS); do $(SBOM_VENV)/bin/cyclonedx-py requirements requirements/$$name.txt --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o dist/aeic-$$name.cdx.json || exit 1; done

protos: install ## generate the gRPC stubs in aeic/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=. protos/aeic/v1/*.proto

bench: install ## measure encode and decode times on examples/
	$(BIN)/aeic bench speed examples

SECONDS ?= 60
fuzz: install ## decode damaged frames for SECONDS; each must be refused or decode to the size in its header
	$(BIN)/python -m tests.aeic.bitstream.fuzz_bitstream --seconds $(SECONDS)

REQUESTS ?= 10000
test-hostile: install ## send REQUESTS hostile requests to the cloud; no 5xx, no leak, no access to other tenants
	$(BIN)/python -m tests.cloud.hostile --requests $(REQUESTS)

test-unauthenticated: install ## attack both services without a token, each way alone and all at once; legitimate clients are served in time
	$(BIN)/python -m tests.cloud.load_without_token

FRAMES ?= 2000
SCENARIOS ?= 1000
simulate: install ## run SCENARIOS scenarios of the edge's spool with faults at any I/O step, and of the cloud's store with stalls, kills, clock jumps
	$(BIN)/python -m tests.edge.spool.simulation --scenarios $(SCENARIOS)
	$(BIN)/python -m tests.cloud.store.simulation --scenarios $(SCENARIOS)

soak: install ## send FRAMES through edge and cloud with kills, cut links, stalls and a full disk; each must be stored once
	$(BIN)/python -m tests.edge.soak --frames $(FRAMES)

SECONDS_OF_FIELD ?= 600
field: install ## cameras, a watched folder and POSTs for ten minutes, with a dead camera and poisoned files; all others flow
	$(BIN)/python -m tests.edge.field --seconds $(SECONDS_OF_FIELD)

MUTATIONS ?= 1000
abuse: install ## send decompression bombs, slow and malformed requests, MUTATIONS of each picture to an edge; no 5xx, no memory growth
	$(BIN)/python -m tests.edge.abuse --mutations $(MUTATIONS)

golden: install ## add missing golden frames; an existing one that would change is an error
	$(BIN)/python -m tests.aeic.bitstream.make_golden

results: install ## draw the tables and plots of docs/results from the committed measurements
	$(BIN)/python -m aeic_train.studies.costs --draw --out docs/results
	$(BIN)/python -m aeic_train.reports.training_curves models/aeic-se-nano/training_log.jsonl
	$(BIN)/python -m aeic_train.reports.ablation_plots
	$(BIN)/python -m aeic_train.reports.evolution_plots
	$(BIN)/python -m aeic_train.reports.milestone_plots
	$(BIN)/python -m aeic_train.reports.rd_plots

notebook: install ## run docs/notebooks/look_inside.ipynb and write its page with the output
	$(BIN)/python docs/notebooks/run.py

test-full: install ## run the slow tests with a full-size conversion and training step (9 GB of memory); AEIC_GOLDENS: folder of golden vectors
	AEIC_FULL=$${AEIC_FULL:-se} $(BIN)/python -m pytest -m slow

test-edge: ## test the format, the edge and the client on PYTHON (3.11 to 3.14), in an environment without torch
	@$(MAKE) --no-print-directory $(EDGE_VENV)/.installed
	$(EDGE_VENV)/bin/python -m pytest tests/aeic tests/edge tests/client tests/tools/test_locks.py

test-fleet: install packages-fleet ## test a fleet with PostgreSQL and Ray under kills and rolling restarts of every part
	$(BIN)/python -m pytest tests/cloud tests/fleet
	$(BIN)/python -m tests.fleet.chaos --ray --frames 5000 --workers 3 --per-second 65
	$(BIN)/python -m tests.fleet.chaos --ray --frames 1500 --workers 2 --per-second 40 --rolling

test-isa: install packages-isa ## compare frames on x86 and emulated ARM64, bit for bit (root, minutes)
	$(BIN)/python -m tests.exact.isa

test-browser: install packages-browser ## test the cloud's page in headless Chromium
	$(BIN)/python -m pytest tests/browser -s

screenshots: install packages-browser ## take the pictures of both pages for docs/ with headless Chromium (a minute or two)
	$(BIN)/python -m tests.browser.screenshots

test-ops: install packages-ops ## test metrics with a real Prometheus; dashboards, rules, container files
	$(BIN)/python -m pytest tests/ops tests/cloud/test_ops.py tests/tools/test_deploy.py -s

test-images: packages-images ## build and run both images with buildah and send a picture through them (root, minutes)
	deploy/try_images.sh

test-compose: ## build and run docker-compose.yml with a Docker engine of its own; frames over a cloud restart (root, minutes)
	@reason="$$($(PYTHON) deploy/try_compose.py --probe)" || exit 1; \
	if [ -n "$$reason" ]; then echo "$$reason"; \
	else $(MAKE) --no-print-directory packages-compose && $(PYTHON) deploy/try_compose.py; fi

test-quickstart: ## follow the quickstart for x86 in a fresh Debian, from the first command to the first picture (root, minutes)
	@reason="$$($(PYTHON) deploy/try_quickstart.py --probe)" || exit 1; \
	if [ -n "$$reason" ]; then echo "$$reason"; \
	else $(MAKE) --no-print-directory packages-quickstart && $(PYTHON) deploy/try_quickstart.py; fi

test-quickstart-arm: install packages-isa ## follow the quickstart for the Raspberry Pi in an emulated Debian; the same frames as on x86 (root, minutes)
	$(BIN)/python deploy/try_quickstart.py --arm64

# Debian packages that these targets need. As root they are installed; otherwise the message names them.
packages-browser: $(AXE)
	@$(call debian,chromium,chromium fonts-dejavu-core)

packages-ops:
	@$(call debian,prometheus,prometheus)
	@$(call debian,docker-compose,docker-compose)
	@$(call debian,systemd-analyze,systemd)

packages-fleet:
	@$(call debian,/usr/lib/postgresql/*/bin/initdb,postgresql)
	@$(call debian,kubectl,kubernetes-client)

packages-field:
	@$(call debian,mosquitto,mosquitto)
	@$(call debian,/usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib,gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi)

# The generator needs an older typer than the commands of AEIC, so it has an environment of its own.
packages-client: $(CLIENT_VENV)/.installed
	@$(call debian,node,nodejs)

packages-isa:
	@$(call debian,qemu-x86_64,qemu-user)
	@$(call debian,qemu-aarch64-static,qemu-user-static)
	@$(call debian,debootstrap,debootstrap)
	@$(call debian,unzip,unzip)

packages-images:
	@$(call debian,buildah,buildah)
	@$(call debian,debootstrap,debootstrap)

packages-quickstart:
	@$(call debian,debootstrap,debootstrap)

packages-compose:
	@$(call debian,dockerd,docker.io iptables)
	@$(call debian,docker-compose,docker-compose)
	@$(call debian,prometheus,prometheus)
	@$(call debian,debootstrap,debootstrap)

clean: ## remove build outputs, but keep the environments
	rm -rf out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# An environment is created once, and updated when the pins change; it is never deleted. torch is installed by version,
# because a package index may offer its own build of it (for CPUs). Everything else is installed by hash.
$(VENV)/.installed: $(PINS)
	@$(call make-venv,$(VENV),12)
	@echo "installing everything into $(VENV); torch is large, so this takes some minutes"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch torchvision
	@$(call install,$(VENV),dev)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r requirements/metrics.txt
	@touch $@

$(DEMO_VENV)/.installed: $(PINS)
	@$(call make-venv,$(DEMO_VENV),14)
	@echo "installing the edge and the CPU cloud into $(DEMO_VENV) (no torch); this takes a minute or two"
	@$(call install,$(DEMO_VENV),edge-cpu cloud-cpu client)
	@touch $@

$(EDGE_VENV)/.installed: $(PINS)
	@$(call make-venv,$(EDGE_VENV),14)
	@$(call install,$(EDGE_VENV),test)
	@touch $@

# The accessibility checker of the browser tests. Without it, the tests that use it are skipped.
$(AXE):
	@if [ "$$(id -u)" = 0 ]; then $(call debian,npm,npm); fi; \
	if command -v npm >/dev/null; then \
	  echo "fetching axe-core $(AXE_VERSION)" && mkdir -p .axe && cd .axe && npm pack --silent axe-core@$(AXE_VERSION) && \
	  echo "$(AXE_SHA256)  axe-core-$(AXE_VERSION).tgz" | sha256sum --check --quiet && \
	  tar xzf axe-core-$(AXE_VERSION).tgz package/axe.min.js && touch package/axe.min.js; \
	else echo "npm is missing: the tests that use axe-core are skipped"; fi

$(CLIENT_VENV)/.installed: Makefile
	@$(call make-venv,$(CLIENT_VENV),14)
	@$(CLIENT_VENV)/bin/python -m pip install $(PIP_FLAGS) openapi-python-client==0.29.1
	@touch $@

# uv has its own environment, so that the lock files can be written before anything is installed from them.
$(LOCK_VENV)/.installed: constraints.txt
	@$(call make-venv,$(LOCK_VENV),14)
	@$(LOCK_VENV)/bin/python -m pip install $(PIP_FLAGS) "$$(grep -E '^uv==' constraints.txt || echo uv)"
	@touch $@

$(SBOM_VENV)/.installed: requirements/sbom.txt
	@$(call make-venv,$(SBOM_VENV),14)
	@$(SBOM_VENV)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements/sbom.txt
	@touch $@

# $(call install,VENV,LOCKS): install these lock files of requirements/, then this checkout in editable mode.
define install
	$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes $(foreach lock,build $(2),-r requirements/$(lock).txt) && \
	$(1)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
endef

# $(call debian,PROGRAM,PACKAGES): if the program is missing, install the packages as root, or fail and name them.
# PROGRAM may be a pattern of paths, for programs that are not on the PATH.
define debian
	if ! command -v $(1) >/dev/null && ! ls $(1) >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(2)"; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	  else echo "$(1) is missing: apt-get install $(2)"; exit 1; fi; \
	fi
endef

# $(call make-venv,VENV,NEWEST): create an empty environment with Python 3.11 to 3.NEWEST.
define make-venv
	if [ ! -x $(1)/bin/python ]; then \
	  $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, $(2)) else \
	    f"Python 3.11 to 3.$(2) is needed, $(PYTHON) is {v[0]}.{v[1]}: call make with PYTHON=/path/to/python3.$(2)")' && \
	  echo "creating $(1)" && $(PYTHON) -m venv $(1); \
	fi
endef
