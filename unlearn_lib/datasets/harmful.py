"""Experiment 1: harmful answers to forget, normal answers to keep, and the judge's rows.

Three sources behind one shape. `human_scored`: harm responses with human scores (pinned wheel);
`pku_saferlhf`: PKU-SafeRLHF, both of its column generations; `embedded`: the project's own mild
stand-ins. Normal questions come from TruthfulQA or the embedded set. Everything is split by
objective or question, so that nothing that is evaluated was trained on.

The released code of Arora et al. keeps unsafe responses only, unshuffled, and evaluates one
prompt; its pool of random answers also holds TruthfulQA's *incorrect* answers, ours does not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from unlearn_lib.assets import Asset, NotToBeHad, find_dataset, folder_sha256
from unlearn_lib.datasets.files import EMBEDDED, check_columns, read_csv, read_lines, read_table
from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.settings import HarmfulData

JIGSAW_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
JIGSAW = "jigsaw-toxic-comment-classification-challenge"
SCORES = ("human_score", "human_score_1", "human_score_2", "human_score_3")


@dataclass(frozen=True)
class HarmfulSplits:
    """The rows of experiment 1.

    Attributes:
        forget: `question`, `answer`: harmful answers of the training objectives.
        harmless: `question`, `answer`: harmless answers of the training objectives.
        evaluation: `question`: held-out objectives, each once.
        retain: `question`, `answers`: normal training questions.
        normal: `question`, `answers`: held-out normal questions.
        scored_train, scored_test: `question`, `answer`, `harmful`: for the judge, split by
            the same objectives; empty where the data has no graded answers.
        sha256: of the source files, by data set.
        dropped: how many rows were left out, by reason.
    """

    forget: Dataset
    harmless: Dataset
    evaluation: Dataset
    retain: Dataset
    normal: Dataset
    scored_train: Dataset
    scored_test: Dataset
    sha256: dict[str, str]
    dropped: dict[str, int]


def load(
    settings: HarmfulData, fits: Callable[[str], bool] = lambda question: True
) -> HarmfulSplits:
    """Load and split the data of a profile.

    Args:
        settings: the profile's `harmful.data`.
        fits: tells whether a question is short enough for the model; longer ones are left out
            and counted in `dropped`.

    Raises:
        CompanionError: missing asset, missing or renamed column, nothing left to forget or to
            ask.
    """
    graded, forget_sha = _GRADED[settings.forget]()
    normal, retain_sha = normal_questions(settings.retain)
    graded, dropped = _clean(graded)
    train, test = _split(graded, settings)
    dropped["question of both splits"] = len(graded) - len(train) - len(test)
    scored_train, scored_test = _scored(train, settings), _scored(test, settings)
    train, test, retain, held_out = (
        part[part["question"].map(fits)] for part in (train, test, *_split(normal, settings))
    )
    kept = len(train) + len(test)
    dropped["prompt longer than prompt_tokens"] = len(scored_train) + len(scored_test) - kept
    harmful = train["score"] >= settings.harmful_from
    forget = _rows(train[harmful], ["question", "answer"], settings.forget_rows)
    if len(forget) == 0:
        raise CompanionError(
            f"The forget set is empty: no answer of '{settings.forget}' scores "
            f"{settings.harmful_from} or more; lower 'harmful_from' or check the data."
        )
    questions = test.drop_duplicates("question")
    for name, rows in (("evaluation", questions), ("normal", held_out)):
        if len(rows) == 0:
            raise CompanionError(
                f"No question is left for the {name} set; raise 'held_out_share' or "
                "'prompt_tokens', or check the data."
            )
    return HarmfulSplits(
        forget=forget,
        harmless=_rows(train[train["score"] < settings.harmless_below], ["question", "answer"]),
        evaluation=_rows(questions, ["question"], settings.evaluation_prompts),
        retain=_rows(retain, ["question", "answers"], settings.retain_rows),
        normal=_rows(held_out, ["question", "answers"], settings.normal_prompts),
        scored_train=scored_train,
        scored_test=scored_test,
        sha256={settings.forget: forget_sha, settings.retain: retain_sha},
        dropped=dropped,
    )


def _clean(graded: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Leave out rows without question, answer or score, and repeated ones; count both."""
    whole = graded["score"].notna()
    for name in ("question", "answer"):
        graded[name] = graded[name].astype("string").str.strip()
        whole &= graded[name].fillna("").ne("")
    repeated = graded[whole].duplicated(["question", "answer"])
    dropped = {"incomplete": int((~whole).sum()), "repeated": int(repeated.sum())}
    kept = graded[whole][~repeated]
    return kept.astype({"question": object, "answer": object}), dropped


def _split(rows: pd.DataFrame, settings: HarmfulData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by question: given `split` column if there is one, else by a seeded shuffle."""
    if "split" in rows:
        test = rows["split"] == "test"
        seen = set(rows.loc[~test, "question"])
        train, held_out = rows[~test], rows[test & ~rows["question"].isin(seen)]
    else:
        questions = np.array(sorted(rows["question"].unique()))
        np.random.default_rng(settings.split_seed).shuffle(questions)
        held = set(questions[: round(len(questions) * settings.held_out_share)])
        mask = rows["question"].isin(held)
        train, held_out = rows[~mask], rows[mask]
    random = np.random.default_rng(settings.split_seed + 1)
    return tuple(part.iloc[random.permutation(len(part))] for part in (train, held_out))  # type: ignore[return-value]


def _rows(frame: pd.DataFrame, columns: list[str], most: int | None = None) -> Dataset:
    return Dataset.from_pandas(frame[columns].head(most or len(frame)), preserve_index=False)


def _scored(frame: pd.DataFrame, settings: HarmfulData) -> Dataset:
    harmful = (frame["score"] >= settings.harmful_from).to_numpy()
    return _rows(frame.assign(harmful=harmful), ["question", "answer", "harmful"])


def _human_scored() -> tuple[pd.DataFrame, str]:
    asset = find_dataset("pyrit/harm")
    parts = []
    for path in sorted(asset.folder.glob("*.csv")):
        part = read_csv(path, ("objective", "assistant_response"), skip=_comment_lines(path))
        scores = [name for name in SCORES if name in part]
        if not scores:
            raise CompanionError(
                f"{path} has no column '{SCORES[0]}'{nearest(SCORES[0], part.columns)}."
            )
        score = part[scores].apply(pd.to_numeric, errors="coerce").mean(axis=1)
        texts = {"question": part["objective"], "answer": part["assistant_response"]}
        parts.append(pd.DataFrame({**texts, "score": score}))
    if not parts:
        raise CompanionError(f"{asset.folder} holds no CSV file of {asset.id}; fill it again.")
    return pd.concat(parts, ignore_index=True), asset.sha256


def _comment_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return int(lines.readline().startswith(b"#"))


def _pku_saferlhf() -> tuple[pd.DataFrame, str]:
    """Every response is a row; unsafe ones score 1. Old and new columns share the five used."""
    asset = find_dataset("PKU-Alignment/PKU-SafeRLHF")
    needed = ("prompt", *(f"response_{i}" for i in (0, 1)))
    needed += tuple(f"is_response_{i}_safe" for i in (0, 1))
    parts = []
    for split in ("train", "test"):
        for path in _split_files(asset, split):
            table = read_table(path)
            check_columns(path, table.column_names, needed)
            frame = table.select_columns(list(needed)).to_pandas()
            both = [
                pd.DataFrame(
                    {
                        "question": frame["prompt"],
                        "answer": frame[f"response_{i}"],
                        "score": (~frame[f"is_response_{i}_safe"].astype(bool)).astype(float),
                        "split": split,
                    }
                )
                for i in (0, 1)
            ]
            parts.append(pd.concat(both).sort_index(kind="stable"))
    return pd.concat(parts, ignore_index=True), asset.sha256


def _split_files(asset: Asset, split: str) -> list[Path]:
    """Files of a split in the hub's layouts: `data/<name>/train.jsonl`, `data/train-*.parquet`."""
    found = [
        path
        for path in sorted(asset.folder.rglob("*"))
        if path.name.split(".")[0].split("-")[0] == split
        and path.suffix in (".jsonl", ".json", ".parquet", ".xz", ".gz", ".csv")
    ]
    if not found:
        raise CompanionError(f"{asset.folder} has no file of split '{split}' ({asset.id}).")
    return found


def normal_questions(name: str) -> tuple[pd.DataFrame, str]:
    """Ordinary questions, `truthful_qa` or `embedded`: `question`, `answers`, and the sha256."""
    return _NORMAL[name]()


def _embedded_graded() -> tuple[pd.DataFrame, str]:
    path = EMBEDDED / "harm_stand_in.jsonl"
    frame = pd.DataFrame(read_lines(path)).rename(
        columns={"objective": "question", "response": "answer"}
    )
    return frame, folder_sha256([path], EMBEDDED)


def _embedded_normal() -> tuple[pd.DataFrame, str]:
    path = EMBEDDED / "normal_questions.jsonl"
    return pd.DataFrame(read_lines(path)), folder_sha256([path], EMBEDDED)


def _truthful_qa() -> tuple[pd.DataFrame, str]:
    """TruthfulQA generation: the hub's parquet, or question and correct answers as JSON lines."""
    asset = find_dataset("truthfulqa/truthful_qa")
    lines = sorted(asset.folder.glob("*.jsonl"))
    if lines:
        frame = pd.DataFrame(read_lines(lines[0]))
        check_columns(lines[0], list(frame.columns), ("question", "answer"))
        return _with_answers(frame["question"], frame["answer"]), asset.sha256
    path = next(iter(sorted(asset.folder.rglob("generation/*.parquet"))), None)
    if path is None:
        raise CompanionError(f"{asset.folder} holds no generation/*.parquet of {asset.id}.")
    table = read_table(path)
    check_columns(path, table.column_names, ("question", "best_answer", "correct_answers"))
    frame = table.to_pandas()
    both = zip(frame["best_answer"], frame["correct_answers"], strict=True)
    answers = [[best, *correct] for best, correct in both]
    return _with_answers(frame["question"], answers), asset.sha256


def _with_answers(questions: Iterable[str], answers: Iterable[Iterable[str]]) -> pd.DataFrame:
    """Questions that have an answer, each answer once and none empty (some of the source are)."""
    kept = [list(dict.fromkeys(a.strip() for a in group if a.strip())) for group in answers]
    frame = pd.DataFrame({"question": list(questions), "answers": kept})
    return frame[frame["answers"].map(len) > 0]


def jigsaw(rows: int | None, seed: int, file: Path | None = None) -> tuple[Dataset, Dataset, str]:
    """Load Jigsaw toxic comments: 80 % to train on and 10 % to test on, as in the paper.

    Args:
        rows: how many to take; None for all.
        seed: of the shuffle before the split.
        file: the competition's `train.csv`; None looks for it in the mirror.

    Returns:
        train, test: `text` and `labels` (float [6], in the order of JIGSAW_LABELS), and the
            file's sha256. Comments that were not labelled (-1) or are empty are left out.

    Raises:
        CompanionError: not to be had, or a column missing.
    """
    path = file.expanduser() if file else _jigsaw_file()
    frame = read_csv(path, ("comment_text", *JIGSAW_LABELS))
    labelled = frame[list(JIGSAW_LABELS)].isin((0, 1)).all(axis=1)
    frame = frame[labelled & frame["comment_text"].notna()]
    if len(frame) < 10:
        raise CompanionError(f"{path} holds {len(frame)} labelled comments; fetch it again.")
    frame = frame.iloc[np.random.default_rng(seed).permutation(len(frame))].head(rows or len(frame))
    labels = frame[list(JIGSAW_LABELS)].to_numpy(float)
    texts = frame["comment_text"].tolist()
    table = [{"text": t, "labels": row.tolist()} for t, row in zip(texts, labels, strict=True)]
    sha256 = folder_sha256([path], path.parent)
    first, last = round(0.8 * len(table)), round(0.9 * len(table))
    return Dataset.from_list(table[:first]), Dataset.from_list(table[last:]), sha256


def _jigsaw_file() -> Path:
    try:
        return find_dataset(JIGSAW).folder / "train.csv"
    except NotToBeHad as error:
        raise CompanionError(
            f"Jigsaw's train.csv was not found; get it from the Kaggle competition '{JIGSAW}', and "
            f"put it in datasets/{JIGSAW} below UNLEARN_MIRROR, or name it in the profile under "
            "classifier.file."
        ) from error


_GRADED: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "human_scored": _human_scored,
    "pku_saferlhf": _pku_saferlhf,
    "embedded": _embedded_graded,
}
_NORMAL: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "truthful_qa": _truthful_qa,
    "embedded": _embedded_normal,
}
