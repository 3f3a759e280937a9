"""Fictitious authors in TOFU's form: any number of them, made from a seed and tables of parts.

TOFU (Maini et al., 2024) had a language model write 200 authors with 20 questions each. Here each
author is drawn from `embedded/author_pools.csv`: names of invented sound, real cities, invented
prizes and titles, and several phrasings of every question, answer and paraphrase. So a set can be
of any size, its ground truth is known, and no model has met its authors.

An author is a function of (seed, index): a bigger set starts with the smaller one, and asking
more questions keeps those that were there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice, product
from string import Formatter

import numpy as np

from unlearn_lib.data.draws import Random, one, shuffled
from unlearn_lib.data.questions import Question, Questions, read_pools
from unlearn_lib.util import CompanionError

TEXTS = read_pools("author_pools.csv")
ATTRIBUTES = tuple(pool for pool, kind in TEXTS if kind == "question")
SOUNDS = tuple(pool for pool, kind in TEXTS if kind == "given")
"""What is told of an author, and the families of sound of names, in the order of the file."""
WRONG_ANSWERS = 5

DRAWN = {
    "city": ("birth_city", "home_city"),
    "genre": ("genre",),
    "occupation": ("father_occupation", "mother_occupation", "earlier_job"),
    "prize": ("award",),
    "theme": ("theme",),
}
"""The attributes that draw from each pool of values, never the same one."""
YEARS = {
    "birth_year": range(1930, 1967),
    "first_book_year": range(26, 43),
    "award_year": range(1, 13),
}
"""Each year is counted from the one before it, so that their order is that of a life."""


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
    questions: Questions


def write_authors(count: int, seed: int, questions: int = 10) -> tuple[Author, ...]:
    """Return fictitious authors, the same for the same seed.

    A wrong answer is the paraphrase with another value of the same type in its place, one that
    is true of nothing about the author. TOFU's wrong answers were written one by one and differ
    in wording too; here only the value tells right from wrong.

    Args:
        count: how many authors.
        seed: 0 or more; decides names, facts and phrasings.
        questions: of each author, the first so many of `ATTRIBUTES`, with `WRONG_ANSWERS` each.

    Raises:
        CompanionError: more authors or questions than the pools give.
    """
    names = _names(seed)
    if count > len(names) or questions > len(ATTRIBUTES):
        raise CompanionError(
            f"Ask for at most {len(names)} authors and {len(ATTRIBUTES)} questions about each."
        )
    titles = shuffled(np.random.default_rng(seed), _titles())
    authors = []
    for index, name in enumerate(names[:count]):
        random = np.random.default_rng((seed, index + 1))
        mentors = _mentors(index % len(SOUNDS))
        facts, options = _draw_facts(titles[2 * index : 2 * index + 2], mentors, random)
        asked = [_ask(name, facts, key, options[key], random) for key in ATTRIBUTES[:questions]]
        authors.append(Author(name, facts, tuple(asked)))
    return tuple(authors)


def phrasings(author: Author) -> tuple[tuple[str, ...], ...]:
    """Return every phrasing of each question about an author, in the order of `ATTRIBUTES`."""
    return tuple(
        tuple(_fill(text, author.name, value) for text in TEXTS[attribute, "question"])
        for attribute, value in author.attributes.items()
    )


def _draw_facts(
    books: list[str], mentors: list[str], random: Random
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Draw a value for every attribute; return them, and what each could have been."""
    facts = {"first_book": books[0], "second_book": books[1], "mentor": one(random, mentors)}
    options = {"first_book": _titles(), "second_book": _titles(), "mentor": mentors}
    for pool, attributes in DRAWN.items():
        values = TEXTS[pool, "value"]
        facts |= dict(zip(attributes, shuffled(random, values)))
        options |= dict.fromkeys(attributes, values)
    year = 0
    for attribute, years in YEARS.items():
        options[attribute] = [str(year + later) for later in years]
        year += int(random.choice(years))
        facts[attribute] = str(year)
    return {key: facts[key] for key in ATTRIBUTES}, options


def _ask(
    name: str, facts: Mapping[str, str], attribute: str, options: Sequence[str], random: Random
) -> Question:
    """Draw the words of one question, then its wrong answers."""
    value, known = facts[attribute], set(facts.values())
    kinds = ("question", "answer", "paraphrase")
    question, answer, paraphrase = (one(random, TEXTS[attribute, kind]) for kind in kinds)
    others = [option for option in shuffled(random, options) if option not in known]
    wrong = tuple(_fill(paraphrase, name, each) for each in others[:WRONG_ANSWERS])
    asked, right, reworded = (_fill(text, name, value) for text in (question, answer, paraphrase))
    return Question(asked, right, wrong, reworded, subject=name, short=value)


def _fill(phrasing: str, name: str, value: str) -> str:
    """Put name and value into a phrasing; `{title}` is the value in quotes, `{a}` its article."""
    article = "an" if value[0].lower() in "aeiou" else "a"
    gaps = {"name": name, "surname": name.split()[-1], "value": value, "title": f'"{value}"'}
    text = phrasing.format(**gaps, a=article)
    return text[0].upper() + text[1:]


def _names(seed: int) -> list[str]:
    """Return all names in a seeded order, sound after sound.

    The numbers of a sound's given and family names have no common divisor, so going round both
    at once meets every pair once, and neighbours share neither.
    """
    generator = np.random.default_rng((seed, 0, 1))
    names = []
    for sound in SOUNDS:
        first, last = (shuffled(generator, TEXTS[sound, kind]) for kind in ("given", "family"))
        pairs = islice(zip(cycle(first), cycle(last)), len(first) * len(last))
        names.append([" ".join(pair) for pair in pairs])
    return [name for turn in zip(*names) for name in turn]


@lru_cache(maxsize=len(SOUNDS))
def _mentors(sound: int) -> list[str]:
    """Return names for the mentors of a sound's authors: of two other sounds, so no author's."""
    first, last = (SOUNDS[(sound + step) % len(SOUNDS)] for step in (1, 2))
    pairs = product(TEXTS[first, "given"], TEXTS[last, "family"])
    return [" ".join(pair) for pair in pairs]


@lru_cache(maxsize=1)
def _titles() -> list[str]:
    """Return every title that the patterns give."""
    titles: list[str] = []
    for pattern in TEXTS["title", "pattern"]:
        fields = [field for _, field, _, _ in Formatter().parse(pattern) if field]
        words = product(*(TEXTS["title", field] for field in fields))
        titles += (pattern.format(**dict(zip(fields, group))) for group in words)
    return titles
