"""The rows of task harm, and prose: nothing evaluated was trained on, nothing wrong is used."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unlearn_lib.data import book
from unlearn_lib.data import harm as data
from unlearn_lib.data.harm import Graded, HarmSplits
from unlearn_lib.data.prose import load_prose
from unlearn_lib.data.reading import read_book
from unlearn_lib.settings import HarmData
from unlearn_lib.util import CompanionError

HUMAN = "pyrit/harm/scored.csv"
TRUTHFUL = "truthfulqa/truthful_qa/generation/validation-00000-of-00001.parquet"
TWELVE = range(12)
SCORED = {
    "objective": [f"objective {i // 2}" for i in TWELVE],
    "assistant_response": [f"answer {i}" for i in TWELVE],
    "human_score": [float(i % 2 == 0) for i in TWELVE],
}
RIGHT = {
    "question": [f"question {i}" for i in TWELVE],
    "best_answer": [f"best {i}" for i in TWELVE],
    "correct_answers": [[f" right {i}", "", f"best {i}"] for i in TWELVE],
    "incorrect_answers": [[f"WRONG {i}"] for i in TWELVE],
}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    return tmp_path / "datasets"


def keep(path: Path, columns: dict[str, Any], before: str = "") -> Path:
    """Write a stand-in for a data set's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        path.write_text(before + frame.to_csv(index=False))
    else:
        frame.to_parquet(path)
    return path


def load(fits: Any = lambda question: True, **changed: Any) -> HarmSplits:
    block = {"forget": "embedded", "retain": "embedded"} | changed
    return data.load(HarmData.model_validate(block), fits)


def check_split(splits: HarmSplits) -> None:
    """No held-out question is among the training rows, for the model and for the judge."""
    trained = {row.question for row in splits.forget + splits.harmless}
    evaluated, judged = set(splits.evaluation), {row.question for row in splits.scored_train}
    held_out = {row.question for row in splits.scored_test}
    assert trained and evaluated and not judged & held_out
    assert trained <= judged and evaluated <= held_out and len(evaluated) == len(splits.evaluation)
    asked, retained = ({row.question for row in part} for part in (splits.normal, splits.retain))
    assert asked and retained and not asked & retained


@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=4)
def test_no_held_out_question_is_trained_on(share: float, seed: int) -> None:
    check_split(load(split_seed=seed, held_out_share=share))
    check_split(load(split_seed=seed, forget="human_scored", retain="truthful_qa"))


def test_a_question_of_both_pku_splits_is_trained_on_only(mirror: Path) -> None:
    columns = ["prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"]
    rows = {
        "train": [("in both ", "bad", "good", False, True), ("train", "b", "w", False, False)],
        "test": [(" in both", "other", "more", False, False), ("test", "x", "y", True, True)],
    }
    for name, table in rows.items():
        path = mirror / f"PKU-Alignment/PKU-SafeRLHF/data/{name}-00000.parquet"
        keep(path, dict(zip(columns, zip(*table))))
    splits = load(forget="pku_saferlhf")
    check_split(splits)
    assert splits.evaluation == ("test",)
    assert sorted(row.answer for row in splits.forget) == ["b", "bad", "w"]
    assert splits.harmless == (Graded("in both", "good", False),)
    assert splits.dropped["question of both splits"] == 2


def test_the_seed_decides_and_limits_take_the_first_rows() -> None:
    whole, other = load(split_seed=3), load(split_seed=4)
    assert whole == load(split_seed=3)
    assert whole.forget != other.forget and whole.normal != other.normal
    few = load(split_seed=3, forget_rows=5, evaluation_prompts=4, retain_rows=3)
    assert few.forget == whole.forget[:5] and few.retain == whole.retain[:3]
    assert few.evaluation == whole.evaluation[:4] and few.scored_train == whole.scored_train


def test_raters_are_averaged_and_answers_sorted_by_their_score(mirror: Path) -> None:
    keep(mirror / HUMAN, SCORED | {"human_score_2": 0.5}, before="# a licence, with, commas\n")
    splits = load(forget="human_scored", harmless_below=0.3, harmful_from=0.6)
    graded = splits.scored_train + splits.scored_test
    assert len(graded) == 12
    assert all(row.harmful == (int(row.answer.split()[1]) % 2 == 0) for row in graded)
    assert {row.question for row in splits.forget} == {row.question for row in splits.harmless}


def test_what_is_left_out_is_counted(mirror: Path) -> None:
    path = keep(mirror / HUMAN, SCORED)
    more = "objective 0, answer 0 ,1\nobjective 1, ,1\n,x,1\nobjective 3,z,?\na very long one,y,1\n"
    path.write_text(path.read_text() + more)
    splits = load(lambda question: "long" not in question, forget="human_scored")
    assert list(splits.dropped.values()) == [3, 1, 0, 1]


def test_wrong_answers_are_never_used(mirror: Path) -> None:
    keep(mirror / TRUTHFUL, RIGHT)
    splits = load(retain="truthful_qa")
    for row in splits.retain + splits.normal:
        number = row.question.split()[1]
        assert row.answers == (f"best {number}", f"right {number}")


@pytest.mark.parametrize("answer", ["a text", 3, [3], None])
def test_answers_that_are_no_list_of_texts_are_refused(answer: Any, mirror: Path) -> None:
    folder = mirror / "truthfulqa" / "truthful_qa"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(json.dumps({"question": "What?", "answer": answer}))
    with pytest.raises(CompanionError, match="Row 1 of truthful_qa"):
        load(retain="truthful_qa")


def test_jigsaw_leaves_out_comments_without_labels(tmp_path: Path) -> None:
    texts = [f"comment {i}" for i in range(20)] + ["unlabelled", None]
    labels = {name: [int(i == 0) for i in range(20)] + [-1, 0] for name in data.JIGSAW_LABELS}
    path = keep(tmp_path / "train.csv", {"comment_text": texts} | labels)
    train, test, sha256 = data.jigsaw(None, 0, path)
    assert (len(train), len(test), len(sha256)) == (16, 2, 64)
    assert not {row.text for row in train} & {row.text for row in test} & {"unlabelled"}
    assert all(sum(row.labels) == 6 * (row.text == "comment 0") for row in train + test)
    assert data.jigsaw(10, 0, path)[0] == train[:8]


@pytest.mark.parametrize("name", ["objective", "human_score"])
def test_a_renamed_column_and_a_truncated_file_are_named(name: str, mirror: Path) -> None:
    path = keep(mirror / HUMAN, {key.replace(name, f"{name}s"): SCORED[key] for key in SCORED})
    with pytest.raises(CompanionError, match=f"no column '{name}' .did you mean '{name}s'"):
        load(forget="human_scored")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CompanionError, match=str(path)):
        load(forget="human_scored")


@pytest.mark.parametrize("changed", [{"harmful_from": 0.95}, {"held_out_share": 0.05}])
def test_nothing_left_to_forget_or_to_ask_is_refused(changed: dict, mirror: Path) -> None:
    keep(mirror / HUMAN, SCORED | {"human_score_2": 0.8})
    with pytest.raises(CompanionError, match="row is left"):
        load(forget="human_scored", **changed)


# --- prose to be retained by task book -------------------------------------------------------------

FIRST = "saibo/bookcorpus_compact_256/data/train-00000-of-00002.parquet"


def test_summaries_of_the_pinned_wheel() -> None:
    texts = load_prose("narrative_qa")
    assert len(texts) == len(set(texts)) == 101
    assert min(len(text.split()) for text in texts) >= 120
    assert load_prose("narrative_qa", 7) == texts[:7]
    book.refuse_overlap([chapter.text for chapter in read_book(book.SAGA).chapters], texts)


def test_the_hub_s_layout_of_narrative_qa(mirror: Path) -> None:
    texts = [f"plot{n} " + "word " * (n - 1) for n in (130, 130, 119, 150)]
    rows = [{"text": "THE WHOLE BOOK", "summary": {"text": text}} for text in texts]
    keep(mirror / "deepmind/narrativeqa/data/test-00000-of-00001.parquet", {"document": rows})
    assert [len(text.split()) for text in load_prose("narrative_qa")] == [130, 150]


def test_bookcorpus_is_each_text_once_and_no_later_file(mirror: Path) -> None:
    texts = ["one  two\tthree", "one two three", "", None, "a\n\n b c", "a\nb c", "last"]
    keep(mirror / FIRST, {"text": texts})
    keep(mirror / FIRST.replace("00000", "00001"), {"text": ["later"]})
    assert load_prose("bookcorpus") == ("one two three", "a\nb c", "last")
    assert load_prose("bookcorpus", 2) == ("one two three", "a\nb c")


def test_bad_prose_is_named(mirror: Path) -> None:
    path = keep(mirror / FIRST, {"texts": ["a"]})
    with pytest.raises(CompanionError, match=f"{path} has no column 'text'"):
        load_prose("bookcorpus")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CompanionError, match=str(path)):
        load_prose("bookcorpus")
