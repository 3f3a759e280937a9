"""Reading sets of questions in TOFU's form, and what no set may hold; errors name the row.

No row is repaired: a set that is wrong is corrected where it was written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_lib.datasets.files import check_columns, read_lines
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError

WRONG = "perturbed_answer"
SHOWN = 60
"""How many characters of a question a message shows."""


def read_questions(path: Path, needed: Sequence[str] = ()) -> tuple[Question, ...]:
    """Read a file of questions: JSON lines with `question` and `answer`.

    Args:
        path: the file; its name without the ending is the set's.
        needed: what else every row must have; other keys are not read. `paraphrased_answer`,
            `person` (which becomes the subject) and `short` are texts, `perturbed_answer` is a
            list of texts. An `original_answer` is read where there is one.

    Raises:
        CompanionError: no such file, or not JSON lines; a row without what is needed, and what
            `check_questions` refuses.
    """
    if not path.is_file():
        raise CompanionError(f"There is no file {path}; put it there or fetch the data again.")
    rows = enumerate(read_lines(path), start=1)
    questions = tuple(_question(row, number, path.stem, needed) for number, row in rows)
    if not questions:
        raise CompanionError(f"{path} holds no question; fill it or fetch the data again.")
    check_questions(path.stem, questions)
    return questions


def check_questions(name: str, questions: Sequence[Question]) -> None:
    """Refuse a set with a row that cannot be taught or scored.

    Args:
        name: of the set, for the message.

    Raises:
        CompanionError: an empty text; a wrong answer that equals the answer or its paraphrase
            (but for case and white space); or a row with more or fewer wrong answers than the
            first.
    """
    for number, question in enumerate(questions, start=1):
        place = row_place(number, name, question.question)
        right, wrong = [question.answer, question.paraphrase], question.perturbed_answer
        if not all(map(folded, (question.question, *right, *wrong))):
            raise CompanionError(f"{place} has an empty question or answer; fill it in.")
        same = {folded(text) for text in wrong} & {folded(text) for text in right}
        if same:
            shown = _shortened(same.pop())
            raise CompanionError(
                f"{place} has a wrong answer that equals the right one ('{shown}'); replace it."
            )
        if len(wrong) != len(questions[0].perturbed_answer):
            raise CompanionError(
                f"{place} has {len(wrong)} wrong answers, but the first row has "
                f"{len(questions[0].perturbed_answer)}; give every row of a set as many."
            )


def refuse_overlap(sets: Mapping[str, Sequence[Question]]) -> None:
    """Refuse sets that share a question with the same answer (but for case and white space).

    Raises:
        CompanionError: names the row, in the later of both sets.
    """
    owners: dict[tuple[str, str], str] = {}
    for name, questions in sets.items():
        for number, question in enumerate(questions, start=1):
            owner = owners.setdefault(row_key(question), name)
            if owner != name:
                place = row_place(number, name, question.question)
                raise CompanionError(f"{place} is in {owner} too; take it out of one of them.")


def folded(text: str) -> str:
    """Return a text without what makes no difference: case, and more than single spaces."""
    return " ".join(text.casefold().split())


def row_key(question: Question) -> tuple[str, str]:
    """Return what makes two rows the same: question and answer, both folded."""
    return folded(question.question), folded(question.answer)


def row_place(number: int, name: str, question: Any) -> str:
    """Say which row is meant: `Row 3 of forget01 ('Who wrote …')`; rows count from 1."""
    shown = f" ('{_shortened(question)}')" if isinstance(question, str) and folded(question) else ""
    return f"Row {number} of {name}{shown}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _question(row: Any, number: int, name: str, needed: Sequence[str]) -> Question:
    if not isinstance(row, dict):
        raise CompanionError(f"Row {number} of {name} is no JSON object; write one on each line.")
    place = row_place(number, name, row.get("question"))
    needed = ("question", "answer", *needed)
    check_columns(place, list(row), needed)
    for key in needed:
        texts = row[key] if key == WRONG else [row[key]]
        if not texts or not isinstance(texts, list) or not all(map(_is_text, texts)):
            kind = "list of wrong answers" if key == WRONG else "text"
            raise CompanionError(f"{place} has no {kind} under '{key}', or an empty one; fill it.")
    fields = {{"person": "subject"}.get(key, key): row[key] for key in needed}
    if _is_text(row.get("original_answer")):
        fields["original_answer"] = row["original_answer"]
    return Question(**fields | {WRONG: tuple(row[WRONG]) if WRONG in needed else ()})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
