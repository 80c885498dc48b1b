# Two commands for everybody: `make book` and `make test`. `make portable` is for whoever changes
# a notebook: its stored outputs must be those of every machine.
# Another interpreter: `make PYTHON=python3.13 book`.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard book/*.ipynb)
CHECK_PYTHON := import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this one is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.13")

# A kernel of tests/alone.py; the longest notebooks first, in several processes of one thread each.
CHECK = JUPYTER_PATH=$(CURDIR)/_build/alone OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-kernel-name=$(1) --nbval-sanitize-with=tests/nbval.cfg --numprocesses=auto --maxprocesses=4 --dist=loadfile --durations=10 _build/alone/*/*.ipynb

.PHONY: book alone test elsewhere portable execute lint bench clean
.DELETE_ON_ERROR:

# The site, from the outputs that the notebooks store: `make execute` makes them, `make test` checks
# them. A build that fails forgets what it parsed, so that its warnings come again.
book: .venv/installed _build/.look
	$(BIN)/jupyter-book build -n -W --keep-going . || { status=$$?; rm -rf _build/.doctrees; exit $$status; }
	@echo "Open $(CURDIR)/_build/html/index.html"

# Sphinx copies these only with a page that it writes, and every page has their checksums.
_build/.look: $(wildcard book/_static/* book/_static/*/* book/_root/* book/_ext/*.py)
	rm -rf _build/.doctrees
	@mkdir -p _build && touch $@

# Every notebook by itself in an empty folder, and an environment with the wheel to run it in.
alone: .venv/installed
	$(BIN)/python tests/alone.py _build/alone $(NOTEBOOKS)

# Every notebook against its stored outputs, and the package's tests.
test: book alone
	$(call CHECK,alone) tests

# The notebooks against the same outputs, under the instructions of another processor; `portable`
# also under this one's own with two threads.
elsewhere: alone
	$(call CHECK,elsewhere)

portable: elsewhere
	$(call CHECK,threads) --maxprocesses=1 # two threads each are enough for two cores

# Run the notebooks in place and store what they gave.
execute: .venv/installed
	$(BIN)/python book/execute.py $(NOTEBOOKS)

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/installed
	for script in benchmarks/*.py; do $(BIN)/python "$$script" || exit; done

clean:
	rm -rf _build build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache

.venv/installed: pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[book,test,bench,imagenet]'
	$(BIN)/python -m pip install --quiet --no-deps 'torchattacks>=3.5' # it pins an old requests
	@touch $@
