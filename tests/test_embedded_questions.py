"""The embedded question sets: whole rows, right answers that hold, wrong answers that do not."""

import json
from collections import Counter
from typing import Any

import pytest
import yaml

from unlearn_lib.datasets.files import EMBEDDED, read_lines
from unlearn_lib.datasets.overlap import words_of
from unlearn_lib.datasets.people import is_right, load_people
from unlearn_lib.datasets.question_sets import folded, read_questions
from unlearn_lib.datasets.questions import Question
from unlearn_lib.metrics.text import degenerate

CARDS = EMBEDDED.parents[2] / "data_cards"
CHOICES = {"question": str, "answer": str, "perturbed_answer": list, "original_answer": str}
PEOPLE = {
    "person": str,
    "question": str,
    "answer": str,
    "short": str,
    "paraphrased_answer": str,
    "perturbed_answer": list,
}
FIELDS = {"real_authors": CHOICES, "world_facts": CHOICES, "known_people": PEOPLE}
WRONG = {"real_authors": 3, "world_facts": 3, "known_people": 5}


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_lines(EMBEDDED / f"{name}.jsonl")


def counts_of(name: str) -> dict[str, int]:
    front = (CARDS / f"{name}.md").read_text(encoding="utf-8").split("\n---\n")[0]
    return yaml.safe_load(front)["companion"]["counts"]


def known_authors() -> set[str]:
    """Return the people of `known_people` whom `real_authors` asks about."""
    rows = [row | {"perturbed_answer": []} for row in rows_of("real_authors")]
    texts = json.dumps(rows).replace(". ", ".")
    people = {row["person"] for row in rows_of("known_people")}
    return {person for person in people if person.replace(". ", ".") in texts}


@pytest.mark.parametrize("name", FIELDS)
class TestQuestions:
    def test_every_row_has_its_keys_and_tidy_texts(self, name: str) -> None:
        for row in rows_of(name):
            assert list(row) == list(FIELDS[name]), row
            for key, kind in FIELDS[name].items():
                assert isinstance(row[key], kind)
            for text in (text for v in row.values() for text in ([v] if isinstance(v, str) else v)):
                assert isinstance(text, str) and text == " ".join(text.split()) != ""
            assert row["question"].endswith("?") and row["question"][0].isupper()

    def test_every_row_has_as_many_wrong_answers_and_all_differ(self, name: str) -> None:
        for row in rows_of(name):
            right = row.get("paraphrased_answer", row["answer"])
            texts = {folded(text) for text in (right, row["answer"], *row["perturbed_answer"])}
            rights = len({folded(right), folded(row["answer"])})
            assert len(row["perturbed_answer"]) == WRONG[name]
            assert len(texts) == rights + WRONG[name], row

    def test_no_question_is_asked_twice(self, name: str) -> None:
        asked = Counter(folded(row["question"]) for row in rows_of(name))
        assert max(asked.values()) == 1

    def test_counts_are_those_of_the_card(self, name: str) -> None:
        rows, counts = rows_of(name), counts_of(name)
        assert counts["rows"] == len(rows)
        assert counts["wrong_answers"] == WRONG[name] * len(rows)


@pytest.mark.parametrize("name", ["real_authors", "world_facts"])
class TestChoices:
    def test_there_are_enough(self, name: str) -> None:
        questions = read_questions(EMBEDDED / f"{name}.jsonl", ("perturbed_answer",))
        assert len(questions) >= 50

    def test_answers_are_short_and_the_sentence_holds_them(self, name: str) -> None:
        for row in rows_of(name):
            assert 1 <= len(row["answer"].split()) <= 3 and row["original_answer"].endswith(".")
            said = words_of(row["original_answer"])
            assert set(words_of(row["answer"])) <= set(said), row

    def test_no_wrong_answer_holds_the_right_one(self, name: str) -> None:
        for row in rows_of(name):
            asked = Question(row["question"], row["answer"], short=row["answer"])
            assert not any(is_right(asked, wrong) for wrong in row["perturbed_answer"]), row

    def test_no_question_gives_its_answer_away(self, name: str) -> None:
        for row in rows_of(name):
            assert folded(row["answer"]) not in folded(row["question"]), row


class TestPeople:
    questions, _ = load_people()

    def test_many_people_have_at_least_four_questions_each(self) -> None:
        people = Counter(row.subject for row in self.questions)
        assert len(people) == counts_of("known_people")["people"] >= 60
        assert min(people.values()) >= 4 and len(self.questions) >= 330

    def test_a_person_s_questions_stand_together(self) -> None:
        order = [row.subject for row in self.questions]
        changes = sum(before != after for before, after in zip(order, order[1:], strict=False))
        assert changes + 1 == len(set(order))

    def test_right_answers_hold_the_short_one_and_wrong_ones_do_not(self) -> None:
        for row in self.questions:
            assert is_right(row, row.answer) and is_right(row, row.paraphrase), row
            for wrong in row.perturbed_answer:
                assert row.short.casefold() not in wrong.casefold(), row

    def test_no_question_gives_its_answer_away(self) -> None:
        for row in self.questions:
            assert row.short.casefold() not in row.question.casefold(), row

    def test_a_question_names_the_person_unless_the_person_is_the_answer(self) -> None:
        for row in self.questions:
            assert row.subject in row.question or row.short in row.subject, row

    def test_an_answer_is_a_sentence_and_its_paraphrase_another(self) -> None:
        for row in self.questions:
            assert 6 <= len(row.answer.split()) <= 14, row
            for text in (row.answer, row.paraphrase, *row.perturbed_answer):
                assert text.endswith(".") and text[0].isupper()
            assert row.answer != row.paraphrase

    def test_wrong_answers_keep_the_wording_of_the_paraphrase(self) -> None:
        for row in self.questions:
            kept = set(words_of(row.paraphrase)) - set(words_of(row.short))
            named = set(words_of(row.subject)) if row.short in row.subject else set()
            for wrong in row.perturbed_answer:
                missing = kept - named - set(words_of(wrong))
                assert len(missing) <= 2 and len(kept - missing) >= 3, wrong


def test_the_cards_count_the_people_who_are_real_authors_too() -> None:
    both = len(known_authors())
    assert counts_of("real_authors")["known_people"] == both
    assert counts_of("known_people")["real_authors"] == both


def test_no_question_is_in_two_sets() -> None:
    asked = [folded(row["question"]) for name in FIELDS for row in rows_of(name)]
    assert len(set(asked)) == len(asked)


class TestRefusals:
    rows = rows_of("refusals")
    texts = [row["answer"] for row in rows]

    def test_every_row_is_one_tidy_sentence_or_two(self) -> None:
        for row, text in zip(self.rows, self.texts, strict=True):
            assert list(row) == ["answer"] and text == " ".join(text.split())
            assert text[0].isupper() and text.endswith(".") and 4 <= len(text.split()) <= 14
        assert not degenerate(self.texts).any()

    def test_all_are_distinct(self) -> None:
        assert len({" ".join(words_of(text)) for text in self.texts}) == len(self.texts) >= 50

    def test_counts_are_those_of_the_card(self) -> None:
        words = sum(len(text.split()) for text in self.texts)
        assert counts_of("refusals") == {"rows": len(self.texts), "words": words}
