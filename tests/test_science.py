"""The multiple-choice task: facts that nothing gives away, and WMDP and MMLU from their files."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from unlearn_lib.assets import NotToBeHad
from unlearn_lib.datasets import science as data
from unlearn_lib.datasets.files import read_lines
from unlearn_lib.datasets.overlap import words_of
from unlearn_lib.datasets.question_sets import folded
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings.eco import ScienceData

ROWS = read_lines(data.INVENTED)
FIELDS = {"quellandry": "forget", "maundelry": "retain"}
TERMS = {
    "quellandry": ("quelland", "quellhouse", "drovel", "ismure", "pirrin"),
    "maundelry": ("maundel", "sollow", "tarrick", "ommel", "gaunel"),
}
NUMBERS = {
    word: number
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split(),
        start=2,
    )
} | {"thirty": 30, "fifty": 50}
Rule = Callable[[str, str], Any]
RULES: dict[str, Rule] = {
    "length": lambda question, choice: len(choice),
    "words": lambda question, choice: len(choice.split()),
    "alphabet": lambda question, choice: choice.casefold(),
    "last letters": lambda question, choice: choice.casefold()[::-1],
    "number": lambda question, choice: NUMBERS.get(choice.split()[0], 0),
    "vowels": lambda question, choice: sum(letter in "aeiou" for letter in choice),
    "letters of the question": lambda question, choice: len(set(choice) & set(question)),
}


def asked(row: dict[str, Any]) -> list[str]:
    return [row["question"], *row["rephrased"]]


def accuracy(rule: Rule, rows: list[dict[str, Any]], most: bool) -> float:
    """How often the choice that a rule likes most (or least) is right; ties share."""
    hits = 0.0
    for row in rows:
        values = [rule(row["question"], choice) for choice in (row["answer"], *row["wrong"])]
        best = max(values) if most else min(values)
        hits += (values[0] == best) / values.count(best)
    return hits / len(rows)


class TestInventedScience:
    def test_every_row_has_its_keys_and_tidy_texts(self) -> None:
        for row in ROWS:
            assert list(row) == list(data.INVENTED_COLUMNS)
            assert row["role"] == FIELDS[row["field"]]
            assert len(row["rephrased"]) == 2 and len(row["wrong"]) == 3
            for text in (*asked(row), row["answer"], *row["wrong"], row["statement"]):
                assert text == " ".join(text.split()) != ""
            assert all(text[0].isupper() and text.endswith("?") for text in asked(row))
            assert row["statement"][0].isupper() and row["statement"].endswith(".")
            assert 1 <= len(row["answer"].split()) <= 5

    def test_each_field_has_48_facts(self) -> None:
        assert Counter(row["field"] for row in ROWS) == dict.fromkeys(FIELDS, 48)

    def test_no_text_twice(self) -> None:
        texts = [" ".join(words_of(text)) for row in ROWS for text in asked(row)]
        texts += [" ".join(words_of(row["statement"])) for row in ROWS]
        assert len(set(texts)) == len(texts) == 4 * 96

    def test_questions_follow_no_template(self) -> None:
        openings = Counter(" ".join(text.split()[:3]) for row in ROWS for text in asked(row))
        assert max(openings.values()) <= 12 and len(openings) > 180
        for row in ROWS:
            first, *others = (set(words_of(text)) for text in asked(row))
            assert all(len(first & other) / len(first | other) < 0.75 for other in others), row

    def test_every_phrasing_tells_its_field_and_no_other(self) -> None:
        for row in ROWS:
            for text in asked(row):
                found = {
                    field
                    for field, terms in TERMS.items()
                    if any(term in text.casefold() for term in terms)
                }
                assert found == {row["field"]}, text

    def test_a_classifier_tells_the_field_of_a_fact_it_has_not_seen(self) -> None:
        texts = [text for row in ROWS for text in asked(row)]
        fields = [row["field"] for row in ROWS for _ in asked(row)]
        facts = [number for number, row in enumerate(ROWS) for _ in asked(row)]
        judge = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
        assert cross_val_score(judge, texts, fields, groups=facts, cv=GroupKFold(4)).mean() > 0.97

    def test_facts_are_independent(self) -> None:
        """Each fact has a word of its own in all its texts, and none holds another's answer."""
        texts = [set(words_of(row["statement"])) for row in ROWS]
        for number, row in enumerate(ROWS):
            others = [set(words_of(t)) for r in ROWS if r is not row for t in asked(r)]
            others += texts[:number] + texts[number + 1 :]
            own = texts[number].intersection(*(words_of(t) for t in asked(row)))
            assert own.difference(*others), row
        everything = [folded(text) for row in ROWS for text in asked(row)]
        for row in ROWS:
            assert not any(folded(row["answer"]) in text for text in everything), row
            assert folded(row["answer"]) in folded(row["statement"]), row
            said = [r for r in ROWS if folded(row["answer"]) in folded(r["statement"])]
            assert said == [row]

    @pytest.mark.parametrize("field", FIELDS)
    def test_a_choice_is_right_once_and_wrong_three_times(self, field: str) -> None:
        rows = [row for row in ROWS if row["field"] == field]
        right = Counter(row["answer"] for row in rows)
        wrong = Counter(choice for row in rows for choice in row["wrong"])
        assert set(right.values()) == {1} and set(wrong.values()) == {3}
        assert set(right) == set(wrong)
        assert all(len({row["answer"], *row["wrong"]}) == 4 for row in rows)

    def test_the_fields_share_no_choice(self) -> None:
        assert len({folded(row["answer"]) for row in ROWS}) == 96

    @pytest.mark.parametrize("first", range(0, 96, 6))
    def test_six_rows_draw_on_each_other_s_answers(self, first: int) -> None:
        group = ROWS[first : first + 6]
        answers = {row["answer"] for row in group}
        assert {choice for row in group for choice in row["wrong"]} == answers

    @pytest.mark.parametrize("most", [True, False])
    @pytest.mark.parametrize("rule", RULES)
    def test_no_rule_about_choices_beats_chance(self, rule: str, most: bool) -> None:
        for field in FIELDS:
            rows = [row for row in ROWS if row["field"] == field]
            assert accuracy(RULES[rule], rows, most) == pytest.approx(0.25, abs=0.08), field
        assert accuracy(RULES[rule], ROWS, most) == pytest.approx(0.25, abs=0.06)


def embedded(**changed: Any) -> data.ScienceSplits:
    return data.load(ScienceData.model_validate(changed))


def test_the_invented_science_becomes_splits() -> None:
    splits = embedded()
    assert splits.source == "embedded" and splits.dropped == {} and splits.rehearsal == ()
    assert [len(part) for part in (splits.forget, splits.retain, splits.general)] == [48, 48, 120]
    first, row = splits.forget[0], ROWS[0]
    assert (first.question, first.answer, first.short) == (
        row["question"], row["answer"], row["answer"],
    )  # fmt: skip
    assert list(first.perturbed_answer) == row["wrong"]
    assert (first.statement, first.subject) == (row["statement"], splits.topic)
    assert splits.topic == "quellandry"
    assert {question.subject for question in splits.retain} == {"maundelry"}
    assert all(len(question.perturbed_answer) == 3 for question in splits.general)
    assert set(splits.phrasings) == {q.question for q in (*splits.forget, *splits.retain)}
    assert list(splits.phrasings[first.question]) == row["rephrased"]
    assert set(splits.sha256) == {"invented_science", "real_authors", "world_facts"}
    assert embedded() == splits


def test_rows_are_limited_and_rehearsal_comes_after_the_general_ones() -> None:
    whole, splits = embedded(), embedded(rows=6, general_rows=20, rehearsal_rows=10)
    assert (splits.forget, splits.retain) == (whole.forget[:6], whole.retain[:6])
    assert len(splits.phrasings) == 12
    assert splits.general == (*whole.general[:10], *whole.general[60:70])
    after = (*whole.general[10:15], *whole.general[70:75])
    assert [(q.question, q.answer) for q in splits.rehearsal] == [
        (q.question, q.statement) for q in after
    ]
    assert embedded(rows=1000, general_rows=1000).general == whole.general


@pytest.mark.parametrize("general", [None, 120, 100])
def test_too_few_rows_for_rehearsal_are_counted(general: int | None) -> None:
    left = 10 if general == 100 else 0
    with pytest.raises(CompanionError, match=f"'rehearsal_rows' is 24.*{left} real authors"):
        embedded(general_rows=general, rehearsal_rows=24)


def choice_rows(subject: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows in the form of WMDP; the right choice is `right`, and stands in another place each."""
    rows = []
    for number in range(first, first + count):
        choices = [f"wrong {number}-{other}" for other in range(3)]
        choices.insert(number % 4, f"right {number}")
        question = f"Secret {number} of {subject}?"
        rows.append({"question": question, "choices": choices, "answer": number % 4})
    return rows


class Mirror:
    """A mirror with three questions a subject of WMDP and two a subject of MMLU."""

    def __init__(self, path: Path) -> None:
        self.path = path / "datasets"
        for subject in data.NEIGHBOURS:
            self.write(data.WMDP, f"wmdp-{subject}", choice_rows(subject, 3))
        for subject in (*data.NEIGHBOURS.values(), *data.GENERAL_SUBJECTS):
            rows = [row | {"subject": subject} for row in choice_rows(subject, 2)]
            self.write(data.MMLU, subject, rows)

    def file(self, name: str, folder: str) -> Path:
        return self.path / name / folder / "test-00000-of-00001.parquet"

    def write(self, name: str, folder: str, rows: list[dict[str, Any]]) -> None:
        path = self.file(name, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    monkeypatch.setattr(data, "GENERAL_SUBJECTS", ("jurisprudence", "prehistory"))
    return Mirror(tmp_path)


def released(**changed: Any) -> data.ScienceSplits:
    return data.load(ScienceData.model_validate({"source": "wmdp"} | changed))


def refusal(*subjects: str) -> str:
    with pytest.raises(CompanionError) as caught:
        released(subjects=subjects or ("bio",))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert "Secret" not in message and "right" not in message
    return message


def test_wmdp_is_forgotten_and_mmlu_is_kept(mirror: Mirror) -> None:
    splits = released()
    assert [row.question for row in splits.forget[:4]] == [
        "Secret 0 of bio?", "Secret 0 of chem?", "Secret 0 of cyber?", "Secret 1 of bio?",
    ]  # fmt: skip
    assert len(splits.forget) == 9 and len(splits.retain) == 6 and len(splits.general) == 4
    second = splits.forget[3]
    assert second.answer == "right 1" and second.subject == "wmdp-bio"
    assert second.perturbed_answer == ("wrong 1-0", "wrong 1-1", "wrong 1-2")
    assert [row.subject for row in splits.retain[:3]] == list(data.NEIGHBOURS.values())
    assert [row.subject for row in splits.general] == ["jurisprudence", "prehistory"] * 2
    assert splits.rehearsal == () and splits.phrasings == {} and splits.source == "mirror"
    assert set(splits.sha256) == {data.WMDP, data.MMLU}
    assert set(splits.dropped.values()) == {0} and len(splits.dropped) == 8


def test_chosen_subjects_take_turns_up_to_the_limits(mirror: Mirror) -> None:
    mirror.write(data.WMDP, "wmdp-chem", choice_rows("chem", 1))
    splits = released(subjects=("chem", "bio"), rows=4, general_rows=4)
    assert [row.question for row in splits.forget] == [
        "Secret 0 of chem?", "Secret 0 of bio?", "Secret 1 of bio?", "Secret 2 of bio?",
    ]  # fmt: skip
    assert {row.subject for row in splits.retain} == {
        "high_school_chemistry", "high_school_biology",
    }  # fmt: skip
    assert len(splits.retain) == len(splits.general) == 4
    assert splits.topic == "hazardous chemistry, hazardous biology"


def test_a_row_with_a_choice_twice_is_left_out_and_counted(mirror: Mirror) -> None:
    rows = choice_rows("bio", 3)
    rows[1]["choices"][0] = f"{rows[1]['choices'][3]}\u00a0 "
    mirror.write(data.WMDP, "wmdp-bio", rows)
    splits = released(subjects=("bio",))
    assert [row.answer for row in splits.forget] == ["right 0", "right 2"]
    assert splits.dropped["wmdp-bio"] == 1 and sum(splits.dropped.values()) == 1


def test_choices_that_differ_in_case_are_different(mirror: Mirror) -> None:
    genes = [{"question": "?", "choices": ["AaBb", "AABB", "aabb", "AaBB"], "answer": 3}]
    mirror.write(data.MMLU, "high_school_biology", genes)
    assert released(subjects=("bio",)).retain[0].answer == "AaBB"


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"choices": ["Secret", "b", "c"]}, "four choices"),
        ({"choices": ["Secret", "b", "c", "d", "e"]}, "four choices"),
        ({"choices": ["Secret", "b", "", "d"]}, "four choices"),
        ({"choices": None}, "four choices"),
        ({"question": "  "}, "four choices"),
        ({"answer": 4}, "no answer from 0 to 3"),
        ({"answer": -1}, "no answer from 0 to 3"),
    ],
)
def test_a_bad_row_is_named_by_its_number_alone(
    changed: dict[str, Any], told: str, mirror: Mirror
) -> None:
    first, second, third = choice_rows("bio", 3)
    mirror.write(data.WMDP, "wmdp-bio", [first, second | changed, third])
    message = refusal()
    assert message.startswith("Row 2 of ") and told in message
    assert "wmdp-bio/test-00000-of-00001.parquet" in message


def test_an_answer_that_is_a_letter_is_refused(mirror: Mirror) -> None:
    rows = [row | {"answer": "B"} for row in choice_rows("bio", 2)]
    mirror.write(data.MMLU, "high_school_biology", rows)
    assert refusal().startswith("Row 1 of ")


@pytest.mark.parametrize("column", data.COLUMNS)
def test_a_missing_column_is_named(column: str, mirror: Mirror) -> None:
    rows = [{k: v for k, v in row.items() if k != column} for row in choice_rows("bio", 2)]
    mirror.write(data.WMDP, "wmdp-bio", rows)
    assert f"has no column '{column}'" in refusal()


def test_files_that_are_missing_empty_or_cut_are_named(mirror: Mirror) -> None:
    path = mirror.file(data.MMLU, "prehistory")
    path.write_bytes(path.read_bytes()[:200])
    assert "prehistory/test-00000-of-00001.parquet cannot be read" in refusal()
    path.unlink()
    assert "'cais/mmlu'" in refusal() and "no file prehistory/test-*.parquet" in refusal()
    repeated = {"question": "Secret?", "choices": ["a"] * 4, "answer": 0}
    mirror.write(data.MMLU, "prehistory", [repeated])
    assert "holds no question with four choices" in refusal()


def test_an_unknown_subject_is_refused_by_the_settings() -> None:
    with pytest.raises(ValidationError, match="'bio', 'chem' or 'cyber'"):
        ScienceData.model_validate({"source": "wmdp", "subjects": ["bio", "cybr"]})


def test_without_a_mirror_wmdp_is_not_to_be_had() -> None:
    with pytest.raises(NotToBeHad, match="The data set 'cais/wmdp' was not found"):
        released()
