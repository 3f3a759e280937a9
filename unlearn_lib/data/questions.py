"""A question with its right and wrong answers, and the files that hold questions.

No row is repaired: a file that is wrong is corrected where it was written, and the message names
file and row.
"""

import gzip
import lzma
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_lib.util import EMBEDDED, CompanionError, nearest

WRONG = "perturbed_answer"
OPTIONAL = ("paraphrased_answer", "original_answer")
"""Columns that are read wherever a file has them."""
ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")
"""An escape of JSON: a surrogate pair, half of one, or any other."""


@dataclass(frozen=True)
class Question:
    """One question, as in TOFU.

    Attributes:
        question, answer: what is asked, and the right answer.
        perturbed_answer: wrong answers in the form of the paraphrase; as many in every row of a
            set.
        paraphrased_answer: the right answer in other words; None where the answer itself stands
            for it (TOFU's real authors and world facts).
        subject: the author, person or field it is about; empty where unknown.
        short: the words that a right answer must hold; empty where unknown.
        original_answer: the right answer as a whole sentence, where `answer` is a name or a
            few words, or what the model itself answers (task people); None where `answer` is it.
    """

    question: str
    answer: str
    perturbed_answer: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    subject: str = ""
    short: str = ""
    original_answer: str | None = None

    @property
    def paraphrase(self) -> str:
        """The right answer whose probability the truth ratio takes."""
        return self.paraphrased_answer or self.answer

    @property
    def statement(self) -> str:
        """The right answer as a sentence: what similarity and entailment are judged against.

        Of task people the model's own, and entailment is judged against `answer`.
        """
        return self.original_answer or self.answer

    @property
    def cluster(self) -> str:
        """What the question shares with others: its subject, or itself where that is unknown."""
        return self.subject or self.question


Questions = tuple[Question, ...]


def read_table(path: Path, needed: Sequence[str] = (), skip: int = 0) -> pd.DataFrame:
    """Read CSV, parquet, JSON lines or one JSON array; `.xz` and `.gz` are unpacked.

    The file's ending tells which, and a bracket at its start an array. A cell of a CSV is the text
    that stands there ("NA", "007" and nothing too).

    Args:
        path: the file, UTF-8 with or without byte-order mark, or UTF-16 with it.
        needed: columns that it must have.
        skip: lines before the header of a CSV.

    Raises:
        CompanionError: missing, truncated or altered, in another encoding, with half a surrogate
            pair, with more cells in a CSV's rows than in its header, or without a column.
    """
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif ".csv" in path.suffixes:
            table = pd.read_csv(StringIO(_text_of(path)), skiprows=skip, dtype=str, na_filter=False)
            if not isinstance(table.index, pd.RangeIndex):
                raise ValueError("its rows have more cells than its header")
        else:
            text = _text_of(path)
            if halves := list(filter(None, ESCAPE.findall(text))):
                # pandas leaves them out without a word
                raise ValueError(f"it holds half a character, \\{halves[0]}")
            table = pd.read_json(StringIO(text), lines=text.lstrip()[:1] != "[", dtype=False)
    except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CompanionError(
            f"{path} is missing or altered ({reason}); put a whole copy there, in UTF-8."
        ) from error
    check_columns(path, table.columns, needed)
    return table


def _text_of(path: Path) -> str:
    """Return the text of a file, unpacked and without byte-order mark."""
    unpacked = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)
    data = unpacked(path.read_bytes())
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


@lru_cache
def read_pools(name: str) -> dict[tuple[str, str], list[str]]:
    """Return the texts of an embedded table by pool and kind, as they stand in the file."""
    table = read_table(EMBEDDED / name, skip=1)  # the first line is a comment
    return table.groupby(["pool", "kind"], sort=False)["text"].agg(list).to_dict()


def check_columns(place: Path | str, columns: Iterable[str], needed: Iterable[str]) -> None:
    """Raise a CompanionError that names the first column missing from a table."""
    for name in needed:
        if name not in columns:
            raise CompanionError(f"{place} has no column '{name}'{nearest(name, columns)}.")


def read_questions(path: Path, needed: Sequence[str] = ()) -> Questions:
    """Read a file of questions with `question` and `answer`, in a form that `read_table` reads.

    Args:
        path: the file.
        needed: what else every row must have: `perturbed_answer`, a list of wrong answers;
            `person` (which becomes the subject), `short` or one of `OPTIONAL`, which are texts.
            Those that are optional are read wherever the file has them, other columns are not.

    Raises:
        CompanionError: no such file, or in another form; a row in which a text is missing, empty
            or invisible (a zero-width space), in which a wrong answer equals the answer or its
            paraphrase (see `folded`), or which has more or fewer wrong answers than the first.
    """
    table = read_table(path, ("question", "answer", *needed))
    optional = (name for name in OPTIONAL if name in table)
    names = list(dict.fromkeys(("question", "answer", *needed, *optional)))
    questions: list[Question] = []
    for number, row in enumerate(table[names].to_dict("records"), start=1):
        place = f"Row {number} of {path.name}"
        for name in names:
            texts = row[name] if name == WRONG else [row[name]]
            texts = texts.tolist() if isinstance(texts, np.ndarray) else texts  # of parquet
            if not isinstance(texts, list) or not texts or not all(map(_is_text, texts)):
                raise CompanionError(f"{place} has no text under '{name}' that can be read.")
        fields = {"subject" if name == "person" else str(name): row[name] for name in names}
        question = Question(**fields | {WRONG: tuple(row.get(WRONG, ()))})
        right = {folded(question.answer), folded(question.paraphrase)}
        if right.intersection(map(folded, question.perturbed_answer)):
            raise CompanionError(f"{place} has a wrong answer that equals the right one.")
        questions.append(question)
        if len(question.perturbed_answer) != len(questions[0].perturbed_answer):
            raise CompanionError(f"{place} has not as many wrong answers as the first row.")
    if not questions:
        raise CompanionError(f"{path} holds no questions; put a whole copy there.")
    return tuple(questions)


def refuse_overlap(sets: Mapping[str, Sequence[Question]]) -> None:
    """Refuse a set that holds a row twice, and sets that share a question (see `folded`).

    Within a set a question may have several answers, as in TOFU. To forget a question and keep it
    is a contradiction whatever its answers.

    Raises:
        CompanionError: names both rows.
    """
    first: dict[object, tuple[str, int]] = {}
    for name, questions in sets.items():
        for number, row in enumerate(questions, start=1):
            in_set = first.setdefault((name, row_key(row)), (name, number))
            in_any = first.setdefault(folded(row.question), (name, number))
            owner, place = in_set if in_any[0] == name else in_any
            if (owner, place) != (name, number):
                raise CompanionError(
                    f"Row {number} of {name} asks what row {place} of {owner} asks; take one out."
                )


def general_sets() -> list[Questions]:
    """Return the embedded general knowledge: real authors, and world facts."""
    names = ("real_authors", "world_facts")
    return [read_questions(EMBEDDED / f"{name}.jsonl", (WRONG,)) for name in names]


def rehearsal(sets: Sequence[Questions], evaluated: int | None, rows: int) -> Questions:
    """Return general knowledge to be taught along, so that teaching does not overwrite all else.

    Args:
        sets: real authors and world facts; half of the rows are taken from each.
        evaluated: how many rows of each set are evaluated, and so never rehearsed; None: all.
        rows: how many to return; the answer of each is its sentence.

    Raises:
        CompanionError: a set has too few rows that are not evaluated.
    """
    others = [questions[evaluated:] if evaluated else () for questions in sets]
    most = 2 * min(map(len, others))
    if rows // 2 > most // 2:
        raise CompanionError(
            f"'rehearsal_rows' is {rows}, but only {most} rows are not evaluated; lower it."
        )
    taught = [row for questions in others for row in questions[: rows // 2]]
    return tuple(Question(row.question, row.statement) for row in taught)


def folded(text: str) -> str:
    """Return a text without what makes no difference to a reader.

    That is case, more than single spaces, invisible signs (zero-width space, soft hyphen), and how
    an accent is stored.
    """
    plain = unicodedata.normalize("NFC", text.casefold())
    return " ".join("".join(s for s in plain if unicodedata.category(s) != "Cf").split())


def row_key(question: Question) -> tuple[str, str]:
    """Return what makes two rows the same: question and answer, both folded."""
    return folded(question.question), folded(question.answer)


def _is_text(value: object) -> bool:
    """Whether a value is a text in which something can be seen."""
    blanks = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs that show nothing
    signs = set(value if isinstance(value, str) else "").difference(blanks)
    return any(unicodedata.category(sign)[0] in "LNPS" for sign in signs)
