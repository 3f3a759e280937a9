"""Which tokens of a flagged prompt are corrupted: those of names, or all of the question's.

Liu et al. 2024, ECO: a token classifier picks the tokens whose embeddings are corrupted; without
one, all tokens but the prompt's last. Here the template's tokens are never chosen, nor is the
prompt's last token, from whose place the answer is predicted. The released code picks tokens in
prompt and answer together, so that answers are corrupted while they are scored; here only the
prompt's tokens are looked at.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from unlearn_lib.assets import check_safetensors
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import Estimate, proportion

Span = tuple[int, int]
"""Characters [start, end) of a text."""
SpanFinder = Callable[[str], list[Span]]

NER_STRIDE = 32
"""Tokens that the windows share in which a NerModel reads a text too long for it."""
OPENERS = frozenset(
    """who whom whose what which when where why how whatever whichever
    in on at by for from to of with about against around over under during after before between
    into through since until as among upon besides apart according considering given within without
    is are was were be am do does did has have had can could will would shall should may might must
    a an the this that these those there here it its he she they we you my your his her their our
    and or but if so then also because while although though both not no yes any some all each
    every many most much such another other once please tell name give list describe explain state
    identify say write provide recall mention share find show let help hello hi dear""".split()
)
"""Words that are capitalised for no other reason than that they begin a sentence."""
PROBES = (*string.printable.strip(), *sorted(OPENERS), *map(str.title, sorted(OPENERS)))
"""Questions that begin and end in all ways, by which a template shows itself."""
PARTICLES = frozenset(
    """de da di du do dos das del della des der den van von vom zu zur ten ter la le el al bin bint
    ibn ben abu af av y e""".split()
)
"""Lower-case words that belong to a name between its parts; those longer than one letter also
before it, save the English «do» and «den»."""
LEADING = frozenset(word for word in PARTICLES if len(word) > 1) - {"do", "den"}
LINKS = frozenset({"of", "the"})
"""Words that join two capitalised parts to one name: Alexander the Great, Leaves of Grass."""
ABBREVIATIONS = frozenset({"Dr", "Mr", "Mrs", "Ms", "St", "Prof", "Capt", "Jr", "Sr"})

_LETTERS = r"(?:[^\W\d_][\u0300-\u036f]*)+"
_WORD = re.compile(rf"{_LETTERS}(?:[-'’‐‑]{_LETTERS})*\.?")
_QUOTED = re.compile(
    r'" *(?=\S)([^"\n]{1,120}?) *"|“ *(?=\S)([^”\n]{1,120}?) *”|« *(?=\S)([^»\n]{1,120}?) *»|'
    r"(?<!\w)['‘](?=\w)([^\n]{1,120}?)['’](?!\w)"
)
_SENTENCE_START = re.compile(r"[.!?:;…\n\"“„«(\[¿¡—–]")
_NAME = re.compile(r"p*C(?:[pyl]{0,3}C)*")


def name_spans(text: str) -> list[Span]:
    """Find names by their capitals, and quoted titles: no model, any Latin-like script.

    A name is a run of capitalised words with the particles, hyphens, apostrophes, initials and
    accents that belong to it; «'s» is not part of it. A word that begins a sentence counts unless
    it is one that usually does (`OPENERS`). What stands in quotes counts whatever its letters.
    In a text without capitals, or in a script that has none, nothing is found: then
    `chosen_tokens` takes every token. A name in lower case beside other capitals is missed.

    On the embedded questions (`accuracy`; held by a test) all names of fictitious authors and of
    known people are covered wholly. Of the spans found, all are the author's name; with known
    people at least 9 in 10 are the person's, and the others name places, works and peoples.

    Returns:
        Spans in order, without overlap; in each, first and last character are no white space.
    """
    quoted = _quoted_spans(text)
    runs = [run for run in _capital_runs(text) if not any(map(_overlapping(run), quoted))]
    return sorted(quoted + runs)


def no_spans(text: str) -> list[Span]:
    """Find nothing, so that `chosen_tokens` takes every token of the question."""
    return []


SELECTORS: dict[str, SpanFinder] = {"names": name_spans, "every": no_spans}


@dataclass(frozen=True, eq=False)
class NerModel:
    """A token classifier that finds entities of any kind, on the CPU; the paper's bert-base-NER.

    A word is found whole when any of its pieces is. The released code takes any entity too.

    Attributes:
        find: a token-classification pipeline of transformers.
    """

    find: Any

    @classmethod
    def load(cls, folder: Path) -> "NerModel":
        """Load a token classifier from a local folder with safetensors; nothing is fetched.

        Raises:
            CompanionError: no such model, damaged weights, or a model that was trained for
                something else.
        """
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        for file in folder.glob("*.safetensors"):
            check_safetensors(file)
        try:
            model, report = AutoModelForTokenClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CompanionError(
                f"There is no token classifier in {folder} ({reason}); fetch it again."
            ) from error
        if report["missing_keys"] or "O" not in model.config.label2id:
            raise CompanionError(
                f"The model in {folder} was not trained to find names: it lacks "
                f"{', '.join(sorted(report['missing_keys'])) or 'the label O'}; name one that was, "
                "such as dslim/bert-base-NER."
            )
        positions = getattr(model.config, "max_position_embeddings", 512)
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        stride = min(NER_STRIDE, tokenizer.model_max_length // 4)
        options = {"aggregation_strategy": "simple", "stride": stride, "device": "cpu"}
        return cls(pipeline("token-classification", model=model, tokenizer=tokenizer, **options))

    def __call__(self, text: str) -> list[Span]:
        """Find the entities of a text of any length, as `name_spans` does."""
        found: list[Span] = []
        for entity in self.find(text) if text.strip() else ():
            start, end = _whole_words(text, int(entity["start"]), int(entity["end"]))
            if found and start <= found[-1][1]:
                start, end = found[-1][0], max(end, found.pop()[1])
            found.append((start, end))
        return found


@dataclass(frozen=True)
class Frame:
    """The tokens that a template puts around every question.

    Attributes:
        before, after: token ids; a special token at either end is among them. Where a tokenizer
            joins a question's last sign with what follows it, the joint token is the question's.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> "Frame":
        """Find the frame: the tokens with which the prompts of all `PROBES` begin and end.

        Args:
            encode: from a question to the token ids of its prompt, such as `TextEncoder.prompt`.

        Raises:
            ValueError: the prompts do not depend on the question.
        """
        rows = [tuple(encode(probe)) for probe in PROBES]
        before = tuple(commonprefix(rows))
        after = tuple(commonprefix([row[len(before) :][::-1] for row in rows]))[::-1]
        if any(len(row) == len(before) + len(after) for row in rows):
            raise ValueError("A prompt holds no token of its question: check `encode`.")
        return cls(before, after)

    def fits(self, ids: Sequence[int]) -> bool:
        """Whether the frame stands around a prompt: not with another template, or a cut prompt."""
        start, end, row = len(self.before), len(ids) - len(self.after), tuple(ids)
        return start <= end and row[:start] == self.before and row[end:] == self.after

    def question(self, ids: Sequence[int]) -> Span:
        """Return the tokens [start, end) of a prompt's question: all where the frame fits not."""
        return (len(self.before), len(ids) - len(self.after)) if self.fits(ids) else (0, len(ids))


def token_spans(tokenizer: Any, ids: Sequence[int]) -> list[Span]:
    """Return which characters of `tokenizer.decode(ids)` each token stands for.

    Prefixes of the row are decoded, so that it works with any tokenizer, fast or slow, and without
    its text. A token with a part of a character (byte-level BPE) has that whole character; one that
    shows nothing has the character that follows.

    Args:
        tokenizer: of transformers.
        ids: token ids [n].

    Returns:
        Spans [n], starts and ends never falling; neighbours overlap where they share a character.
    """
    decoded = [_decode(tokenizer, ids[:count]) for count in range(len(ids) + 1)]
    whole, done, spans = decoded[-1], 0, []
    for text in decoded[1:]:
        start, done = done, max(done, len(commonprefix([text, whole])))
        begun = len(text) > done or done == start
        spans.append((start, min(done + begun, len(whole))))
    return spans


def chosen_tokens(
    tokenizer: Any, ids: Sequence[int], frame: Frame, selector: SpanFinder
) -> tuple[list[bool], str]:
    """Choose the tokens of a prompt that are corrupted if it is flagged.

    Chosen are the question's tokens that overlap what `selector` finds in its text; where it finds
    nothing, all of the question's, as the released code falls back. Never the template's, and
    never the prompt's last. Where the frame does not fit, all but the last are chosen: a name
    found in another template's words would leave the question as it is.

    Args:
        tokenizer: of transformers.
        ids: the prompt's token ids [n], n >= 1, without padding or answer.
        frame: the template's tokens.
        selector: one of `SELECTORS`, or a NerModel.

    Returns:
        A flag for each token [n], and the question's text, special tokens left out.

    Raises:
        ValueError: a prompt without tokens.
    """
    if not len(ids):
        raise ValueError("The prompt has no token: give one with at least one.")
    start, end = frame.question(ids)
    question = list(ids[start:end])
    names = selector(_decode(tokenizer, question)) if frame.fits(ids) else []
    chosen = [False] * len(question)
    if names:
        chosen = [any(map(_overlapping(span), names)) for span in token_spans(tokenizer, question)]
    if not any(chosen):
        chosen = [True] * len(question)
    flags = [False] * start + chosen + [False] * (len(ids) - end)
    flags[-1] = False
    return flags, question_text(tokenizer, ids, frame)


def question_text(tokenizer: Any, ids: Sequence[int], frame: Frame) -> str:
    """The text of a prompt's question, without the template and special tokens."""
    start, end = frame.question(ids)
    return _decode(tokenizer, ids[start:end], skip_special_tokens=True).strip()


def accuracy(
    pairs: Sequence[tuple[str, str]], find: SpanFinder = name_spans
) -> tuple[Estimate, Estimate]:
    """How well names are found: recall and precision, each 0 to 1.

    Args:
        pairs: (text, the name it is about) [n]; those whose text does not hold the name, letter
            for letter, are left out.
        find: what is judged. Default `name_spans`.

    Returns:
        Recall: the share of the name's occurrences of which every letter is in a found span.
        Precision: the share of found spans that overlap the name or a quoted title; nan with
        n = 0 where nothing was found.

    Raises:
        ValueError: no text holds its name.
    """
    covered: list[bool] = []
    right: list[bool] = []
    for text, name in pairs:
        places = [m.span() for m in re.finditer(re.escape(name), text)] if name else []
        if not places:
            continue
        found = find(text)
        inside = {i for start, end in found for i in range(start, end)}
        true = places + _quoted_spans(text)
        for place in places:
            covered.append(all(i in inside for i in range(*place) if text[i].isalnum()))
        right += [any(map(_overlapping(span), true)) for span in found]
    if not covered:
        raise ValueError("No text holds its name: give pairs of a text and the name in it.")
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    return proportion(covered), proportion(right) if right else nothing


def _quoted_spans(text: str) -> list[Span]:
    return [match.span(match.lastindex or 0) for match in _QUOTED.finditer(text)]


def _capital_runs(text: str) -> list[Span]:
    """Names as a regular expression over kinds of words: C capital, p y l joining, o other."""
    words: list[tuple[str, Span]] = []
    last = 0
    for match in _WORD.finditer(text):
        start, word = match.start(), match.group()
        gap, bare = text[last:start], word.rstrip(".")
        if bare not in ABBREVIATIONS and not (len(bare) == 1 and bare.isupper()):
            word = bare
        begins = not words or _SENTENCE_START.search(gap) is not None
        if gap.strip() or begins:
            words.append(("|", (start, start)))
        name = re.sub(r"['’][sS]$", "", word)
        words.append((_kind(word, begins), (start, start + len(name))))
        if name != word:
            words.append(("|", (start, start)))
        last = start + len(word)
    found = _NAME.finditer("".join(kind for kind, _ in words))
    return [(words[m.start()][1][0], words[m.end() - 1][1][1]) for m in found]


def _kind(word: str, begins: bool) -> str:
    parts = re.split("[-'’‐‑]", word)
    if parts[0] == "I" or (begins and parts[0].lower() in OPENERS):
        return "o"
    if any(part[0] != part[0].lower() for part in parts):
        return "C"
    if word in LINKS:
        return "l"
    return "p" if word in LEADING else "y" if word in PARTICLES else "o"


def _overlapping(span: Span) -> Callable[[Span], bool]:
    return lambda other: span[0] < other[1] and other[0] < span[1]


def _whole_words(text: str, start: int, end: int) -> Span:
    while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def _decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(list(ids), **options)
