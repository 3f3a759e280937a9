"""Train, unlearn, guard and evaluate language models; the helper package of the notebooks.

    from unlearn_lib import Experiment, Items, estimate

`PUBLIC` lists the names; each is imported when it is first used, so that figures and tables need
no torch. Modules use only those before them: util, settings, task_settings, profile, assets, store,
data, model, unlearn, metrics, judges, guard, evaluation, tasks, stages, experiment; results reads
items, and figures, tables, claims, notebook and report show estimates.
"""

import importlib
import logging
import warnings
from typing import Any

__version__ = "0.2.0"

NAMES = {
    "experiment": "Experiment",
    "profile": "load_profile",
    "results": "Items estimate compare table",
    "util": "CompanionError ROOT",
    "assets": "find_model Asset",
    "settings": "LoraSettings ModelSettings MethodSettings TeachSettings GuardSettings "
    "CorruptionSettings TextClassifierSettings",
    "model.loading": "LanguageModel load make_trainable tiny_opt",
    "model.tokens": "Example TextEncoder",
    "model.generate": "answers",
    "model.scoring": "score",
    "unlearn.methods": "METHODS find_method",
    "unlearn.steps": "Pools",
    "unlearn.trainer": "teach",
    "guard.fit": "fit_guard",
    "guard.model": "GuardedModel",
}
PUBLIC = {name: module for module, names in NAMES.items() for name in names.split()}
"""Public names, and the modules that they come from; none may be called as a module is."""

# Notices of other libraries that say nothing to a reader of a notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
warnings.filterwarnings("ignore", message="Detected pickle protocol")
warnings.filterwarnings("ignore", message="Found missing adapter keys")
warnings.filterwarnings("ignore", message="Merge lora module to 8-bit")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
logging.getLogger("bs4.dammit").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"unlearn_lib has no public name '{name}'; see unlearn_lib.PUBLIC.")
    return getattr(importlib.import_module(f"unlearn_lib.{PUBLIC[name]}"), name)
