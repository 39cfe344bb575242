# make run and make test do all the set-up a fresh machine needs: Python 3.11 or later, make, a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= auto

.PHONY: run test lint format bench bench-gpu bench-peers train-shapes evaluate-shapes test-e2e test-zoo fuzz soak lock audit sbom image clean

run: $(VENV)/.serving  ## create the environment and serve the embedded model
	$(BIN)/clipserve serve

test: $(VENV)/.developing lint  ## lint, types, import rules and the fast tests
	$(BIN)/pytest -n $(WORKERS) -m "not e2e and not zoo and not soak and not fuzz"

lint: $(VENV)/.developing  ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.developing  ## let ruff put the code in order
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

test-e2e: $(VENV)/.developing  ## the long end-to-end tests
	$(BIN)/pytest -m e2e

test-zoo: $(VENV)/.developing  ## export every architecture of docs/zoo.md and write that table anew (hours)
	$(BIN)/pytest -m zoo

fuzz: $(VENV)/.developing  ## tens of thousands of broken requests and pictures (about 10 minutes)
	$(PIP) --editable '.[cpu,export,dev,fuzz]'
	$(BIN)/pytest -n $(WORKERS) --hypothesis-profile=fuzz tests/fuzz

soak: $(VENV)/.developing  ## overload, and 200,000 requests with their answers checked (about 12 minutes)
	$(BIN)/pytest -m soak -rP

bench: $(VENV)/.developing  ## measure; results go to benchmarks/results
	$(BIN)/python -m benchmarks.run

bench-gpu:  ## measure on an NVIDIA GPU, in under 8 minutes; TINY=1: on the CPU, to see that it runs
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu.run $(if $(TINY),--tiny)

bench-peers: $(VENV)/.developing  ## the same beside other servers, each in an environment of its own (an hour)
	$(BIN)/python -m benchmarks.peers.run

train-shapes: $(VENV)/.developing  ## train, export and evaluate the embedded model (about 20 minutes on 4 cores)
	$(BIN)/python -m models.shapes.train

evaluate-shapes: $(VENV)/.developing  ## measure the embedded model and write its model card's figures anew
	$(BIN)/python -m models.shapes.evaluate

image:  ## build the CPU image on a bare Debian with buildah and try it (as root; see docs/docker.md)
	docker/build-and-try.sh

lock: $(VENV)/.developing  ## pin all that any extra needs; to have a version chosen anew, take its line out first
	$(BIN)/pip install --quiet --dry-run --ignore-installed --report - --constraint constraints.txt \
	    '.[cpu,gpu,tensorrt,redis,otel,bulk,export,fuzz,dev]' > constraints.json
	$(BIN)/python docker/pins.py < constraints.json > constraints.txt
	rm constraints.json

audit: $(VENV)/.developing  ## look for known vulnerabilities in what is pinned
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

sbom: $(VENV)/.developing  ## write sbom.cdx.json: what serving is made of, with versions and licences
	$(BIN)/python docker/sbom.py cpu redis otel > sbom.cdx.json

clean:  ## remove the environment and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serving: $(BIN)/pip pyproject.toml constraints.txt
	$(PIP) --editable '.[cpu,bulk]'
	touch $@

$(VENV)/.developing: $(BIN)/pip pyproject.toml constraints.txt
	$(PIP) --editable '.[cpu,export,dev]'
	touch $@ $(VENV)/.serving
