# Two commands: `make train` and `make test`. Each sets up $(VENV) first, once, and again when setup.cfg or a constraint changes.
#   PYTHON=python3.11      another interpreter (3.11 or 3.12)        VENV=.venv311       another environment
#   PYTEST_ARGS="-k mlm"   passed to pytest                          TRAIN_ARGS="--config.train.steps=100"   passed to train.py

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
TRAIN_ARGS ?=
PINS := setup.cfg pyproject.toml $(wildcard constraints-py*.txt)

.PHONY: train test lint peers clean
.DELETE_ON_ERROR:

train: $(VENV)/.installed
	$(VENV)/bin/python train.py --config=configs/quickstart.py $(TRAIN_ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# Comparisons with transformers itself, which stays out of $(VENV): in an environment of its own.
peers: $(VENV)/.installed-dev .venv-peers/.installed
	TFM_PEERS_PYTHON=.venv-peers/bin/python $(VENV)/bin/python -m pytest -m peers $(PYTEST_ARGS)

.venv-peers/.installed:
	$(or $(PEERS_PYTHON),$(VENV)/bin/python) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
	  'torch>=2.13' 'transformers>=5.23' sentencepiece protobuf tiktoken
	@touch $@

clean:
	rm -rf .venv* build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The constraints file is the one of the environment's own Python version.
INSTALL = version=$$($(VENV)/bin/python -c 'import sys; print("%d%d" % sys.version_info[:2])') && \
  echo "Installing into $(VENV): some minutes the first time." && \
  $(VENV)/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
    --constraint constraints-py$$version.txt --editable

$(VENV)/.installed: $(PINS) | $(VENV)/bin/pip
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/bin/pip
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/.installed $@

# pip is the last thing that venv puts in place, so an interrupted set-up starts afresh.
# A name on the PATH may be a version manager's stub for nothing: only running it tells.
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
