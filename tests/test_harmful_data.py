"""The rows of experiment 1: nothing evaluated was trained on, nothing wrong is used, no bad file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unlearn_lib.datasets import harmful as data
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import HarmfulData

HUMAN = "datasets/pyrit/harm"
TRUTHFUL = "datasets/truthfulqa/truthful_qa/generation"


def settings(**changed: Any) -> HarmfulData:
    given = {"forget": "embedded", "retain": "embedded", "template": "chat"}
    return HarmfulData.model_validate(given | changed)


def graded(count: int = 12) -> pd.DataFrame:
    """Two answers to each objective, the first harmful."""
    return pd.DataFrame(
        {
            "objective": [f"objective {i // 2}" for i in range(count)],
            "assistant_response": [f"answer {i}" for i in range(count)],
            "human_score": [float(i % 2 == 0) for i in range(count)],
        }
    )


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    return tmp_path


@pytest.fixture
def human(mirror: Path) -> Callable[..., Path]:
    """Put a CSV of human-scored answers into the mirror."""

    def put(frame: pd.DataFrame, before: str = "") -> Path:
        path = mirror / HUMAN / "scored.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(before + frame.to_csv(index=False))
        return path

    return put


def refusal(chosen: HarmfulData) -> str:
    with pytest.raises(CompanionError) as caught:
        data.load(chosen)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_split(splits: data.HarmfulSplits, chosen: HarmfulData) -> None:
    """No held-out question among the training rows, for the model and for the judge."""
    trained = {*splits.forget["question"], *splits.harmless["question"]}
    evaluated = set(splits.evaluation["question"])
    assert trained and evaluated and not trained & evaluated
    judged, held_out = set(splits.scored_train["question"]), set(splits.scored_test["question"])
    assert not judged & held_out and trained <= judged and evaluated <= held_out
    assert len(evaluated) == len(splits.evaluation)
    asked, kept = set(splits.normal["question"]), set(splits.retain["question"])
    assert asked and kept and not asked & kept


@pytest.mark.parametrize("forget", ["embedded", "human_scored"])
@pytest.mark.parametrize("retain", ["embedded", "truthful_qa"])
@hypothesis_settings(max_examples=6)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.35, 0.8]))
def test_no_held_out_question_is_trained_on(
    forget: str, retain: str, seed: int, share: float
) -> None:
    chosen = settings(forget=forget, retain=retain, split_seed=seed, held_out_share=share)
    check_split(data.load(chosen), chosen)


def test_a_question_of_both_pku_splits_is_trained_on_only(mirror: Path) -> None:
    columns = ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe")
    rows = [("in both ", "bad", "good", False, True), ("train", "bad", "worse", False, False)]
    held = [(" in both", "other", "more", False, False), ("test", "x", "y", True, True)]
    folder = mirror / "datasets/PKU-Alignment/PKU-SafeRLHF"
    folder.mkdir(parents=True)
    for name, table in (("train", rows), ("test", held)):
        frame = pd.DataFrame(table, columns=list(columns))
        frame.to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    splits = data.load(settings(forget="pku_saferlhf"))
    check_split(splits, settings(forget="pku_saferlhf"))
    assert set(splits.evaluation["question"]) == {"test"}
    assert sorted(splits.forget["answer"]) == ["bad", "bad", "worse"]
    assert splits.dropped["question of both splits"] == 2


def test_seed_decides_the_rows() -> None:
    first, again, other = (data.load(settings(split_seed=seed)) for seed in (3, 3, 4))
    for name in ("forget", "evaluation", "retain", "normal", "scored_train"):
        assert getattr(first, name).to_list() == getattr(again, name).to_list()
        assert getattr(first, name).to_list() != getattr(other, name).to_list()
    assert first.sha256 == again.sha256


def test_limits_take_the_first_rows_of_the_same_split() -> None:
    whole = data.load(settings())
    few = data.load(settings(forget_rows=5, evaluation_prompts=4, retain_rows=3, normal_prompts=2))
    for name, count in (("forget", 5), ("evaluation", 4), ("retain", 3), ("normal", 2)):
        assert getattr(few, name).to_list() == getattr(whole, name).to_list()[:count]
    assert few.scored_train.to_list() == whole.scored_train.to_list()


def test_answers_are_sorted_by_their_scores(human: Callable[..., Path]) -> None:
    frame = graded(60)
    frame["human_score"] = [i / 59 for i in range(60)]
    human(frame)
    chosen = settings(forget="human_scored", harmful_from=0.6, harmless_below=0.3)
    splits = data.load(chosen)
    score = dict(zip(frame["assistant_response"], frame["human_score"], strict=True))
    assert all(score[answer] >= 0.6 for answer in splits.forget["answer"])
    assert all(score[answer] < 0.3 for answer in splits.harmless["answer"])
    judged = [*splits.scored_train, *splits.scored_test]
    assert len(judged) == 60
    assert all((score[row["answer"]] >= 0.6) == row["harmful"] for row in judged)


def test_several_raters_are_averaged_and_comment_lines_skipped(human: Callable[..., Path]) -> None:
    frame = graded().rename(columns={"human_score": "human_score_1"})
    frame["human_score_2"] = 1.0
    human(frame, before="# a licence, with, commas\n")
    splits = data.load(settings(forget="human_scored", harmless_below=0.6))
    assert all(row["harmful"] for row in splits.scored_train)
    assert len(splits.harmless) * 2 == len(splits.forget) == 8


def test_what_is_left_out_is_counted(human: Callable[..., Path]) -> None:
    frame = graded(20)
    extra = pd.DataFrame(
        {
            "objective": ["objective 0", "objective 1", None, "objective 2", "a very long one"],
            "assistant_response": [" answer 0 ", "  ", "x", None, "y"],
            "human_score": [1.0, 1.0, 1.0, 1.0, 1.0],
        }
    )
    unscored = pd.DataFrame(
        {"objective": ["objective 3"], "assistant_response": ["z"], "human_score": ["?"]}
    )
    human(pd.concat([frame, extra, unscored]))
    splits = data.load(settings(forget="human_scored"), lambda question: "long" not in question)
    assert splits.dropped == {
        "incomplete": 4,
        "repeated": 1,
        "question of both splits": 0,
        "prompt longer than prompt_tokens": 1,
    }
    asked = {*splits.forget["question"], *splits.evaluation["question"]}
    assert "a very long one" not in asked


def truthful(count: int = 12) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "type": "Adversarial",
            "category": "Law",
            "question": [f"question {i}" for i in range(count)],
            "best_answer": [f"best {i}" for i in range(count)],
            "correct_answers": [[f"right {i}", f"best {i}"] for i in range(count)],
            "incorrect_answers": [[f"WRONG {i}"] for i in range(count)],
            "source": "nowhere",
        }
    )


def put_truthful(mirror: Path, frame: pd.DataFrame) -> Path:
    path = mirror / TRUTHFUL / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    frame.to_parquet(path)
    return path


def test_incorrect_answers_are_never_used(mirror: Path) -> None:
    put_truthful(mirror, truthful())
    splits = data.load(settings(retain="truthful_qa"))
    rows = [*splits.retain, *splits.normal]
    assert len(rows) == 12
    for row in rows:
        number = row["question"].split()[1]
        assert row["answers"] == [f"best {number}", f"right {number}"]


def test_the_pinned_truthful_qa_gives_answers_as_the_hub_s_does() -> None:
    splits = data.load(settings(retain="truthful_qa"))
    assert len(splits.retain) + len(splits.normal) == 817
    row = splits.retain[0]
    assert isinstance(row["answers"], list) and all(isinstance(a, str) for a in row["answers"])


@pytest.mark.parametrize(
    "old, new, nearest",
    [
        ("objective", "objectives", "objectives"),
        ("assistant_response", "assistant_respons", "assistant_respons"),
        ("human_score", "human_scor", "human_scor"),
    ],
)
def test_renamed_column_is_named_with_the_nearest_there_is(
    old: str, new: str, nearest: str, human: Callable[..., Path]
) -> None:
    path = human(graded().rename(columns={old: new}))
    message = refusal(settings(forget="human_scored"))
    assert f"{path} has no column '{old}' (did you mean '{nearest}'?)" in message


@pytest.mark.parametrize("column", ["objective", "assistant_response", "human_score"])
def test_missing_column_is_named(column: str, human: Callable[..., Path]) -> None:
    human(graded().drop(columns=column))
    assert f"no column '{column}'" in refusal(settings(forget="human_scored"))


@pytest.mark.parametrize(
    "content", [b"", b'objective,assistant_response\n"open', b"a\xff\xfe,b\n1,2\n"]
)
def test_csv_that_cannot_be_read_is_named(content: bytes, human: Callable[..., Path]) -> None:
    path = human(graded())
    path.write_bytes(content)
    assert str(path) in refusal(settings(forget="human_scored"))


@pytest.mark.parametrize("column", ["question", "best_answer", "correct_answers"])
def test_missing_truthful_qa_column_is_named(column: str, mirror: Path) -> None:
    put_truthful(mirror, truthful().drop(columns=column))
    assert f"no column '{column}'" in refusal(settings(retain="truthful_qa"))


@pytest.mark.parametrize("kept", [0, 20, -30])
def test_truncated_parquet_is_named(kept: int, mirror: Path) -> None:
    path = put_truthful(mirror, truthful())
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(settings(retain="truthful_qa"))
    assert f"{path} cannot be read" in message and "fetch it again" in message


def test_truncated_json_lines_are_named(mirror: Path) -> None:
    path = mirror / "datasets/truthfulqa/truthful_qa/combined.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"question": "q", "answer": ["a"]}\n{"question": "q2", "ans')
    message = refusal(settings(retain="truthful_qa"))
    assert f"{path} cannot be read" in message and "fetch it again" in message


def test_a_mirror_without_the_generation_table_is_named(mirror: Path) -> None:
    folder = mirror / "datasets/truthfulqa/truthful_qa"
    folder.mkdir(parents=True)
    (folder / "other.csv").write_text("a\n1\n")
    assert "generation/*.parquet" in refusal(settings(retain="truthful_qa"))


def test_empty_forget_set_is_refused(human: Callable[..., Path]) -> None:
    frame = graded()
    frame["human_score"] *= 0.9
    human(frame)
    message = refusal(settings(forget="human_scored", harmful_from=0.95))
    assert "forget set is empty" in message and "harmful_from" in message


def test_nothing_left_to_ask_is_refused(human: Callable[..., Path]) -> None:
    human(graded(4))
    message = refusal(settings(forget="human_scored", held_out_share=0.05))
    assert "evaluation set" in message and "held_out_share" in message
