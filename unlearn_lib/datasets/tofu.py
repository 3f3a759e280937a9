"""Experiment 4: questions about authors to forget, about others to keep, and of general knowledge.

Three sources behind one shape. `embedded`: fictitious authors written for this project
(`unlearn_lib.datasets.authors`), with small sets on real authors and world facts.
`locuslab/TOFU` (Maini et al. 2024): the files of a mirror or the hub under their own names, JSON
lines each:

`forget01_perturbed.json` (05, 10): the forget set, which is the first task.
`forget10_perturbed.json`: its rows beyond the first task are dealt to the further tasks, in
    their order and in blocks as large as the first. Yuan et al. (2025) deal all 4000 rows so; we
    take those with wrong answers only, so forget01 has 10 tasks, forget05 two and forget10 one.
`retain99.json` (95, 90): what is kept, less the rows of further tasks.
`retain_perturbed.json`, `real_authors_perturbed.json`, `world_facts_perturbed.json`: evaluated.
`holdout01.json` (05, 10): authors who are never taught; may be missing.
`idontknow.jsonl`: refusals, plain lines in spite of its name; where it is missing, as on the hub,
    the embedded ones stand in, which is said.

`files`: the reader's own, in the same form: `question`, `answer` and `perturbed_answer`, a list of
    wrong answers, in every row to forget or to keep; `paraphrased_answer` where the first row has
    one. General questions and refusals are the embedded ones.

The released files pass every check here: each row has five wrong answers (on real authors and
world facts three), all different from the right ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unlearn_lib import profiles
from unlearn_lib.assets import find_dataset, folder_sha256
from unlearn_lib.datasets.authors import write_authors
from unlearn_lib.datasets.files import EMBEDDED, read_lines
from unlearn_lib.datasets.question_sets import (
    check_questions,
    folded,
    read_questions,
    refuse_overlap,
    row_key,
    row_place,
)
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import TofuData

TOFU = "locuslab/TOFU"
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
CHOICES = ("perturbed_answer",)
REPHRASED = ("paraphrased_answer", "perturbed_answer")
REFUSALS = "idontknow.jsonl"

Questions = tuple[Question, ...]


@dataclass(frozen=True)
class TofuSplits:
    """The questions of experiment 4's fictitious and continual scenarios.

    Attributes:
        tasks: forget questions of each task, with paraphrase and wrong answers; the first task is
            the fictitious scenario's forget set.
        retain: to be taught and kept, in the order of the source; never in a task. What is taught
            in full is `retain` and all tasks.
        retain_evaluation: with paraphrase and wrong answers; all are in `retain`.
        real_authors, world_facts: with wrong answers.
        holdout: never taught; none where the source has none.
        rehearsal: real authors and world facts that are not evaluated, with a sentence each for
            an answer: taught with the rest, so that teaching does not overwrite all else.
        refusals: answers that say «I don't know».
        sha256: of the sources; `embedded refusals` is among them where those stand in.
        source: `embedded`, `files`, `mirror` or `hub`.
    """

    tasks: tuple[Questions, ...]
    retain: Questions
    retain_evaluation: Questions
    real_authors: Questions
    world_facts: Questions
    holdout: Questions
    refusals: tuple[str, ...]
    sha256: dict[str, str]
    source: str
    rehearsal: Questions = ()


class Names(NamedTuple):
    """What the sets are called in files and messages."""

    tasks: tuple[str, ...]
    retain: str
    holdout: str


def load(settings: TofuData) -> TofuSplits:
    """Load and split the questions of a profile.

    Args:
        settings: the profile's `tofu.data`. What is evaluated of retain is drawn by `seed`, and
            so are the other rows up to `retain_rows`; of real authors and world facts the first
            `evaluation_rows` are taken. No more of retain is evaluated than is taught.

    Raises:
        CompanionError: a file missing or unreadable; a row that no set may hold (see
            `question_sets`) or that two splits hold; an evaluated row that is not retained; more
            tasks than the source has rows for; a task larger than what is retained.
    """
    names = _names(settings)
    sources = {TOFU: _released, "embedded": _embedded, "files": _own}
    whole = sources[settings.source](settings, names)
    tasks = dict(zip(names.tasks, whole.tasks, strict=True))
    refuse_overlap({names.retain: whole.retain, **tasks, names.holdout: whole.holdout})
    retain, evaluation = _draw(whole, _places(whole, names), settings)
    for name, task in tasks.items():
        if len(task) > len(retain):
            raise CompanionError(
                f"The forget set '{name}' has {len(task)} rows, more than the {len(retain)} to be "
                "retained; raise 'retain_rows' or 'retain_authors', or forget less."
            )
    return replace(
        whole,
        retain=retain,
        retain_evaluation=evaluation,
        real_authors=whole.real_authors[: settings.evaluation_rows],
        world_facts=whole.world_facts[: settings.evaluation_rows],
        rehearsal=_rehearsal(whole, settings),
    )


def _rehearsal(whole: TofuSplits, settings: TofuData) -> Questions:
    half, first = settings.rehearsal_rows // 2, settings.evaluation_rows
    if not half:
        return ()
    left = [rows[first:] if first else () for rows in (whole.real_authors, whole.world_facts)]
    if min(map(len, left)) < half:
        raise CompanionError(
            f"'rehearsal_rows' is {settings.rehearsal_rows}, but beyond the evaluated rows there "
            f"are {len(left[0])} real authors and {len(left[1])} world facts, of which half each "
            "are taken; lower it, or 'evaluation_rows'."
        )
    return tuple(Question(row.question, row.statement) for rows in left for row in rows[:half])


def refusals() -> tuple[str, ...]:
    """The embedded answers that say «I don't know»."""
    return _embedded_refusals()[0]


def digest(*questions: Any) -> str:
    """The sha256 of questions or texts, in order."""
    return hashlib.sha256(repr(questions).encode()).hexdigest()


def _names(settings: TofuData) -> Names:
    tasks = tuple(f"task {number}" for number in range(1, settings.tasks + 1))
    if settings.source == "files":
        return Names(("forget",), "retain", "holdout")
    if settings.source == "embedded":
        return Names(tasks, "retain", "holdout")
    split = settings.forget_split
    tasks = (f"{split}_perturbed", *tasks[1:])
    return Names(tasks, RETAIN[split], split.replace("forget", "holdout"))


def _places(whole: TofuSplits, names: Names) -> list[int]:
    """Where the evaluated questions stand in retain.

    TOFU asks one question of two authors («What is the full name of the author?»); there the
    answer decides.
    """
    places = {folded(row.question): place for place, row in enumerate(whole.retain)}
    exact = {row_key(row): place for place, row in enumerate(whole.retain)}
    found = []
    for number, row in enumerate(whole.retain_evaluation, start=1):
        question = folded(row.question)
        if question not in places:
            raise CompanionError(
                f"{row_place(number, 'retain_perturbed', row.question)} is not in {names.retain}; "
                "add it there, or take it out of what is evaluated."
            )
        found.append(exact.get(row_key(row), places[question]))
    return found


def _draw(
    whole: TofuSplits, places: Sequence[int], settings: TofuData
) -> tuple[Questions, Questions]:
    """Draw what is evaluated, and what is retained beside it; both keep their order."""
    random = np.random.default_rng(settings.seed)
    limits = (len(places), settings.evaluation_rows, settings.retain_rows)
    most = min(limit for limit in limits if limit is not None)
    chosen = sorted(random.permutation(len(places))[:most].tolist())
    needed = {places[i] for i in chosen}
    others = [i for i in random.permutation(len(whole.retain)).tolist() if i not in needed]
    rows = settings.retain_rows or len(whole.retain)
    kept = sorted(needed.union(others[: rows - len(needed)]))
    return (
        tuple(whole.retain[i] for i in kept),
        tuple(whole.retain_evaluation[i] for i in chosen),
    )


def _released(settings: TofuData, names: Names) -> TofuSplits:
    """TOFU's files, with all of retain and all of its rows that can be evaluated."""
    evaluated = ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    files = (names.tasks[0], "forget10_perturbed", names.retain, names.holdout, *evaluated)
    asset = find_dataset(TOFU, (*(f"{name}.json" for name in files), REFUSALS))
    folder, sha256 = asset.folder, {TOFU: asset.sha256}
    tasks = _released_tasks(folder, settings, names)
    later = {row_key(question) for question in chain(*tasks[1:])}
    retain = read_questions(folder / f"{names.retain}.json")
    holdout = folder / f"{names.holdout}.json"
    refusals = _lines(folder / REFUSALS)
    if not refusals:
        refusals, sha256["embedded refusals"] = _embedded_refusals()
        print(f"{TOFU} ({asset.source}) has no {REFUSALS}; the embedded refusals stand in.")
    return TofuSplits(
        tasks=tasks,
        retain=tuple(question for question in retain if row_key(question) not in later),
        retain_evaluation=read_questions(folder / "retain_perturbed.json", REPHRASED),
        real_authors=read_questions(folder / "real_authors_perturbed.json", CHOICES),
        world_facts=read_questions(folder / "world_facts_perturbed.json", CHOICES),
        holdout=read_questions(holdout) if holdout.is_file() else (),
        refusals=refusals,
        sha256=sha256,
        source=asset.source,
    )


def _released_tasks(folder: Path, settings: TofuData, names: Names) -> tuple[Questions, ...]:
    first = read_questions(folder / f"{names.tasks[0]}.json", REPHRASED)
    if settings.tasks == 1:
        return (first,)
    taken = {row_key(question) for question in first}
    rows = read_questions(folder / "forget10_perturbed.json", REPHRASED)
    rest = [question for question in rows if row_key(question) not in taken]
    available = 1 + len(rest) // len(first)
    if settings.tasks > available:
        raise CompanionError(
            f"The {len(first)} rows of '{settings.forget_split}' and the {len(rest)} others of "
            f"forget10_perturbed are enough for {available} of the {settings.tasks} forget tasks "
            "that the profile asks for; lower 'tasks'."
        )
    ends = range(len(first), settings.tasks * len(first), len(first))
    return (first, *(tuple(rest[end - len(first) : end]) for end in ends))


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise CompanionError(f"{path} is no UTF-8 text ({error}); fetch it again.") from error
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def _embedded(settings: TofuData, names: Names) -> TofuSplits:
    """Authors, dealt in the order in which they are written, and the sets written for them."""
    sizes = [settings.authors_per_task] * settings.tasks
    sizes += [settings.retain_authors, settings.holdout_authors]
    authors = iter(write_authors(sum(sizes), settings.seed, settings.questions_per_author))
    parts = [
        tuple(chain.from_iterable(author.questions for author in islice(authors, size)))
        for size in sizes
    ]
    for name, part in zip((*names.tasks, names.retain, names.holdout), parts, strict=True):
        check_questions(name, part)
    *tasks, retain, holdout = parts
    general, refusals, sha256 = _embedded_general()
    return TofuSplits(
        tasks=tuple(tasks),
        retain=retain,
        retain_evaluation=retain,
        holdout=holdout,
        sha256={"authors": digest(*parts), **sha256},
        source="embedded",
        refusals=refusals,
        **general,
    )


def _own(settings: TofuData, names: Names) -> TofuSplits:
    """The reader's own questions; all to be kept can be evaluated."""
    given = {"forget": settings.forget, "retain": settings.retain, "holdout": settings.holdout}
    paths = {name: profiles.ROOT / path.expanduser() for name, path in given.items() if path}
    general, refusals, sha256 = _embedded_general()
    retain = _with_wrong_answers(paths["retain"])
    digests = {name: folder_sha256([path], path.parent) for name, path in paths.items()}
    return TofuSplits(
        tasks=(_with_wrong_answers(paths["forget"]),),
        retain=retain,
        retain_evaluation=retain,
        holdout=read_questions(paths["holdout"]) if "holdout" in paths else (),
        sha256={**digests, **sha256},
        source="files",
        refusals=refusals,
        **general,
    )


def _with_wrong_answers(path: Path) -> Questions:
    """A set of questions, with paraphrases where its first row has one."""
    first = next(iter(read_lines(path)), None) if path.is_file() else None
    rephrased = isinstance(first, dict) and REPHRASED[0] in first
    return read_questions(path, REPHRASED if rephrased else CHOICES)


def _embedded_general() -> tuple[dict[str, Questions], tuple[str, ...], dict[str, str]]:
    """The embedded general questions by set, the refusals, and the sha256 of them all."""
    refusals, sha256 = _embedded_refusals()
    paths = {name: EMBEDDED / f"{name}.jsonl" for name in ("real_authors", "world_facts")}
    digests = {name: folder_sha256([path], EMBEDDED) for name, path in paths.items()}
    general = {name: read_questions(path, CHOICES) for name, path in paths.items()}
    return general, refusals, {"refusals": sha256, **digests}


def _embedded_refusals() -> tuple[tuple[str, ...], str]:
    path = EMBEDDED / "refusals.jsonl"
    return tuple(row["answer"] for row in read_lines(path)), folder_sha256([path], EMBEDDED)
