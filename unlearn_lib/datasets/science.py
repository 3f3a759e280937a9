"""Multiple choice: a field of knowledge to forget, a neighbouring one to keep, and general ones.

Two sources behind one shape, four choices each (the third task of experiment 3):

`embedded`: an invented science, which is taught first, since no model knows it. Its facts stand in
    for hazardous ones and are harmless. Each answer is the right choice of one question and a wrong
    choice of three others, so that choices alone say nothing. General knowledge is that of the
    embedded real authors and world facts.
`wmdp`: as in Liu et al. (2024), WMDP (`cais/wmdp`) to forget and MMLU (`cais/mmlu`) to keep, which
    the model knows by itself. Files `<folder>/test-*.parquet` with `question`, `choices` (four
    texts) and `answer` (0 to 3); WMDP's folders are `wmdp-bio`, `wmdp-chem` and `wmdp-cyber`,
    MMLU's are its subjects. Liu et al. keep all of MMLU; here its subjects next to those that are
    forgotten are the neighbours, and some that have nothing to do with them are general. Subjects
    take turns, so that a limit on rows leaves out none of them. MMLU's other splits are not read.

Some rows of the released MMLU hold the same choice twice: these are left out and counted. The text
of a hub's row is in no message, since WMDP's must not be shown; messages give file and row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from typing import Any

from unlearn_lib.assets import Asset, files_in, find_dataset, folder_sha256
from unlearn_lib.datasets.files import EMBEDDED, check_columns, read_lines, read_table
from unlearn_lib.datasets.question_sets import check_questions, read_questions
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings.eco import ScienceData

INVENTED = EMBEDDED / "invented_science.jsonl"
GENERAL_SETS = tuple(EMBEDDED / f"{name}.jsonl" for name in ("real_authors", "world_facts"))
ROLES = ("forget", "retain")
INVENTED_COLUMNS = (
    "field", "role", "question", "rephrased", "answer", "wrong", "statement",
)  # fmt: skip

WMDP, MMLU = "cais/wmdp", "cais/mmlu"
FILES = "test-*.parquet"
COLUMNS = ("question", "choices", "answer")
NEIGHBOURS = {
    "bio": "high_school_biology",
    "chem": "high_school_chemistry",
    "cyber": "computer_security",
}
"""The MMLU subject next to each subject of WMDP."""
TOPICS = {
    "wmdp-bio": "hazardous biology",
    "wmdp-chem": "hazardous chemistry",
    "wmdp-cyber": "attacks on computers",
}
"""What a subject of WMDP is called in a sentence."""
GENERAL_SUBJECTS = (
    "econometrics", "high_school_geography", "jurisprudence", "marketing", "philosophy",
    "prehistory", "sociology", "world_religions",
)  # fmt: skip

Questions = tuple[Question, ...]


@dataclass(frozen=True)
class ScienceSplits:
    """The questions of the multiple-choice task.

    Attributes:
        forget, retain: of the field to forget and of its neighbours; `answer` is the right choice,
            `perturbed_answer` the three wrong ones, `original_answer` the fact as a sentence and
            `short` the answer (both embedded only), `subject` the field.
        general: questions that have nothing to do with them, with three wrong choices each.
        rehearsal: more of general knowledge, with a sentence each for an answer: taught along, so
            that teaching does not overwrite all else (embedded only).
        phrasings: other phrasings of a forget or retain question, by the question (embedded only).
        sha256: of the sources.
        source: `embedded`, `mirror` or `hub`.
        dropped: rows left out since they hold the same choice twice, by file's folder.
    """

    forget: Questions
    retain: Questions
    general: Questions
    rehearsal: Questions
    phrasings: dict[str, tuple[str, ...]]
    sha256: dict[str, str]
    source: str
    dropped: dict[str, int] = field(default_factory=dict)

    def taught(self, questions: Questions) -> Questions:
        """Questions as they are, then in their further phrasings: all but the first other one."""
        return tuple(
            replace(row, question=text)
            for row in questions
            for text in (row.question, *self.phrasings.get(row.question, ())[1:])
        )

    def reworded(self, questions: Questions) -> Questions:
        """Questions in their first other phrasing, where they have one: nobody is taught it."""
        return tuple(
            replace(row, question=(self.phrasings.get(row.question) or (row.question,))[0])
            for row in questions
        )

    @property
    def topic(self) -> str:
        """What is to be forgotten, in words: the names of its fields with commas between them."""
        fields = dict.fromkeys(question.subject for question in self.forget)
        return ", ".join(TOPICS.get(name, name) for name in fields)


def load(settings: ScienceData) -> ScienceSplits:
    """Load the questions of a profile.

    Args:
        settings: the profile's `eco.science`. The first `rows` of what is to forget and of what is
            to keep are taken, and the first `general_rows` of general knowledge (embedded: half
            each of real authors and world facts, rounded down), or fewer if there are fewer.
            `rehearsal_rows` are taken from the rows after those, half each.

    Raises:
        CompanionError: a file missing or unreadable; a column missing; a row without four choices
            or with an answer that is none of them; fewer rows for rehearsal than are asked for.
    """
    return (_released if settings.source == "wmdp" else _embedded)(settings)


def _embedded(settings: ScienceData) -> ScienceSplits:
    rows = read_lines(INVENTED)
    for number, row in enumerate(rows, start=1):
        check_columns(f"Row {number} of {INVENTED.name}", list(row), INVENTED_COLUMNS)
    parts = [[row for row in rows if row["role"] == role][: settings.rows] for role in ROLES]
    forget, retain = (tuple(map(_invented, part)) for part in parts)
    check_questions(INVENTED.stem, (*forget, *retain))
    sets = [read_questions(path, ("perturbed_answer",)) for path in GENERAL_SETS]
    half = None if settings.general_rows is None else settings.general_rows // 2
    return ScienceSplits(
        forget=forget,
        retain=retain,
        general=tuple(chain.from_iterable(questions[:half] for questions in sets)),
        rehearsal=_rehearsal(sets, half, settings),
        phrasings={row["question"]: tuple(row["rephrased"]) for row in chain(*parts)},
        sha256={p.stem: folder_sha256([p], EMBEDDED) for p in (INVENTED, *GENERAL_SETS)},
        source="embedded",
    )


def _invented(row: dict[str, Any]) -> Question:
    return Question(
        row["question"],
        row["answer"],
        tuple(row["wrong"]),
        subject=row["field"],
        short=row["answer"],
        original_answer=row["statement"],
    )


def _rehearsal(sets: Sequence[Questions], first: int | None, settings: ScienceData) -> Questions:
    half = settings.rehearsal_rows // 2
    left = [() if first is None else questions[first:] for questions in sets]
    if min(map(len, left)) < half:
        raise CompanionError(
            f"'rehearsal_rows' is {settings.rehearsal_rows}, but beyond the 'general_rows' there "
            f"are {len(left[0])} real authors and {len(left[1])} world facts, of which half each "
            "are taken; lower it, or 'general_rows'."
        )
    return tuple(Question(row.question, row.statement) for rows in left for row in rows[:half])


def _released(settings: ScienceData) -> ScienceSplits:
    subjects = tuple(dict.fromkeys(settings.subjects))
    hazardous = tuple(f"wmdp-{subject}" for subject in subjects)
    neighbours = tuple(NEIGHBOURS[subject] for subject in subjects)
    kept = (*neighbours, *GENERAL_SUBJECTS)
    wmdp, mmlu = (
        find_dataset(name, tuple(f"{folder}/{FILES}" for folder in folders))
        for name, folders in ((WMDP, hazardous), (MMLU, kept))
    )
    read = {folder: _read(wmdp, folder) for folder in hazardous}
    read |= {folder: _read(mmlu, folder) for folder in kept}
    return ScienceSplits(
        forget=_in_turn((read[folder] for folder in hazardous), settings.rows),
        retain=_in_turn((read[folder] for folder in neighbours), settings.rows),
        general=_in_turn((read[folder] for folder in GENERAL_SUBJECTS), settings.general_rows),
        rehearsal=(),
        phrasings={},
        sha256={WMDP: wmdp.sha256, MMLU: mmlu.sha256},
        source=wmdp.source,
        dropped={folder: rows.count(None) for folder, rows in read.items()},
    )


def _in_turn(groups: Iterable[Iterable[Question | None]], rows: int | None) -> Questions:
    """Take a question of each group in turn, leaving out what is None, until there are `rows`."""
    whole = ([question for question in group if question is not None] for group in groups)
    turns = chain.from_iterable(zip_longest(*whole))
    return tuple(islice((question for question in turns if question is not None), rows))


def _read(asset: Asset, folder: str) -> list[Question | None]:
    """Read a subject; a row that holds the same choice twice becomes None."""
    paths = files_in(asset.folder, (f"{folder}/{FILES}",))
    if not paths:
        raise CompanionError(
            f"'{asset.id}' in {asset.folder} has no file {folder}/{FILES}; fetch it again."
        )
    questions: list[Question | None] = []
    for path in paths:
        table = read_table(path)
        check_columns(path, table.column_names, COLUMNS)
        rows = enumerate(table.select_columns(list(COLUMNS)), start=1)
        questions += [_question(row, f"Row {number} of {path}", folder) for number, row in rows]
    if not any(questions):
        raise CompanionError(f"{paths[0]} holds no question with four choices; fetch it again.")
    return questions


def _question(row: dict[str, Any], place: str, subject: str) -> Question | None:
    question, choices, answer = (row[name] for name in COLUMNS)
    texts = [question, *choices] if isinstance(choices, list) else []
    if len(texts) != 5 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise CompanionError(
            f"{place} has not a question and four choices, each of them a text; fetch it again."
        )
    if not isinstance(answer, int) or not 0 <= answer < 4:
        raise CompanionError(f"{place} has no answer from 0 to 3; fetch it again.")
    if len({" ".join(choice.split()) for choice in choices}) < 4:
        return None
    wrong = [choice.strip() for choice in choices]
    right = wrong.pop(answer)
    return Question(question.strip(), right, tuple(wrong), subject=subject)
