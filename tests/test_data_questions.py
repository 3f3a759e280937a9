"""Questions: files that are read or refused, fictitious authors, TOFU's files, known people."""

import gzip
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unlearn_lib.data import people, questions, tofu
from unlearn_lib.data.authors import ATTRIBUTES, phrasings, write_authors
from unlearn_lib.data.questions import Question, folded, read_questions, read_table, refuse_overlap
from unlearn_lib.data.words import holds
from unlearn_lib.settings import AuthorsData, PeopleData
from unlearn_lib.util import EMBEDDED, CompanionError

QUESTION_FILES = ("real_authors", "world_facts", "known_people", "invented_science")


def rows(name: str, count: int, wrong: int = 5) -> list[dict[str, Any]]:
    """Rows in TOFU's form."""
    return [
        {
            "question": f"What is work {number} of {name}?",
            "answer": f"It is book {number}.",
            "paraphrased_answer": f"Book {number} it is.",
            "perturbed_answer": [f"Book {number}-{other} it is." for other in range(wrong)],
        }
        for number in range(count)
    ]


def plain(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("question", "answer")} for row in table]


def write(path: Path, table: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def asked(questions: Any) -> list[str]:
    return [row.question for row in questions]


# --- one question, one file --------------------------------------------------------------------


def test_what_a_question_says_of_itself() -> None:
    bare, full = Question("Q?", "a"), Question("Q?", "a", (), "b", "Ann", "", "It is a.")
    assert (bare.paraphrase, bare.statement, bare.cluster) == ("a", "a", "Q?")
    assert (full.paraphrase, full.statement, full.cluster) == ("b", "It is a.", "Ann")


def test_rows_become_questions(tmp_path: Path) -> None:
    row = rows("a", 1, wrong=2)[0] | {"person": "Ann", "short": "0", "other": 3}
    path = write(tmp_path / "set.jsonl", [row])
    (whole,) = read_questions(path, ("perturbed_answer", "person", "short"))
    wrong, paraphrase = ("Book 0-0 it is.", "Book 0-1 it is."), "Book 0 it is."
    assert whole == Question(row["question"], row["answer"], wrong, paraphrase, "Ann", "0")
    (few,) = read_questions(path)
    assert (few.perturbed_answer, few.subject) == ((), "")


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
@hypothesis_settings(max_examples=30)
def test_texts_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    pairs = [(f"{one}?", f"{other}.") for one, other in pairs]
    path = tmp_path_factory.mktemp("files") / "set.jsonl"
    write(path, [{"question": one, "answer": other} for one, other in pairs])
    assert [(row.question, row.answer) for row in read_questions(path)] == pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "Row 2 of set.jsonl .*'question'"),
        ({"paraphrased_answer": None}, "Row 2 of set.jsonl .*'paraphrased_answer'"),
        ({"perturbed_answer": "no list"}, "Row 2 of set.jsonl .*'perturbed_answer'"),
        ({"perturbed_answer": ["one"]}, "Row 2 of set.jsonl has not as many wrong answers"),
        ({"perturbed_answer": ["x", " BOOK 1  it is."]}, "Row 2 .* equals the right one"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    first, second = rows("a", 2, wrong=2)
    path = write(tmp_path / "set.jsonl", [first, second | change])
    with pytest.raises(CompanionError, match=message):
        read_questions(path, ("perturbed_answer",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "a.jsonl is missing"),
        ("a.jsonl", '{"question": "Q?", "answ', "a.jsonl is missing or altered"),
        ("a.jsonl", '{"question": "Q?", "anser": "a"}\n', "no column 'answer' .*'anser'"),
        ("a.parquet", "PAR1", "a.parquet is missing or altered"),
        ("a.jsonl.gz", "no gzip", "a.jsonl.gz is missing or altered"),
        ("a.jsonl", "null", "no column 'question'"),
        ("a.jsonl", "1\n2\n", "no column 'question'"),
        ("a.csv", b"question,answer\nWho?,Bront\xeb\n", "can.t decode byte 0xeb .* in UTF-8"),
        ("a.jsonl", '{"question": "Q?", "answer": "a"}'.encode("utf-16-le"), "in UTF-8"),
        ("a.csv", "question,answer\nWho?,Ann,Bo\nWhen?,1,2\n", "more cells than its header"),
        (
            "a.jsonl",
            '{"answer": "a", "question": "x"}\n{"question": "\\ud83dx"}',
            "it holds half a character, .ud83d",
        ),
        ("a.jsonl", '{"question": "\\ud83d\\ude00 \\\\ud83d", "anser": ""}', "no column 'answer'"),
        ("a.jsonl", '[{"question": "\\udfff"}]', "it holds half a character, .udfff"),
        ("a.json", '{"rows": [{"question": "Q?", "answer": "a"}]}', "no column 'question'"),
    ],
)
def test_a_bad_file_is_named(
    name: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CompanionError, match=message):
        read_table(tmp_path / name, ("question", "answer"))


def test_a_file_without_rows_is_refused_and_lists_of_parquet_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n")
    with pytest.raises(CompanionError, match="a.csv holds no questions"):
        read_questions(tmp_path / "a.csv")
    pd.DataFrame(rows("a", 2)).to_parquet(tmp_path / "a.parquet")
    wrong = [
        row.perturbed_answer for row in read_questions(tmp_path / "a.parquet", (questions.WRONG,))
    ]
    assert wrong == [tuple(row[questions.WRONG]) for row in rows("a", 2)]


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl", "array.json", "set.csv.gz"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_its_form_and_no_text_is_taken_for_nothing(
    name: str, codec: str, tmp_path: Path
) -> None:
    answers = ["NA", "None", "null", "nan", "N/A", "007", "1e5", "True", "Brontë"]
    table = [{"question": f"Code {i}?", "answer": answer} for i, answer in enumerate(answers)]
    if ".csv" in name:
        text = "question,answer\r\n" + "".join(f"{q},{a}\r\n" for q, a in map(dict.values, table))
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in table]
        text = "\n".join(lines) if "l" in name else f"\n[{', '.join(lines)}]"
    data = text.encode(codec)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    read = read_questions(tmp_path / name)
    assert [{"question": row.question, "answer": row.answer} for row in read] == table


@pytest.mark.parametrize(
    "text", ["\u200b", "\ufeff \u200d", "\u00ad", "\u3164", "\u0301", "\ue000"]
)
def test_texts_that_nobody_can_see_are_refused(text: str, tmp_path: Path) -> None:
    for name in ("answer", "perturbed_answer"):
        row = rows("a", 1)[0] | {name: text if name == "answer" else ["right", text] + ["x"] * 3}
        path = write(tmp_path / "set.jsonl", [row])
        with pytest.raises(CompanionError, match=f"Row 1 of set.jsonl .*'{name}'"):
            read_questions(path, ("perturbed_answer",))


@pytest.mark.parametrize("change", [str, str.upper, "{}  ".format, "\u200b{}".format, decomposed])
def test_rows_twice_in_a_set_and_questions_of_two_sets_are_refused(
    change: Callable[[str], str],
) -> None:
    one, other = Question("Who is Zoë?", "Ann."), Question("Who is Zoë?", "Bo.")
    again = Question(change(one.question), change(one.answer))
    refuse_overlap({"forget": [one, other], "retain": [Question("Who?", "Ann.")]})
    with pytest.raises(CompanionError, match="Row 3 of forget asks what row 1 of forget asks"):
        refuse_overlap({"forget": [one, other, again], "retain": []})
    for pair in ("forget", "retain"), ("retain", "holdout"):
        with pytest.raises(
            CompanionError, match=f"Row 1 of {pair[1]} asks what row 1 of {pair[0]}"
        ):
            refuse_overlap({pair[0]: [other], pair[1]: [again]})


# --- what the package brings -------------------------------------------------------------------


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_embedded_questions_are_whole_and_asked_once(name: str) -> None:
    table = read_table(EMBEDDED / f"{name}.jsonl").to_dict("records")
    assert max(Counter(folded(row["question"]) for row in table).values()) == 1
    for row in table:
        wrong = row.get("perturbed_answer", row.get("wrong"))
        right = {folded(row["answer"]), folded(row.get("paraphrased_answer", row["answer"]))}
        assert len(right | set(map(folded, wrong))) == len(right) + len(wrong)
        texts = [text for cell in row.values() for text in ([cell] if cell is str(cell) else cell)]
        assert all(text == " ".join(text.split()) != "" for text in texts)


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, len(ATTRIBUTES)))
@hypothesis_settings(max_examples=8, deadline=None)
def test_an_author_depends_on_seed_and_place_alone(seed: int, count: int, questions: int) -> None:
    authors = write_authors(8, seed, len(ATTRIBUTES))
    for few, author in zip(write_authors(count, seed, questions), authors):
        assert few.attributes == author.attributes
        assert few.questions == author.questions[:questions]


def test_facts_of_an_author_agree_and_wrong_answers_are_wrong() -> None:
    for author in write_authors(60, 0, len(ATTRIBUTES)):
        facts = author.attributes
        assert tuple(facts) == ATTRIBUTES and len(set(facts.values())) == len(ATTRIBUTES)
        years = [int(facts[key]) for key in ("birth_year", "first_book_year", "award_year")]
        assert years == sorted(set(years))
        wordings = phrasings(author)
        for place, row in enumerate(author.questions):
            assert row.subject == row.cluster == author.name
            assert row.short == facts[ATTRIBUTES[place]] and row.short in row.answer
            assert row.question in wordings[place] and len(set(row.perturbed_answer)) == 5
            assert not any(holds(wrong, row.short) for wrong in row.perturbed_answer)
    with pytest.raises(CompanionError, match="2520 authors and 14 questions"):
        write_authors(2521, 0)


# --- splits ------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny TOFU: forget01 has 4 rows, forget10 has 13, 6 of 20 retain rows are evaluated."""
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    folder = tmp_path / "datasets" / tofu.TOFU
    forget, retain = rows("the forgotten", 13), rows("the kept", 20)
    for name, table in {
        "forget01_perturbed": forget[:4],
        "forget10_perturbed": forget,
        "retain99": plain([*retain, *forget[4:]]),
        "retain90": plain(retain),
        "retain_perturbed": retain[10:16],
        "real_authors_perturbed": retain[:5],
        "world_facts_perturbed": retain[5:9],
    }.items():
        write(folder / f"{name}.json", table)
    (folder / tofu.REFUSALS).write_text("I don't know.\n\nNo idea.")
    return folder


def hub(**changes: Any) -> AuthorsData:
    return AuthorsData.model_validate({"source": tofu.TOFU, "tasks": 1} | changes)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_further_tasks_are_blocks_of_forget10_and_leave_retain(count: int, released: Path) -> None:
    splits = tofu.load(hub(tasks=count))
    forget = asked(read_questions(released / "forget10_perturbed.json"))
    assert [asked(task) for task in splits.tasks] == [
        forget[4 * place : 4 * place + 4] for place in range(count)
    ]
    assert len(splits.retain) == 29 - 4 * (count - 1)
    assert not {row for task in splits.tasks for row in asked(task)} & set(asked(splits.retain))
    assert asked(splits.retain_evaluation) == asked(splits.retain[10:16])
    assert splits.refusals == ("I don't know.", "No idea.") and splits.holdout == ()
    assert len(splits.real_authors) == 5
    with pytest.raises(CompanionError, match="too few for 4 tasks"):
        tofu.load(hub(tasks=4))


def test_what_is_evaluated_must_be_taught_and_refusals_must_be_texts(released: Path) -> None:
    for content in (b" \n", b"\xff\n"):
        (released / tofu.REFUSALS).write_bytes(content)
        with pytest.raises(CompanionError, match="holds no refusals"):
            tofu.load(hub())
    write(released / "retain_perturbed.json", rows("another", 2))
    with pytest.raises(CompanionError, match="asks 2 rows that retain99 has not"):
        tofu.load(hub())


@given(st.integers(0, 2**32), st.none() | st.integers(8, 40), st.none() | st.integers(2, 40))
@hypothesis_settings(max_examples=8, deadline=None)
def test_what_is_evaluated_is_retained(
    seed: int, retain: int | None, evaluation: int | None
) -> None:
    drawn = {"seed": seed, "retain_rows": retain, "evaluation_rows": evaluation}
    block = AuthorsData.model_validate({"source": "embedded", "retain_authors": 2} | drawn)
    whole = tofu.load(block.model_copy(update={"retain_rows": None, "evaluation_rows": None}))
    splits = tofu.load(block)
    assert len(splits.retain) == min(20, retain or 20)
    assert len(splits.retain_evaluation) == min(20, retain or 20, evaluation or 20)
    assert set(splits.retain_evaluation) <= set(splits.retain)
    assert list(splits.retain) == [row for row in whole.retain if row in set(splits.retain)]
    assert splits.world_facts == whole.world_facts[:evaluation]


def test_embedded_authors_are_dealt_whole() -> None:
    splits = tofu.load(AuthorsData(source="embedded"))
    parts = (*splits.tasks, splits.retain, splits.holdout)
    subjects = [{row.subject for row in part} for part in parts]
    assert [len(names) for names in subjects] == [2, 2, 2, 6, 2]
    assert len(set().union(*subjects)) == 14
    refuse_overlap({str(place): part for place, part in enumerate(parts)})


def test_own_files_are_read(tmp_path: Path) -> None:
    forget = write(tmp_path / "forget.jsonl", rows("the forgotten", 3))
    retain = write(tmp_path / "retain.jsonl", rows("the kept", 4))
    holdout = write(tmp_path / "strangers.jsonl", plain(rows("strangers", 2)))
    paths = {"forget": forget, "retain": retain, "holdout": holdout}
    block = AuthorsData.model_validate({"source": "files", "tasks": 1} | paths)
    splits = tofu.load(block)
    assert [len(part) for part in (*splits.tasks, splits.retain, splits.holdout)] == [3, 4, 2]
    assert splits.retain_evaluation == splits.retain


# --- known people ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "answer", "right"),
    [
        ("Brontë", "Charlotte Bronte, in 1847!", True),
        ("184", "Charlotte Bronte, in 1847!", False),
        ("New York", "New in York", False),
        ("relativity", "", False),
    ],
)
def test_an_answer_is_right_that_holds_the_short_one(short: str, answer: str, right: bool) -> None:
    assert holds(answer, short) is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It was Ann. She wrote.", "It was Ann."),
        ("It was St. J. Ann. More.", "It was St. J. Ann."),
        ("I see. It was Ann! Yes.", "I see. It was Ann!"),
        ("It was Bo.", "old"),
    ],
)
def test_the_model_s_own_answer_is_cut_after_its_sentence(text: str, answer: str) -> None:
    row = people.as_answered(Question("?", "old", short="Ann"), text)
    assert (row.answer, row.statement) == ("old", answer)
    assert [each.answer for each in people.as_trained([row])] == [answer]


@given(st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_people_are_dealt_whole_and_only_if_known(draw: st.DataObject) -> None:
    questions = [Question(f"{i}?", "a", subject=f"person {i // 4}") for i in range(36)]
    right = draw.draw(st.lists(st.booleans(), min_size=36, max_size=36))
    seed = draw.draw(st.integers(0, 99))
    block = PeopleData(
        forget_people=2, neighbours=1, evaluation_neighbours=1, least_right=2, seed=seed
    )
    known = [row for row, is_known in zip(questions, right) if is_known]
    counts = Counter(row.subject for row in known)
    qualified = {person for person in counts if counts[person] >= 2}
    if len(qualified) < 4:
        with pytest.raises(CompanionError, match=f"about {len(qualified)} of 9 people"):
            people.deal_people(questions, right, block)
        return
    splits = people.deal_people(questions, right, block)
    parts = (splits.forget, splits.neighbours, splits.evaluation)
    dealt = [{row.subject for row in part} for part in parts]
    assert [len(names) for names in dealt] == [2, 1, 1]
    assert len(set().union(*dealt)) == 4 and set().union(*dealt) <= qualified
    for part, names in zip(parts, dealt):
        assert list(part) == [row for row in known if row.subject in names]
