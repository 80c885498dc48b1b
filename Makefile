# Two commands for everybody: `make book` and `make test`.
# Another interpreter: `make PYTHON=python3.13 book`.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard book/*.ipynb)
CHECK_PYTHON := import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this one is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.13")

.PHONY: book test execute lint bench clean
.DELETE_ON_ERROR:

# The site, from the outputs that the notebooks store: `make execute` makes them, `make test` checks
# them. A build that fails forgets what it parsed, so that its warnings come again.
book: .venv/installed
	$(BIN)/jupyter-book build -n -W --keep-going . || { status=$$?; rm -rf _build/.doctrees; exit $$status; }
	@echo "Open $(CURDIR)/_build/html/index.html"

# Every notebook, alone in an empty folder with the wheel, against its stored outputs; the package's
# tests. The longest first, in several processes of one thread each.
test: book
	$(BIN)/python tests/alone.py _build/alone $(NOTEBOOKS)
	OMP_NUM_THREADS=1 JUPYTER_PATH=$(CURDIR)/_build/alone $(BIN)/python -m pytest _build/alone/*/*.ipynb tests --nbval --nbval-kernel-name=alone --nbval-sanitize-with=tests/nbval.cfg --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=10

# Run the notebooks in place and store what they gave.
execute: .venv/installed
	$(BIN)/python book/execute.py $(NOTEBOOKS)

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: .venv/installed
	for script in benchmarks/*.py; do $(BIN)/python "$$script" || exit; done

clean:
	rm -rf _build build dist *.egg-info .pytest_cache .hypothesis .ruff_cache

.venv/installed: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[book,test,bench]'
	$(BIN)/python -m pip install --quiet --no-deps 'torchattacks>=3.5' # it pins an old requests
	@touch $@
