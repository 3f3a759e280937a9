"""The batch: one executed notebook per (notebook, model, seed) of a profile, then its table
and figures. `make reproduce` calls it. By hand, or on a cluster with an executor plugin:

    python -m unlearn_lib check --profile paper
    python -m snakemake --cores 4 --config profile=paper

`check` opens all that the profile names and writes its digests to `inputs.json`, on which every
rule depends: what has changed is told by content and not by time.

Snakemake decides which notebooks to execute. What they compute comes back from the run store
under results/<profile>/runs when nothing that it depends on has changed, so executing a
notebook again is cheap, and so is going on after a kill.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from unlearn_lib.profile import load_profile
from unlearn_lib.stored import NOTEBOOKS, notebook_jobs
from unlearn_lib.util import file_sha256

PROFILE = config.get("profile", "laptop")
BOOK = config.get("book") or os.environ.get("BOOK") or None
SEEDS = config.get("seeds") or os.environ.get("SEEDS") or None
LOADED = load_profile(PROFILE, BOOK, SEEDS and int(SEEDS))
CHOSEN = f"--profile {shlex.quote(PROFILE)}" + (f" --book {shlex.quote(BOOK)}" if BOOK else "")
CHOSEN += f" --seeds {SEEDS}" if SEEDS else ""
RESULTS = f"results/{LOADED.name}"
ITEMS = f"{RESULTS}/items.parquet"
RUN = f"{shlex.quote(sys.executable)} -m unlearn_lib"
INPUTS = f"{RESULTS}/inputs.json"

# A job alone has every core of the machine, jobs side by side share them, and what the user set
# holds. Memory of tensors stays with the process (glibc), which would else ask for it anew at
# every step.
HIDE = 'sed -e "s|$PWD|.|g" -e "s|$HOME|~|g"'
CORES = workflow.cores or 1
os.environ.setdefault("UNLEARN_BATCH", str(os.getpid()))  # notebooks end when this process does
shell.prefix(
    "set -euo pipefail; export PYTHONUNBUFFERED=1 MALLOC_TOP_PAD_=268435456 "
    "MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296; unset GOTO_NUM_THREADS "
    "OPENBLAS_NUM_THREADS MKL_NUM_THREADS VECLIB_MAXIMUM_THREADS NUMEXPR_NUM_THREADS; "
)


JOBS = {job.name: job for job in notebook_jobs(LOADED)}
COMPUTING = [name for name, job in JOBS.items() if job.model is not None]
LAST = list(NOTEBOOKS)[-1]


def arguments(wildcards):
    job = JOBS[wildcards.job]
    chosen = "" if job.model is None else f" --model {shlex.quote(job.model)} --seed {job.seed}"
    return f"{job.notebook} {CHOSEN}{chosen}"


def built_on(wildcards):
    """Notebook 03 guards the models of 02 and 04: theirs come first.

    Notebooks without a model of their own show the items that the others made.
    """
    job = JOBS[wildcards.job]
    if job.model is None:
        return [ITEMS]
    if job.notebook != LAST:
        return []
    others = [
        name for name in COMPUTING
        if JOBS[name].notebook[:2] in ("02", "04")
        and (JOBS[name].model, JOBS[name].seed) == (job.model, job.seed)
    ]
    return [f"{RESULTS}/notebooks/{name}.ipynb" for name in others]


def threads_of(wildcards):
    """How many threads a job computes with: its share, the last one of a single seed all.

    That one starts as soon as the models that it guards are there; soon after it runs alone. A
    tiny model gets one: a second would mostly wait, and take its core from the other notebook.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if (JOBS[wildcards.job].model or "").startswith("embedded/"):
        return given or 1
    cores = os.cpu_count() or 1
    last = sum(job.notebook == LAST for job in JOBS.values()) == 1 and built_on(wildcards)
    return given or (cores if last else max(1, cores // CORES))


localrules: all, collect, figures


rule all:
    input:
        expand(f"{RESULTS}/notebooks/{{job}}.ipynb", job=JOBS),
        ITEMS,
        f"{RESULTS}/.figures",


rule notebook:
    wildcard_constraints:
        job="|".join(map(re.escape, JOBS)),
    input:
        notebook=lambda wildcards: f"notebooks/{JOBS[wildcards.job].notebook}.ipynb",
        inputs=INPUTS,
        before=built_on,
    output:
        f"{RESULTS}/notebooks/{{job}}.ipynb",
    log:
        f"{RESULTS}/logs/{{job}}.log",
    benchmark:
        f"{RESULTS}/logs/{{job}}.tsv"
    params:
        arguments=arguments,
        threads=threads_of,
        notebook=lambda wildcards, input: file_sha256(Path(input.notebook)),
    shell:
        "export OMP_NUM_THREADS={params.threads}; echo {wildcards.job}; {RUN} notebook {params.arguments} --output {output:q} 2>&1 | {HIDE} | tee {log:q}"


rule collect:
    input:
        expand(f"{RESULTS}/notebooks/{{job}}.ipynb", job=COMPUTING),
    output:
        ITEMS,
    log:
        f"{RESULTS}/logs/collect.log",
    shell:
        "echo items; {RUN} collect {CHOSEN} 2>&1 | {HIDE} | tee {log:q}"


rule figures:
    input:
        ITEMS,
        INPUTS,
    output:
        touch(f"{RESULTS}/.figures"),
    log:
        f"{RESULTS}/logs/figures.log",
    shell:
        "echo figures; {RUN} figures {CHOSEN} 2>&1 | {HIDE} | tee {log:q}"
