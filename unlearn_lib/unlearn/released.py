"""The faults of the released code of Arora et al. 2024 (copyright experiment), on purpose.

What is imitated, of shreya1313/llm-unlearning at 715eef4, each switched by its name:

- `empty_labels`: the forget rows are sentences, of which the first 200 characters are the prompt
  and the rest is the label (create_dataset.ipynb). Sentences of up to 200 characters have no
  label, so that their forget loss is zero; this was so on 78.4 % of the logged steps.
- `book_mismatch`: the "random answer" is one character, the prefix is the whole sentence, and
  the answer is taken to begin at the third token (opt-1.3b/utils.py:260-311): gradient *descent*
  on the text that is to be forgotten. The code repeats the row for five characters; here it
  stands once, which changes the mean of the five by the last character only.
- `kl_to_itself`: the reference of the KL term is the model in training, which the adapter was
  put on in place (unlearn.ipynb:92,104): its gradient is zero but for dropout.

Everything else (weights, steps, rows of a step, normal text) is the published method's. Used
only where a profile gives a method `faults`.
"""

import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unlearn_lib.model.tokens import Example, PassageEncoder
from unlearn_lib.settings import Fault
from unlearn_lib.unlearn.losses import gradient_ascent
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Step
from unlearn_lib.util import CompanionError

PROMPT_CHARACTERS = 200
FIRST_SCORED_TOKEN = 2
SENTENCE_END = re.compile(r"(?<=[.!?”])\s+")


def sentences(texts: Sequence[str]) -> list[str]:
    """Split texts into sentences, after a full stop, question or exclamation mark."""
    split = (SENTENCE_END.split(" ".join(text.split())) for text in texts)
    return [sentence for group in split for sentence in group if len(sentence) > 1]


def as_released(
    method: Method,
    steps: Sequence[Step],
    faults: Sequence[Fault],
    texts: Sequence[str],
    encoder: PassageEncoder,
    seed: int,
) -> tuple[Method, list[Step]]:
    """Give a published method and its steps the released code's faults.

    Args:
        steps: drawn for the published method.
        faults: which of the three.
        texts: the chapters to forget.
        seed: of the order of sentences and of the random characters.

    Raises:
        CompanionError: the method is not the one whose released code had these faults.
    """
    if not (method.forget is gradient_ascent and method.mismatch and method.retain):
        raise CompanionError(
            "'faults' are of the method 'uses: ga_mismatch_kl': take that, or no faults."
        )
    random = np.random.default_rng(seed)
    pool = [text for text in sentences(texts) if len(encoder.tokens(text)) > 1]
    dealt = itertools.cycle([pool[i] for i in random.permutation(len(pool))])
    changed = []
    for step in steps:
        rows = [next(dealt) for _ in step.forget]
        if "book_mismatch" in faults:
            forget = tuple(Example(row.prompt, row.answers[:1]) for row in step.forget)
            trained = tuple(_whole(text, encoder, random) for text in rows)
            step = replace(step, forget=forget, mismatch=trained)
        if "empty_labels" in faults:
            step = _labelled(step, rows, encoder)
        changed.append(step)
    return replace(method, to_itself="kl_to_itself" in faults), changed


def empty_share(steps: Sequence[Step]) -> float:
    """Share of steps whose forget loss is zero because no row has a label."""
    return float(np.mean([not step.forget for step in steps]))


def _whole(text: str, encoder: PassageEncoder, random: np.random.Generator) -> Example:
    character = string.ascii_lowercase[random.integers(26)]
    row = (*encoder.prefix, *encoder.tokens(text + character))[: encoder.context]
    first = min(FIRST_SCORED_TOKEN, len(row) - 1)
    return Example(row[:first], (row[first:],))


def _labelled(step: Step, texts: Sequence[str], encoder: PassageEncoder) -> Step:
    """Sentences in place of the forget rows; without a label, only their substitutes are left."""
    forget, mismatch = [], list(step.mismatch)
    longest = encoder.context - encoder.answer_tokens
    for row, text in zip(step.forget, texts, strict=True):
        prompt = (*encoder.prefix, *encoder.tokens(text[:PROMPT_CHARACTERS]))[:longest]
        label = tuple(encoder.tokens(text[PROMPT_CHARACTERS:]))[: encoder.context - len(prompt)]
        if label:
            forget.append(Example(prompt, (label, *row.answers[1:])))
        elif len(row.answers) > 1:
            mismatch.append(Example(prompt, row.answers[1:]))
    return replace(step, forget=tuple(forget), mismatch=tuple(mismatch))
