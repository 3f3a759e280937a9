"""Known people: what counts as known, and who is forgotten, kept or only asked about."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.datasets import people as data
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import PeopleData

ROW = {
    "person": "Ada Lovelace",
    "question": "What was Ada Lovelace's field?",
    "answer": "Her field was mathematics.",
    "short": "mathematics",
    "paraphrased_answer": "She worked in mathematics.",
    "perturbed_answer": [f"She worked in {field}." for field in ("a", "b", "c", "d", "e")],
}


def settings(forget: int = 2, train: int = 1, ask: int = 1, **changed: Any) -> PeopleData:
    sizes = {"forget_people": forget, "neighbours": train, "evaluation_neighbours": ask}
    return PeopleData.model_validate(sizes | changed)


def asked(people: int, each: int = 4) -> list[Question]:
    return [Question(f"{n}?", f"{n}.", subject=f"person {p}") for p in range(people) for n in range(each)]  # fmt: skip


@pytest.mark.parametrize(
    "short, answer, expected",
    [
        ("1847", "Charlotte Brontë wrote it in 1847.", True),
        ("184", "Charlotte Brontë wrote it in 1847.", False),
        ("Jane Eyre", "It is «JANE   eyre»!", True),
        ("Jane Eyre", "Jane and Eyre", False),
        ("Jane Eyre", "Eyre, Jane", False),
        ("Brontë", "Charlotte Bronte", True),
        ("Bronte", "Charlotte BRONTË", True),
        ("J. K. Rowling", "That was J.K. Rowling, I think.", True),
        ("Ulm", "She likes elms and Ulmer.", False),
        ("Ulm", "ulm", True),
        ("Ulm", "", False),
    ],
)
def test_a_right_answer_holds_the_short_one_as_whole_words(
    short: str, answer: str, expected: bool
) -> None:
    assert data.is_right(Question("Who?", "?", short=short), answer) is expected


def test_a_question_without_short_answer_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match=r"'Who\?' has no short answer"):
        data.is_right(Question("Who?", "Ann.", short="?!"), "Ann.")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_people_are_read_with_their_names_and_short_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "people.jsonl", ROW, ROW | {"question": "And her work?"})
    (first, second), sha256 = data.load_people(path)
    assert (first.subject, first.short) == ("Ada Lovelace", "mathematics")
    assert first.paraphrase == ROW["paraphrased_answer"] and len(first.perturbed_answer) == 5
    assert second.question == "And her work?" and len(sha256) == 64


@pytest.mark.parametrize("key", [*data.NEEDED, "question", "answer"])
def test_a_person_s_row_that_lacks_something_is_named(key: str, tmp_path: Path) -> None:
    without = {name: value for name, value in ROW.items() if name != key}
    for row in (without, without | {key: ""}):
        with pytest.raises(CompanionError, match=f"^Row 2 of people.*'{key}'"):
            data.load_people(write(tmp_path / "people.jsonl", ROW, row))


def test_the_embedded_people_are_many_and_their_answers_right() -> None:
    questions, _ = data.load_people()
    assert len({row.subject for row in questions}) >= 12
    for row in questions:
        assert data.is_right(row, row.answer) and data.is_right(row, row.paraphrase), row
        assert not any(data.is_right(row, wrong) for wrong in row.perturbed_answer), row


@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    least=st.integers(1, 4),
    knowledge=st.integers(0, 2**32),
)
def test_known_people_are_dealt_into_parts_that_never_meet(
    seed: int, sizes: tuple[int, int, int], least: int, knowledge: int
) -> None:
    questions = asked(12)
    right = np.random.default_rng(knowledge).random(len(questions)) < 0.8
    chosen = settings(*sizes, least_right=least, seed=seed)
    counts = right.reshape(12, 4).sum(axis=1)
    qualified = int((counts >= least).sum())
    if qualified < sum(sizes):
        with pytest.raises(
            CompanionError, match=f"Of 12 people, {qualified} have at least {least}"
        ):
            data.deal_people(questions, right.tolist(), chosen)
        return
    splits = data.deal_people(questions, right.tolist(), chosen)
    parts = (splits.forget, splits.neighbours, splits.evaluation)
    people = [{row.subject for row in part} for part in parts]
    assert tuple(map(len, people)) == sizes and len(set.union(*people)) == sum(sizes)
    known = [row for row, is_known in zip(questions, right, strict=True) if is_known]
    for part, group in zip(parts, people, strict=True):
        assert list(part) == [row for row in known if row.subject in group]
        assert all(counts[int(person.split()[1])] >= least for person in group)
    assert splits.counts == {
        "questions": 48, "right": int(right.sum()), "people": 12, "qualified": qualified,
    }  # fmt: skip


def test_the_seed_deals() -> None:
    questions, right = asked(8), [True] * 32
    first, again, other = (
        data.deal_people(questions, right, settings(seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again and first.forget != other.forget


def test_too_few_known_people_are_counted() -> None:
    right = [True, True, True, False] * 3 + [True, True, False, False]
    with pytest.raises(CompanionError) as caught:
        data.deal_people(asked(4), right, settings())
    message = str(caught.value)
    assert message.startswith("Of 4 people, 3 have at least 3 questions")
    assert "asks for 4" in message and "'least_right'" in message and "\n" not in message


def test_every_question_needs_its_verdict() -> None:
    with pytest.raises(ValueError, match="32 questions, but 31 verdicts"):
        data.deal_people(asked(8), [True] * 31, settings())


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Hamlet is by Shakespeare. He wrote it in London.", "Hamlet is by Shakespeare."),
        (
            "A good question! William Shakespeare wrote",
            "A good question! William Shakespeare wrote",
        ),
        ("It was W. Shakespeare, I think. Or not", "It was W. Shakespeare, I think."),
        ("  Shakespeare\n did.  ", "Shakespeare did."),
        ("Marlowe wrote it.", "Shakespeare wrote Hamlet."),
        ("", "Shakespeare wrote Hamlet."),
    ],
)
def test_a_right_answer_is_taken_as_far_as_its_sentence(said: str, kept: str) -> None:
    row = Question("Who wrote Hamlet?", "Shakespeare wrote Hamlet.", short="Shakespeare")
    assert data.as_answered(row, said).answer == kept
