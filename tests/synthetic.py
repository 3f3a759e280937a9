"""Synthetic items of every task with the shape of a laptop run, for tests of what reads items.

Numbers mean nothing. Answers of LOOPS are degenerate, all others are not.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unlearn_lib.results import COLUMNS, Items

MODEL = "family/model-135m"
LOOPS = {("authors", "me_gd"), ("harm", "arora"), ("book", "arora")}
METHODS = {
    "harm": "base arora refusal",
    "book": "base target eco prompting arora npo",
    "authors": "base target retain_model eco prompting ga_gd me_gd",
    "continual": "ga_gd me_gd",
    "people": "base ga_gd me_gd",
    "science": "base target eco npo_gd",
}
ANSWERED = """refusal entailment rougeL_recall cosine token_entropy extraction_strength loss_answer
    truth_ratio exact_memorisation loss_wrong_1 loss_wrong_2 degenerate """
READ = """verbatim bleu rougeL_recall meteor cosine extraction_strength loss_text tokens_text
    loss_generated tokens_generated degenerate"""
FORGOTTEN = "bleu meteor unique_token_ratio leak loss_generated tokens_generated attack_min_k"
REMEMBERED = dict.fromkeys(("forget", "retain", "real_authors", "world_facts"), ANSWERED)
MEASURED = {
    "harm": {
        "forget": "harmful harmful_length_matched answer_tokens degenerate",
        "retain": "refusal loss_text tokens_text similarity_original rougeL_original",
    },
    "book": {"forget": READ, "retain": READ, "general": "similarity_original degenerate"},
    "authors": REMEMBERED | {"forget": ANSWERED + FORGOTTEN, "holdout": "attack_min_k"},
    "continual": REMEMBERED,
    "people": {"forget": ANSWERED, "retain": ANSWERED},
    "science": {"forget": "choice_right probe_right", "retain": "choice_right"},
}
FLAGS = """harmful harmful_length_matched refusal entailment verbatim leak choice_right probe_right
    missed"""
COSTS = "seconds bytes_stored parameters_changed milliseconds_per_prompt"
EXTRA = [(step, "search", "search_strength search_objective model_calls") for step in ("00", "01")]
EXTRA += [(attack, "forget", "leak missed") for attack in ("as asked", "typos")]
TIMES = "milliseconds_per_prompt model_milliseconds_per_prompt"
EXTRA += [(f"{size} parameters", "costs", TIMES) for size in (1000, 20000)]


def synthetic_items(tasks: Sequence[str] = tuple(METHODS), seeds: Sequence[int] = (1,)) -> Items:
    """Return items of some tasks, eight questions of two clusters on each split."""
    random, rows = np.random.default_rng(0), []
    for seed in seeds:
        for task, method in [(t, m) for t in tasks for m in METHODS[t].split()]:
            parts = ("1", "2") if task == "continual" else ("",)
            asked = [
                (part, split, metrics)
                for part in parts
                for split, metrics in [*MEASURED[task].items(), ("costs", COSTS)]
            ]
            for condition, split, metrics in asked + EXTRA * (method == "eco"):
                for metric in metrics.split():
                    values = random.uniform(0.2, 0.9, 1 if split in ("costs", "search") else 8)
                    if metric in FLAGS.split():
                        values = np.round(values)
                    if metric == "degenerate":
                        values[:] = (task, method) in LOOPS
                    if metric.startswith("tokens"):
                        values[:] = 1
                    stage = {"eco": "guarded", "prompting": "guarded"}.get(method, "unlearned")
                    key = (task, MODEL, seed, stage, method, split, condition)
                    rows += [
                        (*key, f"{split} {item % 2}", f"{split} {item}", metric, value, "")
                        for item, value in enumerate(values)
                    ]
    return Items(pd.DataFrame(rows, columns=list(COLUMNS)))
