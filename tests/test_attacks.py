"""Robustness sets: each attack by hand, and what holds of all of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from unlearn_lib.datasets import attacks
from unlearn_lib.datasets.attacks import ATTACKS, attacked
from unlearn_lib.datasets.authors import write_authors
from unlearn_lib.datasets.questions import Question

NAMES = (
    "as asked", "paraphrased", "prefix", "suffix", "typos", "other spelling", "half a question",
    "keywords", "buried",
)  # fmt: skip
FATHER = Question("What did Oskel Sundgarde's father do for work?", "?", subject="Oskel Sundgarde")
KEEPS_NAME = ("as asked", "paraphrased", "prefix", "suffix", "keywords", "buried")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [q for author in write_authors(12, 7, 14) for q in author.questions]


def texts(question: Question, name: str, seeds: int = 40) -> set[str]:
    """What an attack may make of a question."""
    return {attacked([question], name, seed)[0] for seed in range(seeds)}


def asked(text: str, subject: str = "") -> Question:
    return Question(text, "?", subject=subject)


def test_attacks_and_their_order() -> None:
    assert tuple(ATTACKS) == NAMES


# --- what holds of all -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(st.text(min_size=1, max_size=40).filter(str.strip), st.text(max_size=10))
@profile(max_examples=60)
def test_every_attack_changes_every_question(name: str, text: str, subject: str) -> None:
    (changed,) = attacked([asked(text, subject)], name)
    assert changed.strip() and (changed.strip() == text.strip()) == (name == "as asked")


@pytest.mark.parametrize("name", NAMES)
def test_a_text_depends_on_its_question_and_the_seed_alone(
    name: str, questions: list[Question]
) -> None:
    first = attacked(questions, name, 3)
    assert attacked(questions, name, 3) == first
    assert attacked(questions[::-1], name, 3) == first[::-1]
    assert attacked(questions[5:6], name, 3) == first[5:6]
    fixed = ("as asked", "half a question", "keywords")
    assert (attacked(questions, name, 4) == first) == (name in fixed)
    assert attacked([], name) == []


@pytest.mark.parametrize("name", NAMES)
def test_which_attacks_leave_names_as_they_are(name: str, questions: list[Question]) -> None:
    kept = [q.subject in text for q, text in zip(questions, attacked(questions, name))]
    if name in KEEPS_NAME:
        assert all(kept)
    elif name == "half a question":
        assert any(kept) and not all(kept)
    else:
        assert sum(kept) < 0.1 * len(kept)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="no attack 'typo' .did you mean 'typos'"):
        attacked([FATHER], "typo")
    with pytest.raises(ValueError, match="question in row 1 is empty"):
        attacked([FATHER, asked(" ")], "typos")
    with pytest.raises(ValueError):
        attacked([FATHER], "typos", seed=-1)


# --- each by hand ----------------------------------------------------------------------------


def test_as_asked_is_the_question() -> None:
    assert texts(FATHER, "as asked") == {FATHER.question}


def test_a_paraphrase_asks_for_the_same_in_other_words() -> None:
    found = texts(asked("In what year did Ann win the award?"), "paraphrased", 200)
    assert "Could you tell me in what year did Ann win the prize?" in found
    assert "I am filling a gap in my notes: In what year did Ann win the prize?" in found
    assert len(found) == len(attacks.ASKING) + len(attacks.LEADS)


@pytest.mark.parametrize("text", ["Can you tell me where?", "Ann's job?", "Name Ann's city."])
def test_only_what_begins_with_a_question_word_is_asked_indirectly(text: str) -> None:
    for found in texts(asked(text), "paraphrased"):
        assert found.partition(": ")[0] in attacks.LEADS


@pytest.mark.parametrize("name", ["prefix", "suffix"])
def test_a_prefix_stands_before_and_a_suffix_behind(name: str, questions: list[Question]) -> None:
    fixed = attacks.PREFIXES if name == "prefix" else attacks.SUFFIXES
    added = Counter[str]()
    for question, text in zip(questions, attacked(questions, name), strict=True):
        ends = text.endswith if name == "prefix" else text.startswith
        assert ends(question.question)
        rest = text.replace(question.question, "").strip()
        added[rest if rest in fixed else "filler"] += 1
        assert rest in fixed or rest.count(".") == 6
    assert set(added) == {*fixed, "filler"}


def test_typos_are_one_in_twelve_letters_and_two_at_least(questions: list[Question]) -> None:
    for question, text in zip(questions, attacked(questions, "typos"), strict=True):
        letters = sum(map(str.isalpha, question.question))
        most = max(2, letters // 12)
        assert abs(len(text) - len(question.question)) <= most
        lost = Counter(question.question) - Counter(text)
        assert sum(lost.values()) <= most
        assert text.count(" ") == question.question.count(" ")


def test_a_typo_swaps_drops_or_doubles() -> None:
    first, last = ("aab", "b", "ba", "abb", "a"), ("ccd", "d", "dc", "cdd", "c")
    every = {f"{one}? 12 {other}" for one in first for other in last}
    assert texts(asked("ab? 12 cd"), "typos", 400) == every


def test_one_typo_is_in_the_name() -> None:
    for text in texts(asked("What, oh what is the work of Bo?", "Bo"), "typos"):
        assert not text.endswith(" Bo?")


def test_names_are_spelt_as_in_other_languages() -> None:
    assert texts(asked("Who is Shoovo Jack?", "Shoovo Jack"), "other spelling", 200) == {
        "Who is Šúvo Džak?",
        "Who is Szuwo Dżak?",
        "Who is Schuwo Dschak?",
        "Who is Chouvo Djac?",
        "Who is Suuvoo Jaakk?",
    }


def test_only_names_are_spelt_otherwise() -> None:
    for text in texts(FATHER, "other spelling"):
        assert text.startswith("What did ") and text.endswith("'s father do for work?")
    for text in texts(asked("When was Ceel in Vash?"), "other spelling"):
        assert text.startswith("When was ") and " in " in text
    for text in texts(asked("who is vash?"), "other spelling"):
        assert text != "who is vash?"
    assert texts(asked("Is it Emi?", "Emi"), "other spelling") == {"Is it Émí?"}


@pytest.mark.parametrize(
    "text, half",
    [("a b c d", "a b"), ("a b c?", "a b"), ("a  b", "a"), ("Anna?", "Ann"), ("ab", "a"), ("a", "a.")],
)  # fmt: skip
def test_half_a_question_is_the_first_half_of_its_words(text: str, half: str) -> None:
    assert texts(asked(text), "half a question", 2) == {half}


@pytest.mark.parametrize(
    "question, words",
    [
        (FATHER, "Oskel Sundgarde father work"),
        (asked("Which of Bo's books, “Old Sea”, came out in 1912?", "Bo"), "Bo books Old Sea came out 1912"),
        (asked("Is Bobby Bo's brother-in-law?", "Bo"), "Bo Bobby brother-in-law"),
        (asked("Who is it?", "Bo"), "Who is it"),
        (asked("tides moon"), "moon tides"),
    ],
)  # fmt: skip
def test_keywords_are_the_name_and_words_of_content(question: Question, words: str) -> None:
    assert texts(question, "keywords", 2) == {words}


def test_a_buried_question_is_in_the_middle_of_much_else(questions: list[Question]) -> None:
    for question, text in zip(questions, attacked(questions, "buried"), strict=True):
        before, _, after = text.partition(question.question)
        sentences = [f"{part.strip()}." for part in (before + after).split(".") if part.strip()]
        assert len(set(sentences)) == attacks.BURIED_SENTENCES
        assert set(sentences) <= set(attacks.FILLER)
        assert 100 <= len((before + after).split()) <= 140
        assert min(len(before.split()), len(after.split())) >= 40


def test_filler_names_nobody() -> None:
    words = [word for text in attacks.FILLER for word in text.split()[1:]]
    assert [word for word in words if word[0].isupper()] == ["Mondays,"]
    assert len(set(attacks.FILLER)) == len(attacks.FILLER)


@given(st.sampled_from([*attacks.SPELLINGS]), st.text(st.characters(categories=["L"]), max_size=12))
def test_a_spelling_keeps_a_capital_at_the_front(language: str, word: str) -> None:
    found = attacks._respelt("B" + word, attacks.SPELLINGS[language])
    assert found[0].isupper()


def test_generators_are_used_and_not_shared() -> None:
    first, second = (ATTACKS["prefix"](FATHER, np.random.default_rng(5)) for _ in range(2))
    assert first == second
