# The book and its tests. Start with `make book`; `make help` lists the rest.
#
#   make book PYTHON=python3.12     choose the interpreter (3.11 or later) that makes .venv
#   make test JOBS=4                more processes than two for tests and notebooks
#   make notebooks ONLY="03 05"     re-execute some chapters, by number or by name
#
# Each step leaves a stamp (.venv/.installed, _build/.html) and is skipped until something it was made from changes.

PYTHON ?= python3
JOBS ?= 2
PORT ?= 8000
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := _build/html
BUILT := _build/.html

NOTEBOOKS := $(wildcard book/*.ipynb)
SOURCES := $(shell find src -name "*.py")
PAGES := _config.yml _toc.yml $(wildcard book/*.md book/*.bib book/_static/*) $(NOTEBOOKS)

# Stored outputs are compared with fresh ones, so both are made the same way: one thread a process (the order of
# floating-point sums depends on their number), Jupyter's own figures, this environment's kernel before a user's.
export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
unexport MPLBACKEND PYTHONPATH PYTHONHOME
# The tests start some hundred processes: without byte code each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install book test lint notebooks serve lock clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install the project with the exact versions of requirements.lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.11; choose another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock -e ".[book,test]"
	@touch $@

book: $(BUILT)  ## build the site in _build/html from the stored outputs
	@echo
	@echo "The book: open $(SITE)/index.html in a browser"
	@echo "          file://$(CURDIR)/$(SITE)/index.html"
	@echo "          or run: make serve"

# -n -W --keep-going: a broken reference or a notebook with an error is a failure, and all of them are listed.
# --all: a page is never left over from an earlier build. Source maps and the bundles of MathJax that no page loads
# are 20 MB of nothing.
$(BUILT): $(PAGES) $(SOURCES) $(INSTALLED)
	@rm -f $@
	$(BIN)/jupyter-book build . --all -n -W --keep-going
	@find $(SITE)/_static -name '*.map' -delete
	@find $(SITE)/_static/mathjax -maxdepth 1 -name '*.js' ! -name tex-chtml.js -delete
	@touch $@

# Offline and with an empty data folder, so that the result does not depend on what can be reached or was fetched
# before; nbval compares every notebook strictly. The tests of the site build it (--site), beside the others.
test: $(INSTALLED) lint  ## lint, unit tests, every notebook against its stored outputs, the site
	unset MIMETIC_RUNS; MIMETIC_OFFLINE=1 MIMETIC_DATA="$(CURDIR)/_build/no-data" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=10 \
	  --nbval --nbval-current-env --nbval-cell-timeout=300 --site tests $(NOTEBOOKS)
	@$(MAKE) --no-print-directory book

lint: $(INSTALLED)  ## style and format of src and tests, without changing anything
	$(BIN)/python -m ruff check --no-cache src tests
	$(BIN)/python -m ruff format --no-cache --check src tests

notebooks: $(INSTALLED)  ## execute all notebooks again and store their outputs (ONLY="03 05": some)
	$(BIN)/python -m mimetic.notebooks execute $(ONLY)

serve: $(BUILT)  ## serve the site at http://localhost:8000 (PORT=...)
	@echo "http://localhost:$(PORT)  (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

# From nothing, so that the lock holds what the ranges in pyproject.toml give today and nothing else. Run `make test` after it.
lock:  ## renew requirements.lock: the newest versions that pyproject.toml allows
	rm -rf $(VENV)
	@$(MAKE) --no-print-directory $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[book,test]"
	@{ echo "# Exact versions of everything the stored outputs were made with. Made by \`make lock\`; do not edit."; \
	   echo "# Used as constraints: pip install -c requirements.lock -e \".[book,test]\""; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+[^ ;]*//'; \
	 } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(INSTALLED)

clean:  ## remove the built site
	rm -rf _build

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
