"""Logs that TOFU's authors published: losses and ROUGE of every question, as items of ours.

    log = official_log("tofu_phi-1.5_full_wd0.01.json")
    items = log_items(log)

So models too large for this machine stand beside ours, and our estimators can be checked against
the published numbers. The authors themselves compare forget10 rows of one log with forget01 rows
of another where they print forget quality; join on `item` to see which questions two logs share.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib.metrics.questions import item_id, truth_ratios
from unlearn_lib.util import CompanionError

SETS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
"""Our split -> its key in a log. The authors score the first 300 questions of a larger split."""

FIELDS = {
    "answer_loss": "avg_gt_loss",
    "paraphrase_loss": "avg_paraphrased_loss",
    "perturbed_loss": "average_perturb_loss",
    "rouge": "rougeL_recall",
}


@dataclass(frozen=True, eq=False)
class SetLog:
    """One set of questions under one model; all in the same row order.

    Attributes:
        questions: [n].
        answer_loss: float64 [n], mean loss of the right answer in nats per token.
        paraphrase_loss: float64 [n], of the right answer in other words; the answer's own where
            a set has none (real authors, world facts).
        perturbed_loss: float64 [n, k], of the wrong answers.
        rouge: float64 [n], 0 to 1, ROUGE-L recall of the generated answer.
    """

    questions: tuple[str, ...]
    answer_loss: np.ndarray
    paraphrase_loss: np.ndarray
    perturbed_loss: np.ndarray
    rouge: np.ndarray


def official_log(path: Path | str) -> dict[str, SetLog]:
    """Return the sets of an evaluation log of TOFU's authors (`eval_log_aggregated.json`).

    Questions are in the model's prompt form there, which is taken off.

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
    for name, key in SETS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise CompanionError(f"{path} is no whole log of TOFU: '{key}' is missing.")
        log[name] = _set_log(content[key], f"Set '{key}' of {path}")
    return log


def _set_log(part: dict[str, Any], where: str) -> SetLog:
    """Read a set, whose fields are tables from the number of a row to its value."""
    try:
        rows = [str(row) for row in range(max(len(part[key]) for key in FIELDS.values()))]
        prompts = [part["generated_text"][row][0] for row in rows]
        questions = tuple(_question(prompt) for prompt in prompts)
        columns = {
            name: np.array([part[key][row] for row in rows], dtype=float)
            for name, key in FIELDS.items()
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CompanionError(f"{where} lacks a field, row or number ({error!r}).") from error
    for name, values in columns.items():
        if values.ndim != (2 if name == "perturbed_loss" else 1) or not np.isfinite(values).all():
            raise CompanionError(f"{where}: '{FIELDS[name]}' has a value that is no finite number.")
    return SetLog(questions, **columns)


def _question(prompt: str) -> str:
    """Take Phi's form ("Question: ...") or Llama-2's ("[INST] ... [/INST]") off a prompt."""
    question = prompt.strip().removeprefix("Question:").removeprefix("[INST]")
    return question.removesuffix("[/INST]").strip()


def log_items(log: Mapping[str, SetLog]) -> list[dict[str, Any]]:
    """Return a log as items: dicts of `split`, `item`, `metric` and `value`.

    Metrics are `loss_answer` and `loss_wrong_1` to `loss_wrong_k` in nats per token, the raw
    `truth_ratio`, and `rougeL_recall`; `item` is `questions.item_id` of the question.
    """
    items = []
    for split, rows in log.items():
        columns = {
            "loss_answer": rows.answer_loss,
            "truth_ratio": truth_ratios(rows.perturbed_loss, rows.paraphrase_loss),
            "rougeL_recall": rows.rouge,
        }
        for number, losses in enumerate(rows.perturbed_loss.T, start=1):
            columns[f"loss_wrong_{number}"] = losses
        for metric, values in columns.items():
            for question, value in zip(rows.questions, values.tolist()):
                identity = {"split": split, "item": item_id(question)}
                items.append(identity | {"metric": metric, "value": value})
    return items
