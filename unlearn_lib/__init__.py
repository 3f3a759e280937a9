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

PUBLIC = {
    "Experiment": "experiment",
    "load_profile": "profile",
    "Items": "results",
    "estimate": "results",
    "compare": "results",
    "table": "results",
    "CompanionError": "util",
    "ROOT": "util",
    "find_model": "assets",
    "Asset": "assets",
    "LoraSettings": "settings",
    "ModelSettings": "settings",
    "MethodSettings": "settings",
    "TeachSettings": "settings",
    "GuardSettings": "settings",
    "CorruptionSettings": "settings",
    "TextClassifierSettings": "settings",
    "LanguageModel": "model.loading",
    "load": "model.loading",
    "make_trainable": "model.loading",
    "tiny_opt": "model.loading",
    "Example": "model.tokens",
    "TextEncoder": "model.tokens",
    "answers": "model.generate",
    "score": "model.scoring",
    "METHODS": "unlearn.methods",
    "find_method": "unlearn.methods",
    "Pools": "unlearn.steps",
    "teach": "unlearn.trainer",
    "fit_guard": "guard.fit",
    "GuardedModel": "guard.model",
}
"""Public names, and the modules that they come from; none may be called as a module is."""

# Notices of other libraries that say nothing to a reader of a notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
warnings.filterwarnings("ignore", message="Merge lora module to 8-bit")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"unlearn_lib has no public name '{name}'; see unlearn_lib.PUBLIC.")
    return getattr(importlib.import_module(f"unlearn_lib.{PUBLIC[name]}"), name)
