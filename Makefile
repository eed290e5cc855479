# Two commands are enough: `make demo` and `make test`. Both install on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY ?= PASSIVE
# Tests start Python dozens of times: each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs test test-services test-whole test-min check clean install

demo: $(STAMP)
	$(BIN)/vlre demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# Servers and clusters, each started by its own tests on this machine. Only files that have some
# are read: to collect all the others takes longer than the half of these.
test-services: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m service $$(grep -l mark.service tests/test_*.py)

# The tour, examples/ and CONTRIBUTING's, recipes, studies, benchmarks/ from end to end, and the site of docs/: four minutes.
test-whole: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m whole

# The lowest releases that pyproject.toml allows, in an environment of their own (1.6 GB), and the tests
# that a library could break: five minutes, too long for every change, so CI does not run it.
MIN := .venv-min
MIN_TESTS := plain text_tower golden_blip golden_blip2 store sources sources_tables index_backends \
  index_recipes search heads filters clip siglip completion cold_start

test-min:
	test -x $(MIN)/bin/python || $(PYTHON) -m venv $(MIN)
	torch=$$(grep '^torch==' constraints.txt) && \
	  $(MIN)/bin/pip install --quiet --disable-pip-version-check -c constraints-min.txt "$$torch" httpx \
	  -e '.[cpu,data,plots,serve,siglip,watch,testing]'
	$(MIN)/bin/pip check
	$(MIN)/bin/python -m pytest -q $(MIN_TESTS:%=tests/test_%.py)

# Offline; a link that leads nowhere is an error. To read: python -m http.server -b 127.0.0.1 -d build/site
docs: $(STAMP)
	$(BIN)/python docs/site_pages.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vlre and what it needs into $(VENV) (about three minutes, 2.6 GB)" >&2
	@PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) $(MIN) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist demo embeddings indices/built
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
