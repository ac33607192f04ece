# All targets but `clean` first set up $(VENV): once, and again when setup.cfg or a constraint changes.
#   PYTHON=python3.11      another interpreter (3.11 or 3.12)        VENV=.venv311       another environment
#   PYTEST_ARGS="-k mlm"   passed to pytest; those marked slow come by PYTEST_ARGS='-m "slow or not slow"'
#   JOBS=2                 processes that share the tests            TRAIN_ARGS="--config.train.steps=100"   passed to train.py
#   JUPYTER_ARGS="--no-browser --port=8888"   passed to jupyter lab

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
JOBS ?= 2
TRAIN_ARGS ?=
JUPYTER_ARGS ?=
PINS := setup.cfg pyproject.toml $(wildcard constraints-py*.txt)

.PHONY: help install train test notebooks lint peers clean
.DELETE_ON_ERROR:

help:
	@echo 'make install     sets up $(VENV), and does nothing else'
	@echo 'make train       sets up $(VENV), then trains configs/quickstart.py'
	@echo 'make test        sets up $(VENV), then runs the tests'
	@echo 'make notebooks   sets up $(VENV), then opens the notebooks'
	@echo 'make lint        runs ruff, mypy and import-linter'
	@echo 'make peers       tests against torch and transformers, in an environment of their own'
	@echo 'make clean       removes the environments and caches'
	@echo 'The first lines of the Makefile list the variables, such as PYTHON=python3.11.'

install: $(VENV)/.installed

train: $(VENV)/.installed
	$(VENV)/bin/python train.py --config=configs/quickstart.py $(TRAIN_ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(PYTEST_ARGS)

notebooks: $(VENV)/.installed-notebooks
	$(VENV)/bin/jupyter lab --notebook-dir=notebooks $(JUPYTER_ARGS)

lint: $(VENV)/.installed-dev
	@status=0; \
	for linter in 'ruff check .' 'ruff format --check .' mypy 'lint-imports --no-logo'; do \
	  echo "$$linter"; $(VENV)/bin/$$linter || status=1; \
	done; \
	exit $$status

# Tests against torch and transformers, which have an environment of their own and stay out of $(VENV).
peers: $(VENV)/.installed-dev .venv-peers/.installed
	TFM_PEERS_PYTHON=.venv-peers/bin/python $(VENV)/bin/python -m pytest -m peers $(PYTEST_ARGS)

.venv-peers/.installed:
	$(or $(PEERS_PYTHON),$(VENV)/bin/python) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
	  --requirement benchmarks/requirements-peers.txt
	@touch $@

clean:
	rm -rf .venv* build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Installs the package with the constraints of the environment's Python version. -qq: errors, without pip's own notices.
INSTALL = version=$$($(VENV)/bin/python -c 'import sys; print("%d%d" % sys.version_info[:2])') && \
  echo "Installing into $(VENV): some minutes the first time." && \
  $(VENV)/bin/python -m pip install -qq --no-input --disable-pip-version-check \
    --constraint constraints-py$$version.txt --editable

$(VENV)/.installed: $(PINS) | $(VENV)/bin/pip
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/bin/pip
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-notebooks: $(PINS) | $(VENV)/bin/pip
	@$(INSTALL) '.[notebooks]'
	@touch $(VENV)/.installed $@

# venv creates pip last, so an interrupted set-up starts again from nothing.
# A Python on the PATH may be a version manager's stub without a Python behind it, so each candidate is run.
SUPPORTED = -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
$(VENV)/bin/pip:
	@for python in $(or $(PYTHON),python3.12 python3.11 python3); do \
	  if $$python $(SUPPORTED); then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: no Python 3.11 or 3.12 among: $(or $(PYTHON),python3.12 python3.11 python3)." \
	    "Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	  version=$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "make: $$found lacks its venv module. On Debian: apt install python$$version-venv" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version)."; \
	$$found -m venv --clear $(VENV)
