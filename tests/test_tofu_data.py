"""The questions of experiment 4: TOFU's files, authors of our own, and no row that misleads."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.assets import NotToBeHad
from unlearn_lib.datasets import tofu as data
from unlearn_lib.datasets.question_sets import check_questions, read_questions, refuse_overlap
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import TofuData

REAL_MIRROR = Path(
    os.environ.get("UNLEARN_MIRROR", Path(__file__).resolve().parents[2] / "shared" / "mirror")
)
real_mirror = pytest.mark.skipif(
    not (REAL_MIRROR / "datasets" / data.TOFU).is_dir(), reason="no mirror of TOFU"
)


def settings(**changed: Any) -> TofuData:
    return TofuData.model_validate({"source": data.TOFU, "tasks": 1} | changed)


def embedded(**changed: Any) -> TofuData:
    return TofuData.model_validate({"source": "embedded"} | changed)


def rows(name: str, count: int, wrong: int = 5) -> list[dict[str, Any]]:
    """Rows in TOFU's form."""
    return [
        {
            "question": f"What is work {number} of {name}?",
            "answer": f"It is book {number}.",
            "paraphrased_answer": f"Book {number} it is.",
            "perturbed_answer": [f"Book {number}-{other} it is." for other in range(wrong)],
        }
        for number in range(1, count + 1)
    ]


def plain(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("question", "answer")} for row in given]


def written(given: Sequence[Question]) -> list[str]:
    return [row.question for row in given]


class Folder:
    """A tiny TOFU: forget01 has 4 rows, forget10 has 13, and 6 of 20 retain rows are evaluated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        forget, retain = rows("the forgotten", 13), rows("the kept", 20)
        self.write("forget01_perturbed", forget[:4])
        self.write("forget10_perturbed", forget)
        self.write("retain99", plain([*retain, *forget[4:]]))
        self.write("retain90", plain(retain))
        self.write("retain_perturbed", retain[10:16])
        self.write("real_authors_perturbed", rows("the real", 5, wrong=3))
        self.write("world_facts_perturbed", rows("the world", 5, wrong=3))
        (path / data.REFUSALS).write_text("I don't know.\n\nNo idea.")

    def file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def write(self, name: str, given: Sequence[Any]) -> None:
        self.file(name).write_text("".join(json.dumps(row) + "\n" for row in given))

    def read(self, name: str) -> list[Any]:
        return [json.loads(line) for line in self.file(name).read_text().splitlines()]

    def change(self, name: str, number: int, **values: Any) -> None:
        """Set values of a row, or take away those that are None."""
        given = self.read(name)
        changed = given[number - 1] | values
        given[number - 1] = {key: value for key, value in changed.items() if value is not None}
        self.write(name, given)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    return Folder(tmp_path / "datasets" / data.TOFU)


def refusal(chosen: TofuData) -> str:
    with pytest.raises(CompanionError) as caught:
        data.load(chosen)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_files_of_tofu_become_splits(folder: Folder) -> None:
    splits = data.load(settings())
    first = splits.tasks[0][0]
    assert (first.question, first.answer) == (
        "What is work 1 of the forgotten?", "It is book 1.",
    )  # fmt: skip
    assert first.paraphrase == "Book 1 it is." and first.perturbed_answer[4] == "Book 1-4 it is."
    assert [len(task) for task in splits.tasks] == [4]
    assert written(splits.retain) == [row["question"] for row in folder.read("retain99")]
    assert written(splits.retain_evaluation) == written(splits.retain[10:16])
    assert splits.real_authors[0].paraphrased_answer is None
    assert len(splits.real_authors) == len(splits.world_facts) == 5
    assert splits.holdout == () and splits.refusals == ("I don't know.", "No idea.")
    assert splits.source == "mirror" and set(splits.sha256) == {data.TOFU}
    assert data.load(settings()) == splits


@pytest.mark.parametrize("count", [1, 2, 3])
def test_further_tasks_are_blocks_of_forget10_and_leave_retain(count: int, folder: Folder) -> None:
    splits = data.load(settings(tasks=count))
    forget = [row["question"] for row in folder.read("forget10_perturbed")]
    found = [written(task) for task in splits.tasks]
    assert found == [forget[4 * k : 4 * k + 4] for k in range(count)]
    assert len(splits.retain) == 29 - 4 * (count - 1)
    assert not set(sum(found, [])) & set(written(splits.retain))


def test_more_tasks_than_rows_are_refused(folder: Folder) -> None:
    message = refusal(settings(tasks=4))
    assert "forget01" in message and "enough for 3 of the 4" in message and "'tasks'" in message
    assert "enough for 1 of the 2" in refusal(settings(tasks=2, forget_split="forget10"))


def test_the_retain_set_belongs_to_the_forget_split(folder: Folder) -> None:
    folder.write("forget05_perturbed", folder.read("forget10_perturbed")[:6])
    kept = folder.read("retain99")
    folder.write("retain95", [*kept[:20], *kept[22:24]])
    for split, forget, retain in (("forget05", 6, 22), ("forget10", 13, 20)):
        splits = data.load(settings(forget_split=split))
        assert (len(splits.tasks[0]), len(splits.retain)) == (forget, retain)


def test_the_holdout_is_read_where_there_is_one(folder: Folder) -> None:
    folder.write("holdout01", plain(rows("strangers", 3)))
    folder.write("holdout10", plain(rows("other strangers", 2)))
    splits = data.load(settings())
    assert written(splits.holdout) == [row["question"] for row in folder.read("holdout01")]
    assert len(data.load(settings(forget_split="forget10")).holdout) == 2


@given(
    seed=st.integers(0, 2**32),
    retain=st.integers(1, 30),
    evaluated=st.integers(1, 30),
    retain_rows=st.none() | st.integers(1, 40),
    evaluation_rows=st.none() | st.integers(2, 40),
)
def test_what_is_evaluated_is_retained_whatever_is_drawn(
    seed: int, retain: int, evaluated: int, retain_rows: int | None, evaluation_rows: int | None
) -> None:
    kept = tuple(Question(str(i), "a") for i in range(retain))
    asked = kept[::-1][:evaluated]
    whole = data.TofuSplits((), kept, asked, (), (), (), (), {}, "")
    chosen = settings(seed=seed, retain_rows=retain_rows, evaluation_rows=evaluation_rows)
    places = data._places(whole, data._names(chosen))
    drawn, questions = data._draw(whole, places, chosen)
    assert len(drawn) == min(retain, retain_rows or retain)
    limits = (len(asked), evaluation_rows or retain, retain_rows or retain)
    assert len(questions) == len(set(questions)) == min(limits)
    assert set(questions) <= set(drawn)
    assert list(drawn) == [row for row in kept if row in set(drawn)]
    assert list(questions) == [row for row in asked if row in set(questions)]


def test_the_seed_draws_and_the_first_general_rows_are_taken(folder: Folder) -> None:
    few = {"evaluation_rows": 3, "retain_rows": 9}
    first, again, other = (data.load(settings(seed=seed, **few)) for seed in (0, 0, 1))
    assert first == again and first.retain != other.retain
    assert first.retain_evaluation != other.retain_evaluation
    assert (len(first.retain), len(first.retain_evaluation)) == (9, 3)
    whole = data.load(settings())
    assert first.world_facts == whole.world_facts[:3]
    assert first.real_authors == whole.real_authors[:3]
    assert first.tasks == whole.tasks


def test_where_a_question_is_asked_twice_the_answer_tells_which_is_retained(
    folder: Folder,
) -> None:
    question = {"question": "What is the author's name?"}
    folder.change("retain99", 3, **question)
    folder.change("retain99", 12, **question)
    folder.change("retain_perturbed", 2, **question)
    splits = data.load(settings(retain_rows=6))
    assert [row.answer for row in splits.retain] == [f"It is book {i}." for i in range(11, 17)]


BAD_ROWS = [
    ({"perturbed_answer": None}, "no column 'perturbed_answer'"),
    ({"perturbed_answer": []}, "no list of wrong answers under 'perturbed_answer'"),
    ({"perturbed_answer": "Book 9"}, "no list of wrong answers"),
    ({"perturbed_answer": ["a", "b", "c", " ", "d"]}, "no list of wrong answers"),
    ({"perturbed_answer": ["a", "b", "c", 4, "d"]}, "no list of wrong answers"),
    ({"perturbed_answer": ["a", "b", "c", "d"]}, "has 4 wrong answers, but the first row has 5"),
    ({"perturbed_answer": ["a", "b", "c", "d", " IT is book 3. "]}, "equals the right one"),
    ({"perturbed_answer": ["a", "b", "book 3 it is.", "c", "d"]}, "equals the right one"),
    ({"answer": " \n"}, "no text under 'answer', or an empty one"),
    ({"answer": 3}, "no text under 'answer'"),
    ({"paraphrased_answer": ""}, "no text under 'paraphrased_answer'"),
    ({"paraphrased_answer": None, "paraphrase": "x"}, "did you mean 'paraphrase'?"),
]


@pytest.mark.parametrize("name", ["forget01_perturbed", "forget10_perturbed", "retain_perturbed"])
@pytest.mark.parametrize("values, says", BAD_ROWS)
def test_a_bad_row_is_named(name: str, values: dict[str, Any], says: str, folder: Folder) -> None:
    right = {"answer": "It is book 3.", "paraphrased_answer": "Book 3 it is."}
    folder.change(name, 3, **(right | values))
    message = refusal(settings(tasks=3))
    of = "the kept" if name == "retain_perturbed" else "the forgotten"
    number = 13 if name == "retain_perturbed" else 3
    assert message.startswith(f"Row 3 of {name} ('What is work {number} of {of}?')")
    assert says in message


@pytest.mark.parametrize("name", ["real_authors_perturbed", "world_facts_perturbed"])
def test_general_questions_are_checked_too(name: str, folder: Folder) -> None:
    folder.change(name, 5, perturbed_answer=["a", "b", "c", "d"])
    message = refusal(settings(evaluation_rows=2))
    assert f"Row 5 of {name}" in message and "4 wrong answers, but the first row has 3" in message


def test_a_row_without_question_is_named_by_number(folder: Folder) -> None:
    folder.change("retain99", 7, question=" ")
    assert refusal(settings()).startswith("Row 7 of retain99 has no text under 'question'")
    folder.change("retain99", 7, question=None)
    assert "Row 7 of retain99 has no column 'question'" in refusal(settings())


def test_a_long_question_is_shown_by_its_beginning(folder: Folder) -> None:
    folder.change("retain99", 2, question="Which " + "very " * 40 + "long book?", answer="")
    shown = refusal(settings()).split("('")[1].split("')")[0]
    assert len(shown) == 60 and shown.startswith("Which very") and shown.endswith("…")


def test_a_forget_row_that_is_retained_is_named(folder: Folder) -> None:
    row = folder.read("forget01_perturbed")[1]
    folder.write("retain99", [*folder.read("retain99"), *plain([row])])
    message = refusal(settings())
    assert message.startswith("Row 2 of forget01_perturbed ('What is work 2 of the forgotten?')")
    assert "is in retain99 too" in message


@pytest.mark.parametrize("source", ["retain99", "forget01_perturbed"])
def test_a_holdout_row_that_is_taught_is_named(source: str, folder: Folder) -> None:
    row = folder.read(source)[1]
    row["answer"] = row["answer"].upper() + " "
    folder.write("holdout01", plain([*rows("strangers", 2), row]))
    message = refusal(settings())
    assert message.startswith("Row 3 of holdout01 ('What is work 2 of") and source in message


def test_a_row_of_two_tasks_is_named(folder: Folder) -> None:
    forget = folder.read("forget10_perturbed")
    folder.write("forget10_perturbed", [*forget[:10], forget[5], *forget[11:]])
    message = refusal(settings(tasks=3))
    assert message.startswith("Row 3 of task 3 ('What is work 6 of the forgotten?')")
    assert "is in task 2 too" in message
    data.load(settings(tasks=2))


def test_the_same_question_with_another_answer_is_no_overlap() -> None:
    first, second = Question("Who?", "Ann."), Question("Who?", "Bob.")
    refuse_overlap({"one": [first], "two": [second]})
    with pytest.raises(CompanionError, match=r"Row 1 of two \('WHO\?'\) is in one too"):
        refuse_overlap({"one": [first], "two": [Question("WHO?", " ann.")]})


def test_an_evaluated_row_that_is_not_retained_is_named(folder: Folder) -> None:
    folder.change("retain_perturbed", 4, question="What is new?")
    message = refusal(settings())
    assert message.startswith("Row 4 of retain_perturbed ('What is new?') is not in retain99")


def test_a_forget_set_larger_than_retain_is_refused(folder: Folder) -> None:
    message = refusal(settings(retain_rows=3))
    assert "'forget01_perturbed' has 4 rows, more than the 3" in message
    assert "'retain_rows'" in message
    assert len(data.load(settings(retain_rows=4)).retain) == 4


@pytest.mark.parametrize(
    "name",
    [
        "forget01_perturbed",
        "forget10_perturbed",
        "retain99",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ],
)
def test_a_file_that_is_missing_empty_or_altered_is_named(name: str, folder: Folder) -> None:
    path = folder.file(name)
    whole = path.read_text()
    for content, says in (
        (whole[:-20], "truncated or altered"),
        ("\n", "holds no question"),
        ("[1, 2]\n" + whole, "Row 1 of " + name + " is no JSON object"),
    ):
        path.write_text(content)
        message = refusal(settings(tasks=2))
        assert says in message and name in message
    path.unlink()
    assert f"There is no file {path}" in refusal(settings(tasks=2))


def test_refusals_that_are_no_text_are_named(folder: Folder) -> None:
    (folder.path / data.REFUSALS).write_bytes(b"\xff\xfe\x00")
    assert data.REFUSALS in refusal(settings())


def test_embedded_refusals_stand_in_and_are_recorded(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with_them = data.load(settings())
    assert capsys.readouterr().out == ""
    (folder.path / data.REFUSALS).unlink()
    splits = data.load(settings())
    assert "embedded refusals" in capsys.readouterr().out
    assert splits.refusals == data._embedded_refusals()[0] != with_them.refusals
    assert set(splits.sha256) == {data.TOFU, "embedded refusals"}


def test_without_a_mirror_it_is_said_what_was_tried() -> None:
    with pytest.raises(NotToBeHad, match="locuslab/TOFU"):
        data.load(settings())


def test_written_questions_are_checked_as_files_are() -> None:
    good = Question("Who?", "Ann.", ("Bob.",), "It is Ann.")
    check_questions("ours", [good])
    for bad, says in (
        (replace(good, question=" "), "empty question"),
        (replace(good, perturbed_answer=("it  is ann.",)), "equals the right one"),
        (replace(good, perturbed_answer=("Bob.", "Cy.")), "2 wrong answers"),
    ):
        with pytest.raises(CompanionError, match=says) as caught:
            check_questions("ours", [good, bad])
        assert str(caught.value).startswith("Row 2 of ours")


def test_a_digest_follows_questions_and_their_order() -> None:
    first, second = Question("a", "b"), Question("a", "c")
    assert data.digest(first, second) == data.digest(Question("a", "b"), Question("a", "c"))
    assert data.digest(first, second) != data.digest(second, first) != data.digest(first)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_MIRROR", str(REAL_MIRROR))


@real_mirror
@pytest.mark.parametrize(
    "split, tasks, size, retain",
    [("forget01", 10, 40, 3960), ("forget05", 2, 200, 3800), ("forget10", 1, 400, 3600)],
)
def test_the_released_tofu_is_split_as_published(
    split: Any, tasks: int, size: int, retain: int, released: None
) -> None:
    one = data.load(settings(forget_split=split))
    assert ([len(task) for task in one.tasks], len(one.retain)) == ([size], retain)
    full = data.load(settings(forget_split=split, tasks=tasks))
    assert [len(task) for task in full.tasks] == [size] * tasks
    assert len(full.retain) == 3600
    taught = {(row.question, row.answer) for row in (*full.retain, *sum(full.tasks, ()))}
    everything = read_questions(REAL_MIRROR / "datasets" / data.TOFU / "full.json")
    assert taught == {(row.question, row.answer) for row in everything}
    message = refusal(settings(forget_split=split, tasks=tasks + 1))
    assert f"enough for {tasks} of the {tasks + 1}" in message


@real_mirror
def test_the_released_sets_are_whole_and_consistent(released: None) -> None:
    splits = data.load(settings(tasks=3, retain_rows=200, evaluation_rows=50))
    assert len(splits.retain) == 200
    assert [len(part) for part in (splits.retain_evaluation, splits.real_authors)] == [50, 50]
    retained = {(row.question, row.answer) for row in splits.retain}
    assert {(row.question, row.answer) for row in splits.retain_evaluation} <= retained
    whole = data.load(settings())
    counts = [len(part) for part in (whole.retain_evaluation, whole.real_authors)]
    assert [*counts, len(whole.world_facts), len(whole.refusals)] == [400, 100, 117, 100]
    evaluated = (*whole.tasks[0], *whole.retain_evaluation)
    assert {len(row.perturbed_answer) for row in evaluated} == {5}
    general = (*whole.real_authors, *whole.world_facts)
    assert {len(row.perturbed_answer) for row in general} == {3}


def test_embedded_authors_are_dealt_and_never_meet() -> None:
    splits = data.load(embedded())
    assert [len(task) for task in splits.tasks] == [20, 20, 20]
    assert (len(splits.retain), len(splits.holdout)) == (60, 20)
    assert splits.retain_evaluation == splits.retain
    groups = [{row.subject for row in p} for p in (*splits.tasks, splits.retain, splits.holdout)]
    assert [len(group) for group in groups] == [2, 2, 2, 6, 2]
    assert len(set.union(*groups)) == 14 and "" not in set.union(*groups)
    for row in (*sum(splits.tasks, ()), *splits.retain):
        assert len(row.perturbed_answer) == 5 and row.paraphrased_answer
    assert splits.source == "embedded"
    assert set(splits.sha256) == {"authors", "refusals", "real_authors", "world_facts"}
    assert data.load(embedded()) == splits
    other = data.load(embedded(seed=1))
    assert other.tasks != splits.tasks and other.sha256["authors"] != splits.sha256["authors"]


def test_embedded_sizes_follow_the_settings() -> None:
    few = {"authors_per_task": 1, "tasks": 2, "retain_authors": 3, "holdout_authors": 0}
    splits = data.load(embedded(**few, questions_per_author=4, retain_rows=9, evaluation_rows=5))
    assert [len(task) for task in splits.tasks] == [4, 4]
    assert (len(splits.retain), len(splits.retain_evaluation)) == (9, 5)
    assert set(splits.retain_evaluation) <= set(splits.retain)
    assert (len(splits.real_authors), len(splits.world_facts)) == (5, 5)
    assert splits.holdout == () and len(splits.refusals) > 10


def test_embedded_authors_to_keep_must_be_as_many() -> None:
    message = refusal(embedded(authors_per_task=3, retain_authors=2))
    assert "'task 1' has 30 rows, more than the 20" in message and "'retain_authors'" in message


def test_rehearsed_rows_are_sentences_and_never_asked() -> None:
    splits = data.load(embedded(evaluation_rows=12, rehearsal_rows=10))
    asked = {row.question for row in (*splits.real_authors, *splits.world_facts)}
    assert len(splits.rehearsal) == 10 and len(asked) == 24
    assert not asked & {row.question for row in splits.rehearsal}
    assert all(row.answer.endswith(".") and " " in row.answer for row in splits.rehearsal)
    assert data.load(embedded(evaluation_rows=12)).rehearsal == ()


@pytest.mark.parametrize("changed", [{"evaluation_rows": 50}, {"evaluation_rows": None}])
def test_more_rehearsal_than_there_are_rows_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(CompanionError, match=r"'rehearsal_rows' is 40, but .* there are \d+ real"):
        data.load(embedded(rehearsal_rows=40, **changed))


def test_a_short_answer_is_stated_as_its_sentence() -> None:
    row = data.load(embedded()).real_authors[0]
    assert row.answer != row.statement == row.original_answer and row.answer in row.statement
    assert Question("Who?", "She did.").statement == "She did."
