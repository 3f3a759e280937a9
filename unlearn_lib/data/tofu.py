"""Questions about authors to forget, about others to keep, and of general knowledge.

Three sources behind one shape. `embedded`: fictitious authors written for this project
(`unlearn_lib.data.authors`), with small sets on real authors and world facts. `locuslab/TOFU`
(Maini et al. 2024): the files of a mirror or the hub under their own names, JSON lines each:

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
    wrong answers, in every row to forget or to keep; `paraphrased_answer` in all rows of a file or
    in none. General questions and refusals are the embedded ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from unlearn_lib.assets import find_dataset
from unlearn_lib.data import questions
from unlearn_lib.data.authors import write_authors
from unlearn_lib.data.questions import WRONG, Questions, read_questions, row_key
from unlearn_lib.settings import AuthorsData
from unlearn_lib.util import EMBEDDED, ROOT, CompanionError, expanded, say

TOFU = "locuslab/TOFU"
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
REPHRASED = ("paraphrased_answer", WRONG)
REFUSALS = "idontknow.jsonl"


@dataclass(frozen=True)
class QuestionSplits:
    """The questions of tasks `authors` and `continual`.

    Attributes:
        tasks: forget questions of each task, with paraphrase and wrong answers; the first task is
            what task `authors` forgets.
        retain: to be taught and kept, in the order of the source; never in a task. What is taught
            in full is `retain` and all tasks.
        retain_evaluation: with paraphrase and wrong answers; all are in `retain`.
        real_authors, world_facts: with wrong answers.
        holdout: never taught; none where the source has none.
        refusals: answers that say «I don't know».
        rehearsal: real authors and world facts that are not evaluated, with a sentence each for
            an answer: taught with the rest, so that teaching does not overwrite all else.
    """

    tasks: tuple[Questions, ...]
    retain: Questions
    retain_evaluation: Questions
    real_authors: Questions
    world_facts: Questions
    holdout: Questions
    refusals: tuple[str, ...]
    rehearsal: Questions = ()


def load(settings: AuthorsData) -> QuestionSplits:
    """Load and split the questions of a profile.

    Args:
        settings: the data of task `authors`. What is evaluated of retain is drawn by `seed`, and
            so are the other rows up to `retain_rows`; of real authors and world facts the first
            `evaluation_rows` are taken. No more of retain is evaluated than is taught.

    Raises:
        CompanionError: a file missing or unreadable; a row that no set may hold (see
            `read_questions`), that is there twice, or that is to be forgotten and retained; more
            tasks than the source has rows for.
    """
    sources = {TOFU: _released, "embedded": _embedded, "files": _own}
    splits = sources[settings.source](settings)
    retain, evaluation = _draw(splits, settings)
    general, most = (splits.real_authors, splits.world_facts), settings.evaluation_rows
    return replace(
        splits,
        retain=retain,
        retain_evaluation=evaluation,
        real_authors=splits.real_authors[:most],
        world_facts=splits.world_facts[:most],
        rehearsal=questions.rehearsal(general, most, settings.rehearsal_rows),
    )


def refusals() -> tuple[str, ...]:
    """Return the embedded answers that say «I don't know»."""
    return tuple(questions.read_table(EMBEDDED / "refusals.jsonl")["answer"])


def _draw(splits: QuestionSplits, settings: AuthorsData) -> tuple[Questions, Questions]:
    """Draw what is retained, and what of that is evaluated; both keep their order.

    TOFU asks one question of two authors («What is the full name of the author?»); there the
    answer decides which row of retain is evaluated.
    """
    random = np.random.default_rng(settings.seed)
    order = random.permutation(len(splits.retain_evaluation)).tolist()
    drawn = sorted(order[: settings.evaluation_rows][: settings.retain_rows])
    evaluation = tuple(splits.retain_evaluation[i] for i in drawn)
    places = {row_key(row): place for place, row in enumerate(splits.retain)}
    needed = {places[row_key(row)] for row in evaluation}
    others = [i for i in random.permutation(len(splits.retain)).tolist() if i not in needed]
    rows = settings.retain_rows or len(splits.retain)
    retained = sorted(needed.union(others[: rows - len(needed)]))
    return tuple(splits.retain[i] for i in retained), evaluation


def _released(settings: AuthorsData) -> QuestionSplits:
    """Read TOFU's files, with all of retain and all of its rows that can be evaluated."""
    folder, split = find_dataset(TOFU).folder, settings.forget_split

    def read(name: str, *needed: str) -> Questions:
        return read_questions(folder / f"{name}.json", needed)

    forget = read(f"{split}_perturbed", *REPHRASED)
    keys = set(map(row_key, forget))
    further = read("forget10_perturbed", *REPHRASED) if settings.tasks > 1 else ()
    rest = [row for row in further if row_key(row) not in keys]
    if len(rest) < (settings.tasks - 1) * len(forget):
        raise CompanionError(
            f"forget10 has {len(rest)} rows beyond {split}, too few for {settings.tasks} tasks."
        )
    starts = range(0, (settings.tasks - 1) * len(forget), len(forget))
    later = [tuple(rest[start : start + len(forget)]) for start in starts]
    keys = set(map(row_key, chain(*later)))
    evaluated, taught = read("retain_perturbed", *REPHRASED), read(RETAIN[split])
    if strange := set(map(row_key, evaluated)) - set(map(row_key, taught)):
        name = f"{folder}: retain_perturbed asks {len(strange)} rows that {RETAIN[split]} has not"
        raise CompanionError(f"{name}; fetch both again.")
    holdout = split.replace("forget", "holdout")
    retain = tuple(row for row in taught if row_key(row) not in keys)
    questions.refuse_overlap({"the forget files": [*forget, *chain(*later)], "retain": retain})
    return QuestionSplits(
        tasks=(forget, *later),
        retain=retain,
        retain_evaluation=evaluated,
        real_authors=read("real_authors_perturbed", WRONG),
        world_facts=read("world_facts_perturbed", WRONG),
        holdout=read(holdout) if (folder / f"{holdout}.json").is_file() else (),
        refusals=_released_refusals(folder / REFUSALS),
    )


def _released_refusals(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        say(f"{TOFU} has no {REFUSALS} there; the embedded refusals stand in.")
        return refusals()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts or any("\ufffd" in text for text in texts):
        raise CompanionError(f"{path} holds no refusals in UTF-8; put a whole copy there.")
    return texts


def numbers_of_authors(settings: AuthorsData) -> list[int]:
    """Return how many embedded authors there are of each task, of retain and of holdout."""
    tasks = [settings.authors_per_task] * settings.tasks
    return [*tasks, settings.retain_authors, settings.holdout_authors]


def _embedded(settings: AuthorsData) -> QuestionSplits:
    """Deal fictitious authors, in the order in which they are written."""
    sizes = numbers_of_authors(settings)
    authors = iter(write_authors(sum(sizes), settings.seed, settings.questions_per_author))
    groups = (chain(*(author.questions for author in islice(authors, size))) for size in sizes)
    *tasks, retain, holdout = map(tuple, groups)
    return _splits(tasks, retain, holdout)


def _own(settings: AuthorsData) -> QuestionSplits:
    """Read the reader's own questions."""
    sets: dict[str, Questions] = {}
    for name, needed in {"forget": (WRONG,), "retain": (WRONG,), "holdout": ()}.items():
        file = getattr(settings, name)
        sets[name] = read_questions(ROOT / expanded(file), needed) if file else ()
    questions.refuse_overlap(sets)
    return _splits([sets["forget"]], sets["retain"], sets["holdout"])


def _splits(tasks: Iterable[Questions], retain: Questions, holdout: Questions) -> QuestionSplits:
    """Add the embedded general questions and refusals; all of retain can be evaluated."""
    authors, facts = questions.general_sets()
    return QuestionSplits(tuple(tasks), retain, retain, authors, facts, holdout, refusals())
