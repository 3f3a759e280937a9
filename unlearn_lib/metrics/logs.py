"""What one model's evaluation on TOFU leaves behind: losses and ROUGE of every question.

A log is all that TOFU's metrics need. Ours are made by scoring a model; those of TOFU's authors
are read as they published them, so that models too large for this machine can stand beside ours.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib.errors import CompanionError, nearest

FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS = "forget", "retain", "real_authors", "world_facts"
OFFICIAL_SETS = {
    RETAIN: "eval_log.json",
    FORGET: "eval_log_forget.json",
    REAL_AUTHORS: "eval_real_author_wo_options.json",
    WORLD_FACTS: "eval_real_world_wo_options.json",
}
OFFICIAL_ROWS = 300
"""TOFU's authors score the first so many questions of a larger set."""
_FIELDS = {
    "answer_loss": "avg_gt_loss",
    "paraphrase_loss": "avg_paraphrased_loss",
    "perturbed_loss": "average_perturb_loss",
    "rouge": "rougeL_recall",
}
_TEXTS = "generated_text"


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


@dataclass(frozen=True, eq=False)
class TofuLog:
    """The sets of one model; what is wrong with one is said when the log is made.

    Attributes:
        name: of the model, for messages.
        sets: `forget`, `retain`, `real_authors`, `world_facts`; not every use needs all.
        official: whether TOFU's authors made it.

    Raises:
        CompanionError: lengths that differ within a set, no row, or numbers that are nan or
            infinite; names set and row.
    """

    name: str
    sets: Mapping[str, SetLog]
    official: bool = False

    def __post_init__(self) -> None:
        for name, log in self.sets.items():
            _check(log, f"Set '{name}' of {self.name}")

    def get(self, name: str) -> SetLog:
        """One set; CompanionError where the log lacks it."""
        if name not in self.sets:
            known = nearest(name, self.sets)
            raise CompanionError(f"The log {self.name} has no set '{name}'{known}; score it too.")
        return self.sets[name]

    def to_json(self) -> str:
        """The log as JSON text, which `from_json` reads back to the same numbers."""
        sets = {
            name: {"questions": list(log.questions)}
            | {field: getattr(log, field).tolist() for field in _FIELDS}
            for name, log in self.sets.items()
        }
        return json.dumps({"name": self.name, "official": self.official, "sets": sets})

    @classmethod
    def from_json(cls, text: str) -> "TofuLog":
        """Read what `to_json` wrote.

        Raises:
            CompanionError: not such a text, or numbers that no log may hold.
        """
        try:
            content = json.loads(text)
            name, official, sets = (content[key] for key in ("name", "official", "sets"))
            columns = {key: {field: part[field] for field in _FIELDS} for key, part in sets.items()}
            questions = {key: tuple(part["questions"]) for key, part in sets.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CompanionError(
                f"This is no stored log ({reason}); score the model again."
            ) from error
        logs = {
            key: _set_log(questions[key], rows, f"Set '{key}' of {name}")
            for key, rows in columns.items()
        }
        return cls(name, logs, official)


def official_log(path: Path | str, questions: Sequence[str] | None = None) -> TofuLog:
    """Read an evaluation log of TOFU's authors (their `eval_log_aggregated.json`).

    Real authors and world facts have no paraphrase: the log holds the answer's loss for it. Their
    questions stand in the model's prompt form, which is taken off.

    Args:
        path: JSON file.
        questions: of the forget split that the log should be of. Default: not checked. A log
            holds the first 300 of a larger split.

    Raises:
        CompanionError: no such file, not JSON, a set, field or row missing, something that is no
            number, nan or infinity, unequal numbers of wrong answers, or forget rows of another
            split; names set and row.
    """
    path = Path(path)
    content = _read(path)
    sets = {}
    for name, key in OFFICIAL_SETS.items():
        where = f"Set '{name}' of {path.stem}"
        if not isinstance(content.get(key), dict):
            raise CompanionError(f"{where} is missing: {path} has no '{key}'; take a whole log.")
        sets[name] = _official_set(content[key], where)
    log = TofuLog(path.stem, sets, official=True)
    if questions is not None:
        _require_split(log, questions)
    return log


def first_other(questions: Sequence[str], others: Sequence[str]) -> int | None:
    """The first row whose question is not among the others (each counts once), or None."""
    left = Counter(others)
    for row, question in enumerate(questions):
        if not left[question]:
            return row
        left[question] -= 1
    return None


def _require_split(log: TofuLog, questions: Sequence[str]) -> None:
    found, expected = log.get(FORGET).questions, min(len(questions), OFFICIAL_ROWS)
    row = first_other(found, questions)
    if row is not None:
        raise CompanionError(
            f"{log.name} is the log of another split: row {row} of its forget set, "
            f"'{found[row]}', is not among the {len(questions)} questions of this one."
        )
    if len(found) < expected:
        raise CompanionError(
            f"{log.name} is the log of another split: its forget set ends before row "
            f"{len(found)}, but this split's would have {expected} rows."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CompanionError(
            f"The log {path} cannot be read ({reason}); check the path."
        ) from error
    except ValueError as error:
        raise CompanionError(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise CompanionError(f"{path} holds no sets but a {type(content).__name__}; is it a log?")
    return content


def _official_set(part: dict[str, Any], where: str) -> SetLog:
    for key in (*_FIELDS.values(), _TEXTS):
        if not isinstance(part.get(key), dict):
            raise CompanionError(f"{where} has no '{key}'; take a whole log.")
    count = max(len(part[key]) for key in (*_FIELDS.values(), _TEXTS))
    columns = {field: _column(part[key], count, key, where) for field, key in _FIELDS.items()}
    prompts = _column(part[_TEXTS], count, _TEXTS, where)
    return _set_log([_question(p, row, where) for row, p in enumerate(prompts)], columns, where)


def _column(values: dict[str, Any], count: int, key: str, where: str) -> list[Any]:
    for row in range(count):
        if str(row) not in values:
            raise CompanionError(
                f"{where} has {count} rows, but '{key}' lacks row {row}; take a whole log."
            )
    return [values[str(row)] for row in range(count)]


def _question(texts: Any, row: int, where: str) -> str:
    """The question of a prompt, as of Phi ("Question: ...") or Llama-2 ("[INST] ... [/INST]")."""
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise CompanionError(
            f"{where} has no question in row {row} of '{_TEXTS}'; take a whole log."
        )
    prompt = texts[0].strip()
    for start in ("Question:", "[INST]"):
        prompt = prompt.removeprefix(start)
    return prompt.removesuffix("[/INST]").strip()


def _set_log(questions: Sequence[str], columns: Mapping[str, Any], where: str) -> SetLog:
    """A set from plain lists; refuses what is no number and unequal numbers of wrong answers."""
    arrays = {}
    for field, rows in columns.items():
        if not isinstance(rows, list):
            raise CompanionError(f"{where}: {field} is a {type(rows).__name__}, no list; mend it.")
        width = len(rows[0]) if rows and isinstance(rows[0], list) else None
        for row, value in enumerate(rows):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise CompanionError(
                        f"{where}: {field} of row {row} is {number!r}, no number; mend it."
                    )
            found = len(value) if isinstance(value, list) else None
            if found != width:
                raise CompanionError(
                    f"{where}: {field} of row {row} has {found or 1} numbers, row 0 has "
                    f"{width or 1}; every question needs as many wrong answers."
                )
        arrays[field] = np.array(rows, dtype=float)
    return SetLog(questions=tuple(questions), **arrays)


def _check(log: SetLog, where: str) -> None:
    count = len(log.questions)
    if not count:
        raise CompanionError(f"{where} has no question; give at least one.")
    for field in _FIELDS:
        values = np.asarray(getattr(log, field))
        dimensions = 2 if field == "perturbed_loss" else 1
        if values.ndim != dimensions or (values.size == 0 and len(values) == count):
            needed = "the wrong answers' losses" if dimensions == 2 else "one number"
            raise CompanionError(
                f"{where}: {field} has the shape {values.shape}; give {needed} in each of its "
                f"{count} rows."
            )
        if len(values) != count:
            raise CompanionError(
                f"{where} has {count} questions and {len(values)} rows of {field}: row "
                f"{min(len(values), count)} has no partner; give as many of both."
            )
        wrong = np.flatnonzero(~np.isfinite(values).reshape(count, -1).all(axis=1))
        if len(wrong):
            raise CompanionError(
                f"{where}: {field} of row {wrong[0]}, '{log.questions[wrong[0]]}', is nan or "
                "infinite; mend that row, or leave it out of all logs."
            )
    outside = np.flatnonzero(np.abs(np.asarray(log.rouge) - 0.5) > 0.5)
    if len(outside):
        raise CompanionError(
            f"{where}: rouge of row {outside[0]} is {log.rouge[outside[0]]}; give shares, 0 to 1."
        )
