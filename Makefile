# Targets work on a machine that has Python 3.11 or later and make; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
BOOK_STAMP := .venv/.stamp-book
BROWSER_STAMP := .venv/.stamp-browser
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SANITIZE := $(addprefix --nbval-sanitize-with ,$(wildcard notebooks/*.cfg))
ARGS ?=
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)  # a container's only user; Jupyter refuses it otherwise

unexport MPLBACKEND  # a notebook shows its figures by Jupyter's own backend; another one shows none

.DEFAULT_GOAL := help
.PHONY: help setup lab train test lint format plots small-model run-notebooks book test-browser

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with all that the course needs (PYTHON=python3.12 chooses another Python)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "minillm needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	        "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch  # first and pinned: what pip would choose by itself may be a build of several gigabytes
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

lab: $(STAMP) ## Open the course in JupyterLab (ARGS=--no-browser and the like are passed on)
	$(BIN)/jupyter lab notebooks/00_tour.ipynb --LabApp.default_url=/lab/tree/00_tour.ipynb $(ALLOW_ROOT) $(ARGS)

train: $(STAMP) ## Train the small model on Shakespeare in about three minutes (ARGS='--steps 200 …' are passed on)
	$(BIN)/minillm train --preset nano $(ARGS)

test: $(STAMP) ## Run all tests and compare all notebooks with their outputs
	$(BIN)/python -m pytest --nbval $(SANITIZE) tests minillm notebooks $(ARGS)

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## Put style and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

plots: $(STAMP) ## Draw docs/images/loss.png from the best finished run
	$(BIN)/minillm plot --to docs/images/loss.png $(ARGS)

small-model: $(STAMP) ## Make data/models/nano, which travels in the wheel, from the best finished run
	$(BIN)/minillm export --to data/models/nano --replace $(ARGS)

run-notebooks: $(STAMP) ## Run the notebooks and keep what they show (ARGS=notebooks/05_attention.ipynb runs one)
	$(BIN)/python -m minillm.course.run_notebooks $(ARGS)

book: $(BOOK_STAMP) ## Build the book from the notebooks as they are: book/_build/html/index.html
	$(BIN)/jupyter-book build . --config book/_config.yml --toc book/_toc.yml --path-output book \
	    -W -n --keep-going --all $(ARGS)

test-browser: book $(BROWSER_STAMP) ## Look at the book and at JupyterLab with a real browser (needs Chromium)
	$(BIN)/python -m pytest -rs tests_browser

$(BOOK_STAMP): $(STAMP) book/constraints.txt
	$(PIP_INSTALL:constraints.txt=book/constraints.txt) -e '.[book]'
	@touch $@

$(BROWSER_STAMP): $(STAMP) book/constraints.txt
	$(PIP_INSTALL:constraints.txt=book/constraints.txt) -e '.[browser]'
	@touch $@
