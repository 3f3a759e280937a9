"""Logs that TOFU's authors published: losses and ROUGE of every question, as items of ours.

    log = official_log("tofu_phi-1.5_full_wd0.01.json")
    items = log_items(log)

So models too large for this machine stand beside ours, and our estimators can be checked against
the published numbers. The authors themselves compare forget10 rows of one log with forget01 rows
of another where they print forget quality; join on `item` to see which questions two logs share.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unlearn_lib.metrics.questions import item_id, truth_ratios
from unlearn_lib.util import CompanionError

SETS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
"""Our split -> its key in a log. The authors score the first 300 questions of a larger split."""
FIELDS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
"""Of each question the mean loss in nats per token of the right answer, of the right answer in
other words (the answer's own where a set has none: real authors, world facts) and of each wrong
answer; ROUGE-L recall of the generated answer, 0 to 1."""


def official_log(path: Path | str) -> dict[str, pd.DataFrame]:
    """Return the sets of an evaluation log of TOFU's authors (`eval_log_aggregated.json`).

    A set has a row per question, in the order of the log, with its `question`, without the model's
    prompt form, and float64 columns: `loss_answer` and `loss_wrong_1` to `loss_wrong_k` in nats per
    token, the raw `truth_ratio`, `rougeL_recall`.

    Raises:
        CompanionError: no such file, not JSON, a set, field or row missing, or a value that is
            no finite number; names file and set.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompanionError(f"The log {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise CompanionError(f"{path} is not JSON ({error}); fetch it again.") from error
    log = {}
    for split, key in SETS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise CompanionError(f"{path} is no whole log of TOFU: '{key}' is missing.")
        try:
            log[split] = _table(content[key])
        except (AttributeError, CompanionError, LookupError, TypeError, ValueError) as error:
            where = f"Set '{key}' of {path}"
            raise CompanionError(f"{where} lacks a field, row or number ({error!r}).") from error
    return log


def _table(part: Mapping[str, Any]) -> pd.DataFrame:
    """Read a set, whose fields are tables from the number of a row to its value."""
    rows = [str(row) for row in range(max(len(part[field]) for field in FIELDS))]
    numbers = [np.array([part[field][row] for row in rows], dtype=float) for field in FIELDS]
    for field, values in zip(FIELDS, numbers):
        if not np.isfinite(values).all():
            raise ValueError(f"a value of '{field}' is no finite number")
    answer, paraphrase, wrong, rouge = numbers
    table = {
        "question": [_question(part["generated_text"][row][0]) for row in rows],
        "loss_answer": answer,
        "truth_ratio": truth_ratios(wrong, paraphrase),
        "rougeL_recall": rouge,
    }
    table |= {f"loss_wrong_{number}": losses for number, losses in enumerate(wrong.T, start=1)}
    return pd.DataFrame(table)


def _question(prompt: str) -> str:
    """Take Phi's form ("Question: ...") or Llama-2's ("[INST] ... [/INST]") off a prompt."""
    question = prompt.strip().removeprefix("Question:").removeprefix("[INST]")
    return question.removesuffix("[/INST]").strip()


def log_items(log: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a log as items: a table of `split`, `item`, `metric` and `value`.

    Metrics are the columns of `official_log`; `item` is `questions.item_id` of the question.
    """
    tables = []
    for split, rows in log.items():
        identity = {"split": split, "item": rows["question"].map(item_id)}
        columns = rows.drop(columns="question").assign(**identity)
        tables.append(columns.melt(list(identity), var_name="metric"))
    return pd.concat(tables, ignore_index=True)
