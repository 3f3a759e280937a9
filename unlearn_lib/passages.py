"""Running text as token rows: chunks to learn from, passages to continue.

A passage is a prompt (its first tokens) and an answer (the tokens that follow): every passage has
an answer, unlike in the released code of Arora et al., where a sentence of up to 200 characters
gets an empty label and so a forget loss of zero. Passages follow each other at `answer_tokens`
tokens, so that every token of a text but the first few is an answer token of exactly one passage.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_lib.batches import Example
from unlearn_lib.errors import CompanionError

SHORTEST_ANSWER = 20
"""A last passage with a shorter answer is left out (or one below `answer_tokens`, if smaller)."""


@dataclass(frozen=True)
class PassageEncoder:
    """Cut texts into chunks and passages of token ids.

    Args:
        tokenizer: a transformers tokenizer; what it puts before a text (OPT's `</s>`) stands
            before every chunk and passage.
        prompt_tokens, answer_tokens: length of a passage's two parts.
        context: the model's context; a passage must fit.
    """

    tokenizer: Any
    prompt_tokens: int
    answer_tokens: int
    context: int

    def __post_init__(self) -> None:
        if len(self.prefix) + self.prompt_tokens + self.answer_tokens > self.context:
            raise CompanionError(
                f"prompt_tokens {self.prompt_tokens} and answer_tokens {self.answer_tokens} do "
                f"not fit the model's context of {self.context}; lower them in the profile."
            )

    @functools.cached_property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text."""
        return tuple(self.tokenizer("")["input_ids"])

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, nothing added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def passages(self, texts: Sequence[str], score_prompt: bool = False) -> list[Example]:
        """Cut texts into passages; with `score_prompt` losses see all their tokens."""
        return [
            Example(
                (*self.prefix, *tokens[start:middle]), (tuple(tokens[middle:end]),), score_prompt
            )
            for tokens in map(self.tokens, texts)
            for start, middle, end in self._places(len(tokens))
        ]

    def _places(self, count: int) -> list[tuple[int, int, int]]:
        shortest = min(SHORTEST_ANSWER, self.answer_tokens)
        last = count - self.prompt_tokens - shortest
        return [
            (start, start + self.prompt_tokens, start + self.prompt_tokens + self.answer_tokens)
            for start in range(0, last + 1, self.answer_tokens)
        ]

    def chunks(self, texts: Sequence[str], size: int, shift: int = 0) -> list[Example]:
        """Cut texts into chunks of `size` tokens, each scored from its first token that can be.

        Args:
            shift: tokens of each text's first chunk, `size` if 0; another shift cuts elsewhere.

        Raises:
            CompanionError: a chunk does not fit the model's context.
        """
        if len(self.prefix) + size > self.context:
            raise CompanionError(
                f"chunk_tokens {size} does not fit the model's context of {self.context}; lower "
                "it in the profile."
            )
        rows = [
            (*self.prefix, *tokens[max(start, 0) : start + size])
            for tokens in map(self.tokens, texts)
            for start in range(shift % size - size, len(tokens), size)
        ]
        first = max(1, len(self.prefix))
        return [Example(row[:first], (row[first:],)) for row in rows if len(row) > first]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
