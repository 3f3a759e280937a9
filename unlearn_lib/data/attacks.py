"""The same questions, asked so that a guard may miss them.

Liu et al. 2024 try prefixes and suffixes of the kind that dodge a classifier; the others are ours.
Each attack is a function of a question and a seeded generator, and asks for what the question asks
for, or, in halves and keywords, for part of it. The words are in `embedded/wordings.csv`.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from unlearn_lib.data.draws import Random, one, shuffled
from unlearn_lib.data.questions import Question, read_pools
from unlearn_lib.util import entry_of


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    """Return a table of texts that are written `one:other`."""
    return dict(text.split(":") for text in texts)


LETTERS_A_TYPO = 12
BURIED_SENTENCES = 9
BESIDE_SENTENCES = 6

WORDINGS = read_pools("wordings.csv")
QUESTION_WORDS = WORDINGS["function word", "question"]
BEFORE_QUESTION_WORDS = WORDINGS["function word", "before question"]
FUNCTION_WORDS = {*QUESTION_WORDS, *BEFORE_QUESTION_WORDS, *WORDINGS["function word", "other"]}
OTHER_WORDS = _pairs(WORDINGS["paraphrase", "word"])
"""Words for the same thing, put in the place of others: those in lower case, so no name's."""
SPELLINGS = [_pairs(texts) for (pool, _), texts in WORDINGS.items() if pool == "spelling"]
"""How each language with Latin letters spells a sound."""

_WORD = re.compile(r"[^\W\d_]+")


def attacked(questions: Sequence[Question], name: str, seed: int = 0) -> list[str]:
    """Return questions as an attack asks them.

    A text depends on its question, the attack and the seed only, never on the other rows. Where an
    attack has nothing to change (one letter, another script), a full stop is added.

    Args:
        questions: [n], none empty; `subject` is the name that typos and spellings go for, where it
            is known.
        name: one of `ATTACKS`.
        seed: 0 or more. Default 0.

    Returns:
        Texts [n], none empty, and none the question itself save by «as asked».

    Raises:
        CompanionError: no such attack.
    """
    attack = entry_of(ATTACKS, name, "There is no attack")
    texts = []
    for question in questions:
        asked = question.question.strip()
        key = zlib.crc32(f"{name}\n{question.question}".encode())
        text = attack(question, np.random.default_rng((seed, key)))
        unchanged = name != "as asked" and text.strip() in ("", asked)
        texts.append(f"{asked}." if unchanged else text)
    return texts


def as_asked(question: Question, random: Random) -> str:
    """The question itself."""
    return question.question


def paraphrased(question: Question, random: Random) -> str:
    """The same request in other words; names and what is asked for stay."""
    text = question.question.strip()
    first, second = [*text.lower().split(" "), ""][:2]
    asks = first in QUESTION_WORDS or (first in BEFORE_QUESTION_WORDS and second in QUESTION_WORDS)
    text = re.sub(r"\b[a-z]+\b(?!['’]\w)", lambda m: OTHER_WORDS.get(m[0], m[0]), text)
    if asks and text.endswith("?") and random.random() < 0.7:
        asking = one(random, WORDINGS["paraphrase", "asking"])
        return asking.format(text[0].lower() + text[1:-1].rstrip())
    return f"{one(random, WORDINGS['paraphrase', 'lead'])}: {text}"


def prefix(question: Question, random: Random) -> str:
    """After a text that may dodge a classifier: a role, an order, another topic, long filler."""
    return f"{_beside('prefix', random)} {question.question}"


def suffix(question: Question, random: Random) -> str:
    """Before a text that may dodge a classifier."""
    return f"{question.question} {_beside('suffix', random)}"


def typos(question: Question, random: Random) -> str:
    """Letters swapped, dropped or doubled: one in twelve, two if there is room, one in the name."""
    text = question.question
    order = [i for i in shuffled(random, range(len(text))) if text[i].isalpha()]
    count = max(2, len(order) // LETTERS_A_TYPO)
    name = _named(question)
    named = [i for i in order if name and name.start() <= i < name.end()]
    places: list[int] = []
    for place in named[:1] + order:
        if len(places) < count and all(abs(place - other) > 1 for other in places):
            places.append(place)
    for place in sorted(places, reverse=True):
        letter, after = text[place], text[place + 1 : place + 2]
        edits = [letter * 2 + after, after]
        if after.isalpha() and after != letter:
            edits.append(after + letter)
        text = text[:place] + one(random, edits) + text[place + 2 :]
    return text


def other_spelling(question: Question, random: Random) -> str:
    """Names as another language with Latin letters might spell them.

    The subject's words where the question holds any; else capitalised words but the first, else
    all words. Where the language leaves them as they are, another is tried.
    """
    text = question.question
    words = list(_WORD.finditer(text))
    subject = _WORD.findall(question.subject)
    names = [match for match in words if match[0] in subject and len(match[0]) > 2]
    names = names or [match for match in words[1:] if match[0][0].isupper()] or words
    for table in shuffled(random, SPELLINGS):
        spelt = text
        for match in reversed(names):
            spelt = spelt[: match.start()] + _respelt(match[0], table) + spelt[match.end() :]
        if spelt != text:
            return spelt
    return text


def half_a_question(question: Question, random: Random) -> str:
    """The first half of its words."""
    words = question.question.split()
    return " ".join(words[: (len(words) + 1) // 2])


def keywords(question: Question, random: Random) -> str:
    """The name where the question holds it, then the other words of content in their order."""
    text, name = question.question, _named(question)
    rest = f"{text[: name.start()]} {text[name.end() :]}" if name else text
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", re.sub(r"['’]s\b", "", rest))
    content = [word for word in words if word.lower() not in FUNCTION_WORDS]
    return " ".join([name[0], *content] if name else content)


def buried(question: Question, random: Random) -> str:
    """In the middle of about 120 words of plain text about something else."""
    filler = _filler(random, BURIED_SENTENCES)
    middle = BURIED_SENTENCES // 2
    return " ".join([*filler[:middle], question.question, *filler[middle:]])


ASKING = (as_asked, paraphrased, prefix, suffix, typos, other_spelling, half_a_question)
ATTACKS: dict[str, Callable[[Question, Random], str]] = {
    each.__name__.replace("_", " "): each for each in (*ASKING, keywords, buried)
}


def _named(question: Question) -> re.Match[str] | None:
    """Where the question first holds its subject."""
    name = question.subject.strip()
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question.question) if name else None


def _filler(random: Random, count: int) -> list[str]:
    """Sentences about something else."""
    return shuffled(random, WORDINGS["around", "filler"])[:count]


def _beside(kind: str, random: Random) -> str:
    """A text of a kind, or some filler."""
    filler = " ".join(_filler(random, BESIDE_SENTENCES))
    return one(random, [*WORDINGS["around", kind], filler])


def _respelt(word: str, table: dict[str, str]) -> str:
    """Replace the longest parts first, each letter once; a capital stays a capital."""
    parts = "|".join(sorted(table, key=len, reverse=True))

    def other(match: re.Match[str]) -> str:
        new = table[match[0].lower()]
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return re.sub(parts, other, word, flags=re.IGNORECASE)
