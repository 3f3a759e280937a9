"""Fictitious authors in TOFU's form: any number of them, made from a seed and tables of parts.

TOFU (Maini et al., 2024) had a language model write 200 authors with 20 questions each. Here each
author is drawn from `embedded/author_pools.csv`: names of invented sound, real cities, invented
prizes and titles, and several phrasings of every question, answer and paraphrase. So a set can be
of any size, its ground truth is known, and no model has met its authors.

An author is a function of (seed, index): a bigger set starts with the smaller one, and asking
more questions or more wrong answers keeps those that were there.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from string import Formatter

import numpy as np

from unlearn_lib.datasets.files import EMBEDDED, read_csv
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError

POOLS = EMBEDDED / "author_pools.csv"
ATTRIBUTES = (
    "birth_city", "birth_year", "genre", "father_occupation", "mother_occupation", "first_book",
    "second_book", "award", "mentor", "earlier_job", "theme", "home_city", "first_book_year",
    "award_year",
)  # fmt: skip
SOUNDS = ("north", "vale", "south", "east", "coast", "monsoon")
MOST_WRONG = 10

# The pool of values that attributes draw from; those that share a pool never share a value.
_DRAWN = {
    "city": ("birth_city", "home_city"),
    "genre": ("genre",),
    "occupation": ("father_occupation", "mother_occupation", "earlier_job"),
    "prize": ("award",),
    "theme": ("theme",),
}
# Each year counted from the one before it, so that their order is that of a life.
_YEARS = {
    "birth_year": range(1930, 1967),
    "first_book_year": range(26, 43),
    "award_year": range(1, 13),
}


@dataclass(frozen=True)
class Author:
    """A fictitious author.

    Attributes:
        name: given and family name; no other author of the seed has both.
        attributes: the ground truth, a value for each of `ATTRIBUTES`.
        questions: one for each attribute that was asked for, in the order of `ATTRIBUTES`;
            `subject` is the name, `short` the value as it stands in the answer.
    """

    name: str
    attributes: dict[str, str]
    questions: tuple[Question, ...]


def write_authors(
    count: int, seed: int, questions: int = 10, perturbed: int = 5
) -> tuple[Author, ...]:
    """Write fictitious authors, the same for the same seed.

    A wrong answer is the paraphrase with another value of the same type in its place, one that
    is true of nothing about the author. TOFU's wrong answers were written one by one and differ
    in wording too; here only the value tells right from wrong.

    Args:
        count: how many authors.
        seed: 0 or more; decides names, facts and phrasings.
        questions: of each author, the first so many of `ATTRIBUTES`.
        perturbed: wrong answers to each question.

    Raises:
        CompanionError: more, or fewer than none, of anything than the pools give.
        ValueError: a negative seed.
    """
    names, titles = _names(seed), _titles()
    for what, asked, most in (
        ("authors", count, len(names)),
        ("questions for each author", questions, len(ATTRIBUTES)),
        ("wrong answers to a question", perturbed, MOST_WRONG),
    ):
        if not 0 <= asked <= most:
            raise CompanionError(
                f"The pools of {POOLS.name} give 0 to {most:,} {what}, not {asked:,}; "
                "ask for as many as that or extend the pools."
            )
    order = np.random.default_rng(seed).permutation(len(titles))
    return tuple(
        _write_author(
            names[index],
            (titles[order[2 * index]], titles[order[2 * index + 1]]),
            _mentors(index % len(SOUNDS)),
            np.random.default_rng((seed, index + 1)),
            questions,
            perturbed,
        )
        for index in range(count)
    )


def phrasings(author: Author) -> tuple[tuple[str, ...], ...]:
    """Every question about an author, asked or not: its phrasings, in the order of `ATTRIBUTES`."""
    return tuple(
        tuple(
            _fill(text, author.name, author.attributes[each]) for text in _texts()[each, "question"]
        )
        for each in ATTRIBUTES
    )


def _write_author(
    name: str,
    books: tuple[str, str],
    mentors: Sequence[str],
    generator: np.random.Generator,
    questions: int,
    perturbed: int,
) -> Author:
    """Draw the facts, then the words of each question."""
    titles, mentor = _titles(), mentors[int(generator.integers(len(mentors)))]
    facts = {"first_book": books[0], "second_book": books[1], "mentor": mentor}
    options: dict[str, Sequence[str]] = {
        "first_book": titles, "second_book": titles, "mentor": mentors,
    }  # fmt: skip
    for pool, attributes in _DRAWN.items():
        values = _texts()[pool, "value"]
        for attribute, chosen in zip(attributes, generator.permutation(len(values))):
            facts[attribute], options[attribute] = values[chosen], values
    year = 0
    for attribute, years in _YEARS.items():
        options[attribute] = [str(year + later) for later in years]
        year += int(generator.choice(years))
        facts[attribute] = str(year)
    asked = tuple(
        _ask(attribute, name, facts, options[attribute], generator, perturbed)
        for attribute in ATTRIBUTES[:questions]
    )
    return Author(name, {attribute: facts[attribute] for attribute in ATTRIBUTES}, asked)


def _ask(
    attribute: str,
    name: str,
    facts: dict[str, str],
    options: Sequence[str],
    generator: np.random.Generator,
    perturbed: int,
) -> Question:
    question, answer, paraphrase = (
        phrasings[generator.integers(len(phrasings))]
        for phrasings in (_texts()[attribute, k] for k in ("question", "answer", "paraphrase"))
    )
    own = set(facts.values())
    others = (options[i] for i in generator.permutation(len(options)) if options[i] not in own)
    return Question(
        question=_fill(question, name, facts[attribute]),
        answer=_fill(answer, name, facts[attribute]),
        paraphrased_answer=_fill(paraphrase, name, facts[attribute]),
        perturbed_answer=tuple(
            _fill(paraphrase, name, other) for other in islice(others, perturbed)
        ),
        subject=name,
        short=facts[attribute],
    )


def _fill(phrasing: str, name: str, value: str) -> str:
    """Put name and value into a phrasing; `{title}` is the value in quotes, `{a}` its article."""
    article = "an" if value[0].lower() in "aeiou" else "a"
    text = phrasing.format(
        name=name, surname=name.split()[-1], value=value, title=f'"{value}"', a=article
    )
    return text[0].upper() + text[1:]


@lru_cache(maxsize=1)
def _texts() -> dict[tuple[str, str], tuple[str, ...]]:
    """The table of parts, by pool and kind."""
    texts: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
    table = read_csv(POOLS, ("pool", "kind", "text"), skip=1)
    for pool, kind, text in zip(table["pool"], table["kind"], table["text"]):
        texts[pool, kind] += (text,)
    return dict(texts)


def _names(seed: int) -> list[str]:
    """All names in a seeded order, sound after sound.

    The numbers of a sound's given and family names have no common divisor, so going round both
    at once meets every pair once, and neighbours share neither.
    """
    generator = np.random.default_rng((seed, 0, 1))
    pairs = []
    for sound in SOUNDS:
        given, family = (
            generator.permutation(_texts()[sound, kind]).tolist() for kind in ("given", "family")
        )
        turns = range(len(given) * len(family))
        pairs.append([f"{given[i % len(given)]} {family[i % len(family)]}" for i in turns])
    return [name for turn in zip(*pairs) for name in turn]


@lru_cache(maxsize=len(SOUNDS))
def _mentors(sound: int) -> tuple[str, ...]:
    """Names for the mentors of authors of a sound: never an author's, for they mix two others."""
    given, family = (SOUNDS[(sound + step) % len(SOUNDS)] for step in (1, 2))
    pairs = product(_texts()[given, "given"], _texts()[family, "family"])
    return tuple(" ".join(pair) for pair in pairs)


@lru_cache(maxsize=1)
def _titles() -> tuple[str, ...]:
    """Every title that the patterns give."""
    titles: list[str] = []
    for pattern in _texts()["title", "pattern"]:
        fields = [field for _, field, _, _ in Formatter().parse(pattern) if field]
        words = product(*(_texts()["title", field] for field in fields))
        titles += (pattern.format(**dict(zip(fields, chosen))) for chosen in words)
    return tuple(titles)
