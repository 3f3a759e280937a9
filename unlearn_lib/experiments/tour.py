"""Verbs of notebook 00: the machine, the plan of a profile, and what is stored."""

import os
import platform

import pandas as pd
import psutil
import torch

from unlearn_lib import tables
from unlearn_lib.display import facts
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import find_method
from unlearn_lib.profiles import load_profile, notebook_jobs
from unlearn_lib.results import CLAIMS, stored


def machine() -> pd.DataFrame:
    """Describe this machine in a small table."""
    memory = psutil.virtual_memory()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    native = torch.cpu._is_avx512_bf16_supported()
    return facts(
        [
            ("Python", platform.python_version()),
            ("torch", torch.__version__),
            ("processor cores", os.cpu_count()),
            ("memory", f"{memory.total / 2**30:.0f} GiB"),
            ("GPU", gpu),
            ("bfloat16 on the processor", "native" if native else "no (float32 is used)"),
        ]
    )


def plan(profile: str) -> pd.DataFrame:
    """List the notebooks of a profile with their models and seeds."""
    jobs = notebook_jobs(load_profile(profile))
    rows = [{"notebook": j.notebook, "model": j.model or "", "seed": j.seed} for j in jobs]
    return pd.DataFrame(rows).astype({"seed": "Int64"}).set_index("notebook")


def methods(profile: str) -> pd.DataFrame:
    """List the methods of every experiment with their weights, steps and sources."""
    rows = [
        {
            "experiment": name,
            "method": method.label,
            "steps": method.steps,
            "learning rate": method.learning_rate,
            "weights": f"{method.forget_weight:g} / {method.mismatch_weight:g} / "
            f"{method.retain_weight:g}",
            "source": find_method(method.uses).source,
        }
        for name, settings in load_profile(profile).experiments().items()
        for method in settings.methods
    ]
    return pd.DataFrame(rows).set_index(["experiment", "method"])


def results(profile: str) -> pd.DataFrame:
    """Show Table 1 from stored results, or say which command makes them."""
    chosen = load_profile(profile)
    try:
        frame, _, where = stored(chosen)
    except CompanionError as error:
        return facts([("results", str(error))])
    print(f"From {where}.")
    if "harmful" not in chosen.experiments():
        return facts([("results", f"{len(frame)} rows in the tidy table")])
    labels = {method.name: method.label for method in chosen.harmful.methods}
    found = tables.table_one(frame, tables.read_claims(CLAIMS), labels, profile)
    return found.set_index(["Source", "Model", "Method"]).drop(columns="Note").T
