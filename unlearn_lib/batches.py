"""Token rows for training and scoring: answer masks, shared prompts, no padding.

`pack` lays several prompts, each with any number of answers, end to end in one row. A block
attention mask lets every answer see its own prompt and itself only, and positions restart at
each answer, so the logits equal those of separate rows. Nothing is padded, a prompt with K
answers is read once, what all prompts begin with is read once, and logits are asked for only
where a scored token is predicted.

The released code of Arora et al. finds the start of the answer as the number of fields of the
tokenizer's output (two), and averages over padding; here prompt and answer are tokenised apart
and joined, so the first answer token is known by construction and there is no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unlearn_lib.errors import CompanionError

QUESTION_ANSWER = "### Question: {question}\n ### Answer:"


@dataclass(frozen=True)
class Example:
    """A prompt with its answers, as token ids; every answer is read after the same prompt.

    With `score_prompt` the prompt's tokens (after its first) are scored too, for losses over
    all real tokens; such an example has exactly one answer.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    score_prompt: bool = False

    @property
    def length(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(len(answer) for answer in self.answers)


@dataclass(frozen=True)
class TextEncoder:
    """Turn questions and answers into token ids, the same way in training and evaluation.

    Args:
        tokenizer: a transformers tokenizer.
        template: `chat` (the tokenizer's chat template, one user turn) or `question_answer`
            (`### Question: ... ### Answer:`, the template of Arora et al.).
        prompt_tokens: longest prompt; `prompt` raises beyond it, `fits` tells beforehand.
        answer_tokens: answers are cut after this many tokens.
        context: the model's context; prompt and answer together must fit.
        before: what stands before every question, for baselines that only prompt.
    """

    tokenizer: Any
    template: str
    prompt_tokens: int
    answer_tokens: int
    context: int
    before: str = ""

    def __post_init__(self) -> None:
        if self.prompt_tokens + self.answer_tokens > self.context:
            raise CompanionError(
                f"prompt_tokens {self.prompt_tokens} and answer_tokens {self.answer_tokens} do "
                f"not fit the model's context of {self.context}; lower them in the profile."
            )

    def _prompt(self, question: str) -> list[int]:
        question = self.before + question
        if self.template == "chat":
            turn = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False
            )
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer(QUESTION_ANSWER.format(question=question))["input_ids"]

    def fits(self, question: str) -> bool:
        """Tell whether a question is within `prompt_tokens`."""
        return len(self._prompt(question)) <= self.prompt_tokens

    def prompt(self, question: str) -> tuple[int, ...]:
        """Encode a question up to the point where the answer begins.

        Raises:
            CompanionError: longer than `prompt_tokens`; shows how it begins.
        """
        tokens = self._prompt(question)
        if len(tokens) > self.prompt_tokens:
            raise CompanionError(
                f"A prompt has {len(tokens)} tokens, more than prompt_tokens "
                f"{self.prompt_tokens} (it begins {question[:40]!r}); shorten it or raise "
                "'prompt_tokens' in the profile."
            )
        return tuple(tokens)

    def answer(self, text: str) -> tuple[int, ...]:
        """Encode an answer with its end token; an answer that was cut has none.

        Raises:
            CompanionError: the answer is empty, or no token of it is left.
        """
        text = text.strip()
        if not text:
            raise CompanionError("An answer is empty; remove the row or give it a text.")
        lead = "" if self.template == "chat" else " "
        tokens = self.tokenizer(lead + text, add_special_tokens=False)["input_ids"]
        if not tokens[: self.answer_tokens]:
            raise CompanionError(
                f"An answer has no token within answer_tokens {self.answer_tokens} (it begins "
                f"{text[:40]!r}); raise 'answer_tokens' in the profile, or remove the row."
            )
        tokens = [*tokens, self.tokenizer.eos_token_id]
        return tuple(tokens[: self.answer_tokens])

    def example(self, question: str, *answers: str) -> Example:
        """Encode a question with one or more answers."""
        return Example(self.prompt(question), tuple(self.answer(text) for text in answers))


@dataclass
class Packed:
    """One packed row and what is to be predicted in it.

    Attributes:
        input_ids, position_ids: int64 [1, L].
        attention_mask: bool [1, 1, L, L]; True where a token may look.
        lengths: tokens of the beginning that all prompts share, then of each example without it.
        predictors: int64 [N], the places in the row whose logits predict a scored token.
        labels: int64 [N], the scored tokens.
        rows: int64 [N], which answer (0..R-1, in the order given) each scored token belongs to.
        prompts: for each example, the places of its prompt's tokens in the row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    lengths: list[int]
    predictors: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    prompts: list[list[int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Length of the packed row, L."""
        return self.input_ids.shape[1]


def pack(examples: Sequence[Example], share: bool = True) -> Packed:
    """Lay examples end to end in one row with a block attention mask.

    Args:
        share: let the beginning that all prompts share (a chat template's system turn) stand
            once, in front; else every prompt stands whole, as a guard needs it.

    Raises:
        ValueError: nothing to pack, an empty prompt or answer, or `score_prompt` on an example
            with several answers.
    """
    _check(examples)
    shared = _shared_start(examples) if share else 0
    tokens, positions = list(examples[0].prompt[:shared]), list(range(shared))
    branches, lengths = [0] * shared, [shared]
    scored: list[tuple[int, int, int]] = []
    prompts: list[list[int]] = []
    row = 0
    for example in examples:
        start, width = len(tokens), len(example.prompt)
        prompt_places = [*range(shared), *range(start, start + width - shared)]
        prompts.append(prompt_places)
        tokens += example.prompt[shared:]
        positions += range(shared, width)
        branches += [0] * (width - shared)
        if example.score_prompt:
            scored += [(p, t, row) for p, t in zip(prompt_places, example.prompt[1:])]
        for branch, answer in enumerate(example.answers, start=1):
            places = [prompt_places[-1], *range(len(tokens), len(tokens) + len(answer) - 1)]
            scored += [(p, t, row) for p, t in zip(places, answer, strict=True)]
            tokens += answer
            positions += range(width, width + len(answer))
            branches += [branch] * len(answer)
            row += 1
        lengths.append(len(tokens) - start)
    mask = _block_mask(torch.tensor(lengths), torch.tensor(branches))
    predictors, labels, rows = torch.tensor(scored).T.contiguous()
    ids, restarted = torch.tensor([tokens]), torch.tensor([positions])
    return Packed(ids, restarted, mask, lengths, predictors, labels, rows, prompts)


def _check(examples: Sequence[Example]) -> None:
    if not examples or not all(e.prompt and e.answers and all(e.answers) for e in examples):
        raise ValueError("pack() needs examples that each have a prompt and an answer.")
    if any(example.score_prompt and len(example.answers) > 1 for example in examples):
        raise ValueError("An example with score_prompt takes one answer.")


def _shared_start(examples: Sequence[Example]) -> int:
    """Count the leading tokens that the prompts of two or more examples have in common."""
    if len(examples) == 1:
        return 0
    columns = zip(*(example.prompt for example in examples))
    return next(
        (place for place, column in enumerate(columns) if len(set(column)) > 1),
        min(len(example.prompt) for example in examples),
    )


def _block_mask(lengths: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    groups = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    same_group = (groups[None, :] == 0) | (groups[:, None] == groups[None, :])
    visible = (branches[None, :] == 0) | (branches[:, None] == branches[None, :])
    earlier = torch.ones(len(groups), len(groups), dtype=torch.bool).tril()
    return (same_group & visible & earlier)[None, None]


def packed_logits(model: Any, packed: Packed) -> torch.Tensor:
    """Run one packed row; return logits [N, vocabulary] at the scored places only.

    A model from `models.load` attends within each example only; another one computes the whole
    row's attention and masks it, which gives the same logits. A model behind a guard is told
    which tokens are prompts.
    """
    device = model.device
    told = {"prompts": packed.prompts} if getattr(model, "guarded", False) else {}
    output = model(
        input_ids=packed.input_ids.to(device),
        position_ids=packed.position_ids.to(device),
        attention_mask=packed.attention_mask.to(device),
        logits_to_keep=packed.predictors.to(device),
        use_cache=False,
        packed_lengths=packed.lengths,
        **told,
    )
    return output.logits.squeeze(0)


def packed_activations(model: Any, packed: Packed, layer: int) -> torch.Tensor:
    """Run one packed row; return the activations [N, d] after block `layer` at scored places.

    They are taken from the block itself: transformers' `hidden_states` hold those of the last
    block only after the final normalisation.

    Raises:
        CompanionError: the model has fewer blocks.
    """
    count = model.config.num_hidden_layers
    if layer >= count:
        raise CompanionError(
            f"The method's 'layer' is {layer}, but the model's blocks are 0 to {count - 1}."
        )
    lists = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks = next(part for part in lists if len(part) == count)
    seen: list[Any] = []
    hook = blocks[layer].register_forward_hook(lambda block, given, output: seen.append(output))
    try:
        packed_logits(model, replace(packed, predictors=packed.predictors[:1]))
    finally:
        hook.remove()
    states = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    return states[0, packed.predictors.to(states.device)]


def by_length(examples: Sequence[Example], most_tokens: int) -> list[list[int]]:
    """Group example indices, longest first, into packs of at most `most_tokens` tokens.

    An example longer than that gets a pack of its own.
    """
    order = sorted(range(len(examples)), key=lambda index: -examples[index].length)
    packs: list[list[int]] = []
    room = 0
    for index in order:
        if not packs or examples[index].length > room:
            packs.append([])
            room = most_tokens
        packs[-1].append(index)
        room -= examples[index].length
    return packs
