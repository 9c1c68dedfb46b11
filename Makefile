# The commands of this project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
SERVE_VENV := .venv-serve

# onnxruntime-gpu if nvidia-smi finds a GPU (Linux, x86-64), otherwise onnxruntime; RUNTIME=cpu or RUNTIME=gpu overrides it.
HAS_GPU := $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && nvidia-smi -L >/dev/null 2>&1 && echo yes)
RUNTIME ?= $(if $(HAS_GPU),gpu,cpu)
# Without a GPU, one fixed version of torch, so that pip does not resolve to another one with gigabytes of CUDA.
TORCH ?= $(if $(filter gpu,$(RUNTIME)),torch>=2.6,torch==2.13.0)

SERVER_REQUIREMENTS := server/requirements.txt server/requirements-$(RUNTIME).txt
REQUIREMENTS := $(SERVER_REQUIREMENTS) training/requirements.txt tests/requirements.txt
DOCS_REQUIREMENTS := docs/requirements.txt
PIP_INSTALL := bin/python -m pip install --quiet --disable-pip-version-check

DEMO ?= runs/demo
DEMO_BUNDLE ?= $(DEMO)/bundle

.PHONY: help install serve demo docs test test-quick kills check format load soak fuzz attack replicas vendor screenshots release lock clean

help:
	@echo "make serve       serve the twins of exported_models/ on http://127.0.0.1:3000"
	@echo "make demo        simulate, train an ensemble, evaluate, export, serve, predict (about 10 minutes)"
	@echo "make install     prepare $(VENV) for development"
	@echo "make test        run all tests; make test-quick: without the slow ones"
	@echo "make kills       kill a training run at 20 random moments, resume it, and compare it with an uninterrupted run"
	@echo "make docs        build the documentation site in build/docs; executes the notebooks (about 3 minutes)"
	@echo "make check       run ruff, mypy and import-linter"
	@echo "make format      format the code"
	@echo "make load        load, overload, kill, drain, swap and bad files of a live server (about 12 minutes)"
	@echo "make soak        run good and bad requests for 15 minutes, and measure the worker's memory"
	@echo "make fuzz        send up to 10,000 broken requests to a live server (about 2 minutes)"
	@echo "make attack      attack a live server in every way that needs no key (about 5 minutes)"
	@echo "make replicas    kill, drain, hang and roll out three servers behind HAProxy (about 5 minutes)"
	@echo "make vendor      fetch the explorer's libraries, as its packages.json pins them (needs node and npm)"
	@echo "make screenshots take the docs' pictures of the explorer again"
	@echo "make release     build the client's wheel, the server's wheel and the bento in dist, from the last commit"
	@echo "make lock        resolve the versions of the container images again (needs uv)"
	@echo "make clean       remove the environments, builds and caches"

install: $(VENV)/.installed

$(VENV)/.installed: $(REQUIREMENTS) clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) ($(RUNTIME)): some minutes the first time"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/$(PIP_INSTALL) "$(TORCH)"
	@$(VENV)/$(PIP_INSTALL) "$(TORCH)" $(addprefix -r ,$(REQUIREMENTS)) --editable "clients/python[insilico]"
	@touch $@

$(SERVE_VENV)/.installed: $(SERVER_REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "installing into $(SERVE_VENV) ($(RUNTIME)): about a minute the first time"
	@test -x $(SERVE_VENV)/bin/python || $(PYTHON) -m venv $(SERVE_VENV)
	@$(SERVE_VENV)/$(PIP_INSTALL) $(addprefix -r ,$(SERVER_REQUIREMENTS))
	@touch $@

serve: $(SERVE_VENV)/.installed
	@$(SERVE_VENV)/bin/bentoml serve $(SERVE_ARGS)

demo: $(VENV)/.installed
	@PYTHON=$(VENV)/bin/python DEMO=$(DEMO) DEMO_BUNDLE=$(DEMO_BUNDLE) bash docs/demo.sh

$(VENV)/.docs-installed: $(VENV)/.installed $(DOCS_REQUIREMENTS)
	@$(VENV)/$(PIP_INSTALL) -r $(DOCS_REQUIREMENTS)
	@touch $@

docs: $(VENV)/.docs-installed
	@$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs build/docs
	@echo "open build/docs/index.html"

test: $(VENV)/.docs-installed
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-quick: $(VENV)/.docs-installed
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

kills: $(VENV)/.installed
	@PYTHONPATH=.:tests $(VENV)/bin/python -m reliability.training_kills $(ARGS)

check: $(VENV)/.installed
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@PYTHONPATH=. $(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.installed
	@$(VENV)/bin/ruff check --fix --quiet . ; $(VENV)/bin/ruff format .

soak fuzz load attack replicas: $(VENV)/.installed
	@OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(VENV)/bin/python -m reliability $@ $(ARGS)

screenshots: $(VENV)/.installed
	@SCREENSHOTS=1 $(VENV)/bin/python -m pytest -q tests/server/explorer/test_accessibility.py -k screenshots

vendor:
	@node server/explorer/vendor/fetch.mjs

release: $(VENV)/.installed
	@$(VENV)/bin/python deploy/release.py $(ARGS)

# The Python and the platform of deploy/container/Containerfile.
lock:
	@for runtime in cpu gpu; do uv pip compile --quiet --upgrade --python-version 3.11 \
	    --python-platform x86_64-unknown-linux-gnu --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    server/requirements.txt server/requirements-$$runtime.txt -o deploy/container/requirements-$$runtime.txt; done

clean:
	rm -rf $(VENV) $(SERVE_VENV) build dist .pytest_cache .mypy_cache .ruff_cache
