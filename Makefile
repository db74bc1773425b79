# Everything that this project does, by name. `make run` and `make test` need Python 3.11 or newer and nothing else.
#
#   make run                          rehearse the whole journey on this machine
#   make run ARGS="-p epochs 20"      the same with other parameters of the notebook
#   make run NOTEBOOK=notebooks/01_training.ipynb
#   make run NOTEBOOK=notebooks/05_autoscaling.ipynb SPEED=20     with CloudWatch's clock at 20 times the wall's
#   make test                         lint, then every test
#   make lab                          JupyterLab with a rehearsal around it
#   make bench                        every benchmark

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
NOTEBOOK ?= train_and_deploy.ipynb
SPEED  ?= 1

# Notebooks that wait for CloudWatch have a parameter that says how fast its clock runs.
CLOCK = $(if $(filter-out 1,$(SPEED)),$(shell grep -q '"speed: float' $(NOTEBOOK) && echo -p speed $(SPEED)))

.PHONY: run test lab bench lint clean help

run: $(READY)
	@$(BIN)/python -m opslib.rehearsal run --speed $(SPEED) -- $(BIN)/python -m opslib run $(NOTEBOOK) $(CLOCK) $(ARGS)

test: lint
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lab: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m opslib.rehearsal run --speed $(SPEED) -- $(BIN)/jupyter lab train_and_deploy.ipynb $(ARGS)

bench: $(READY)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS) || exit 1; done

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

help:
	@sed -n 's/^#  *make /make /p' Makefile

clean:
	rm -rf $(VENV) runs photos build .pytest_cache .ruff_cache *.egg-info

# One environment for all of it, made once; the stamp is written last, so an interrupted install starts over.
$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@test ! -e /etc/debian_version || $(PYTHON) -c 'import ensurepip' || { echo 'apt-get install python3-venv'; exit 1; }
	@echo "making $(VENV) (once; about 4 minutes and 7 GB, most of it torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
