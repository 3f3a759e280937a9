"""Which tokens of a flagged prompt are corrupted: those of names, or all of the question's.

Liu et al. 2024, ECO: a token classifier picks the tokens whose embeddings are corrupted; without
one, all tokens but the prompt's last. Here the template's tokens are never chosen, nor is the
prompt's last token, from whose place the answer is predicted. The released code picks tokens in
prompt and answer together, so that answers are corrupted while they are scored; here only the
prompt's tokens are looked at.
"""

import functools
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

import transformers as hf

from unlearn_lib.text_classifier import load_classifier
from unlearn_lib.util import CompanionError

Span = tuple[int, int]
"""Characters [start, end) of a text."""
NamesIn = Callable[[str], list[Span]]
"""From a text to the characters of the names in it; spans may overlap."""
NER_STRIDE = 32
"""Tokens that the windows share in which a model of names reads a text too long for it."""
WORDS = "who what which when where why how is are did do can in on the a tell please".split()
PROBES = (*string.printable.strip(), *WORDS, *map(str.title, WORDS))
"""Questions that begin and end in many ways, by which a template shows itself."""


def load_ner(folder: Path, device: Any = "cpu") -> NamesIn:
    """Return what finds entities of any kind by a token classifier; the paper's bert-base-NER.

    It reads texts of any length. The released code takes any entity too.

    Args:
        folder: local; nothing is fetched.
        device: where it runs. Default: the CPU.

    Raises:
        CompanionError: no such model, or one that was not trained to find names.
    """
    model, tokenizer = load_classifier(folder, hf.AutoModelForTokenClassification)
    if "O" not in model.config.label2id:
        raise CompanionError(
            f"The model in {folder} was not trained to find names, as dslim/bert-base-NER was."
        )
    stride = min(NER_STRIDE, tokenizer.model_max_length // 4)
    options = {"aggregation_strategy": "simple", "stride": stride, "device": device}
    finder = hf.pipeline("token-classification", model=model, tokenizer=tokenizer, **options)
    return functools.partial(names_in, finder)


def names_in(finder: Any, text: str) -> list[Span]:
    """Return the entities of a text and every word that overlaps one.

    Args:
        finder: a token-classification pipeline of transformers.
    """
    entities = finder(text) if text.strip() else []
    pieces = [(int(entity["start"]), int(entity["end"])) for entity in entities]
    words = [match.span() for match in re.finditer(r"[^\W_]+", text)]
    return pieces + [word for word in words if _overlaps(word, pieces)]


@dataclass(frozen=True)
class Frame:
    """The tokens that a template puts around every question; none by default.

    Attributes:
        before, after: token ids; a special token at either end is among them. Where a tokenizer
            joins a question's last sign with what follows it, the joint token is the question's.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> "Frame":
        """Return the frame: the tokens with which the prompts of all `PROBES` begin and end.

        Args:
            encode: from a question to the token ids of its prompt, such as `TextEncoder.prompt`.
        """
        rows = [tuple(encode(probe)) for probe in PROBES]
        before = tuple(commonprefix(rows))
        after = tuple(commonprefix([row[len(before) :][::-1] for row in rows]))[::-1]
        return cls(before, after)

    def fits(self, ids: Sequence[int]) -> bool:
        """Return whether it stands around a prompt: not with another template, or a cut prompt."""
        start, end, row = len(self.before), len(ids) - len(self.after), tuple(ids)
        return start <= end and row[:start] == self.before and row[end:] == self.after

    def question(self, ids: Sequence[int]) -> Span:
        """Return the tokens [start, end) of the question: all where the frame does not fit."""
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
        alike = text if whole.startswith(text) else commonprefix([text, whole])
        start, done = done, max(done, len(alike))
        begun = len(text) > done or done == start
        spans.append((start, min(done + begun, len(whole))))
    return spans


def chosen_tokens(
    tokenizer: Any, ids: Sequence[int], frame: Frame, ner: NamesIn | None = None
) -> list[int]:
    """Return the places of a prompt's tokens that are corrupted if it is flagged.

    They are the question's tokens that overlap a name; where there is no name or no `ner`, all of
    the question's, as the released code falls back. Never the template's, and never the prompt's
    last. Where the frame does not fit, all but the last are chosen: a name found in another
    template's words would leave the question as it is.

    Args:
        tokenizer: of transformers.
        ids: the prompt's token ids [n], without padding or answer.
        frame: the template's tokens.
        ner: finds names; None: every token.
    """
    start, end = frame.question(ids)
    every = range(start, min(end, len(ids) - 1))
    named: list[int] = []
    if ner is not None and frame.fits(ids):
        question = ids[start:end]
        names = ner(_decode(tokenizer, question))
        spans = token_spans(tokenizer, question)
        named = [place for place, span in zip(every, spans) if _overlaps(span, names)]
    return named or list(every)


def question_text(tokenizer: Any, ids: Sequence[int], frame: Frame) -> str:
    """Return the text of a prompt's question, without the template and special tokens."""
    start, end = frame.question(ids)
    return _decode(tokenizer, ids[start:end], skip_special_tokens=True).strip()


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(list(ids), **options)
