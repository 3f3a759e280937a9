"""A causal language model behind a guard: no weight is changed, flagged prompts are corrupted.

Liu et al. 2024, ECO: a prompt that the guard flags has the embeddings of chosen tokens corrupted
before the first block reads them; every other prompt passes as it is. Who holds the weights still
holds the knowledge, and so does every prompt that is missed.

Where the released code differs: it corrupts answer tokens too while it scores; it draws new noise
in every forward, so that one prompt gives many answers; and it removes all hooks of a model, not
its own. Here answer tokens are never touched, noise is a function of the prompt and the guard's
seed, and a guard that fails answers nothing.

Tried on tiny random models of these kinds (`generate` in mixed batches, and forward passes of one
prompt a row work on all of them):

| kinds | packed scoring |
|---|---|
| OPT, GPT-2, GPT-NeoX, Llama, Mistral, Qwen 2, Qwen 3 | works |
| Gemma 3, Phi, Phi-3, Falcon, OLMo, OLMo 2 | works |
| BLOOM, MPT, Mamba | cannot: they take no attention mask of the caller's own |
| Gemma 2 | cannot: its attention caps the scores, which the packed one does not |

A mixture of experts gives unflagged rows what the plain model gives up to rounding only, as its
experts multiply all rows together. A model that reads token ids elsewhere too (Gemma 3n) would see
a flagged name there.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unlearn_lib.eco.corruptions import corrupt, prompt_seed
from unlearn_lib.eco.guard import Guard, read_description
from unlearn_lib.eco.tokens import Frame, chosen_tokens, no_spans, question_text
from unlearn_lib.errors import CompanionError

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Corrupted:
    """One flagged prompt of a batch: its row, the places of its chosen tokens, its noise's seed."""

    row: int
    places: tuple[int, ...]
    seed: int


class EcoModel:
    """Wraps a `transformers` causal LM; `generate` and calls corrupt the prompts that are flagged.

    Everything else (`config`, `device`, `to`, ...) is the wrapped model's; what would return it
    returns the guarded one. A batch may hold flagged and other prompts: the others' rows get, bit
    for bit, what the plain model gives them in that batch.

    Args:
        model: a causal LM with an input-embedding module.
        tokenizer: its tokenizer; the guard reads the decoded question.
        guard: classifier, threshold, corruption, strength.
        frame: the chat template's tokens around a question, which are neither judged nor
            corrupted; default: none, the whole prompt is the question.
        judge: which questions are flagged, bool [n]; default: the guard's classifier.

    Raises:
        CompanionError: a model without an input-embedding module.
    """

    guarded = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        guard: Guard,
        frame: Frame | None = None,
        judge: Callable[[Sequence[str]], Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.guard = model, tokenizer, guard
        self.frame = frame or Frame((), ())
        self.judge = judge or guard.flags
        self.embeddings = input_embeddings(model)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        found = getattr(self.model, name)
        if not inspect.ismethod(found):
            return found

        @functools.wraps(found)
        def method(*given: Any, **options: Any) -> Any:
            result = found(*given, **options)
            return self if result is self.model else result

        return method

    def forward(self, *given: Any, **options: Any) -> Any:
        """The same as a call: no way around the guard."""
        return self(*given, **options)

    def plan(self, prompts: Rows) -> list[tuple[list[int], int] | None]:
        """For each prompt, what is corrupted: places of tokens and a seed; None: it is let by.

        Args:
            prompts: token ids, without padding or answers.

        Raises:
            CompanionError: a prompt that is empty, too long or unreadable, or a guard that fails.
        """
        self._refuse_long(prompts)
        try:
            texts = [question_text(self.tokenizer, row, self.frame) for row in prompts]
            flags = self.judge(texts)
            return [
                (self._chosen(row), prompt_seed(text, self.guard.seed)) if flagged else None
                for row, text, flagged in zip(prompts, texts, flags, strict=True)
            ]
        except CompanionError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CompanionError(f"The guard failed ({reason}), so nothing is answered.") from error

    def _chosen(self, prompt: Sequence[int]) -> list[int]:
        """Places of chosen tokens: of all but the last where only the last would be chosen."""
        for selector in (self.guard.selector, no_spans):
            flags, _ = chosen_tokens(self.tokenizer, prompt, self.frame, selector)
            if any(flags):
                return [place for place, flag in enumerate(flags) if flag]
        raise CompanionError(
            "A prompt is flagged that has no token to corrupt, as its last never is; nothing is "
            "answered: ask in more words."
        )

    def parts_of(
        self, prompts: Rows, places: Rows | None = None, rows: Sequence[int] | None = None
    ) -> list[Corrupted]:
        """The flagged prompts of a batch, with where their chosen tokens stand in it.

        Args:
            prompts: token ids, without padding or answers.
            places: of each prompt's tokens in its row; default: from the row's beginning.
            rows: the row of each prompt; default: one each, in order.
        """
        return [
            Corrupted(
                rows[i] if rows else i,
                tuple(places[i][token] if places else token for token in found[0]),
                found[1],
            )
            for i, found in enumerate(self.plan(prompts))
            if found is not None
        ]

    def _refuse_long(self, prompts: Rows) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        for place, row in enumerate(prompts):
            if not row:
                raise CompanionError(f"Prompt {place} is empty; give a prompt.")
            if context and len(row) >= context:
                raise CompanionError(
                    f"Prompt {place} has {len(row)} tokens, which leaves no room for an answer in "
                    f"the model's context of {context}; shorten it."
                )

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Generate as the wrapped model does, flagged prompts corrupted while they are read.

        Args:
            input_ids: int64 [B, T]; padded on the left, if at all.
            attention_mask: [B, T], 0 on padding; None: the tokenizer's padding token is, unless
                it is the end token too.
            options: of transformers' `generate`.

        Returns:
            int64 [B, T + answer]; `input_ids` itself for a batch of none.

        Raises:
            CompanionError: as in `plan`; or the corruption overflows; or the model did not read
                the embeddings that were to be corrupted. Then nothing is answered.
        """
        if input_ids.shape[0] == 0:
            return input_ids
        kept = self._visible(input_ids, attention_mask)
        prompts = [input_ids[i, places].tolist() for i, places in enumerate(kept)]
        parts = self.parts_of(prompts, kept)
        with self._corrupting(parts, tuple(input_ids.shape)):
            return self.model.generate(
                input_ids=input_ids, attention_mask=attention_mask, **options
            )

    def _visible(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[int]]:
        """The places of each row's tokens that are no padding, as transformers tells them."""
        pad = self.tokenizer.pad_token_id
        if mask is None and pad not in (None, self.tokenizer.eos_token_id):
            mask = input_ids != pad
        mask = torch.ones_like(input_ids) if mask is None else mask
        return [torch.nonzero(row)[:, 0].tolist() for row in mask]

    def __call__(
        self,
        input_ids: torch.Tensor,
        prompts: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> Any:
        """One forward pass, in which tokens of prompts may be corrupted and answers never.

        Args:
            input_ids: int64 [B, T], a prompt with its answer a row; or one packed row, [1, L].
            prompts: the places of each prompt's tokens, one entry for each row, or for each
                prompt of a packed row. Default: every token belongs to its row's prompt, save
                those that a mask [B, T] among the options hides.
            options: of the wrapped model's forward.

        Raises:
            CompanionError: as in `generate`.
        """
        mask = options.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None or mask.dim() != 2 else mask
        places = self._visible(input_ids, mask) if prompts is None else list(prompts)
        rows = [0 if len(input_ids) == 1 else i for i in range(len(places))]
        texts = [input_ids[row, list(own)].tolist() for row, own in zip(rows, places, strict=True)]
        parts = self.parts_of(texts, places, rows)
        with self._corrupting(parts, tuple(input_ids.shape)):
            return self.model(input_ids=input_ids, **options)

    @contextlib.contextmanager
    def _corrupting(self, parts: Sequence[Corrupted], shape: tuple[int, ...]) -> Iterator[None]:
        """Corrupt the prompts whenever the model looks them up meanwhile, and nothing else.

        It does so once with the cache on, and for every new token with the cache off: the row then
        begins with the prompt. Other threads' lookups are left alone.
        """
        if not parts:
            yield
            return
        done: list[bool] = []
        own = threading.get_ident()

        def hook(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor | None:
            tokens = output.shape[1]
            if threading.get_ident() != own or (done and tokens < shape[1]):
                return None
            if (not done and tokens != shape[1]) or output.shape[0] % shape[0]:
                raise CompanionError(
                    f"The model reads a batch of shape {list(shape)} as {list(output.shape[:2])}, "
                    "so the guard cannot tell its tokens apart; nothing is answered."
                )
            done.append(True)
            return self.corrupted(output, parts, output.shape[0] // shape[0])

        handle = self.embeddings.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not done:
            raise CompanionError(
                f"{type(self.model).__name__} never looked its input embeddings up, so nothing was "
                "corrupted and nothing is answered."
            )

    def corrupted(
        self, output: torch.Tensor, parts: Sequence[Corrupted], copies: int = 1
    ) -> torch.Tensor:
        """Embeddings [B, T, d] with the chosen tokens of flagged prompts corrupted.

        Args:
            copies: rows that stand for one prompt, side by side (beams).
        """
        chosen, strength = self.guard.corruption, self.guard.strength
        changed = output.clone()
        for part in parts:
            if not part.places:
                continue
            places = list(part.places)
            every = torch.ones(len(places), dtype=torch.bool)
            for row in range(part.row * copies, (part.row + 1) * copies):
                changed[row, places] = corrupt(
                    output[row, places], every, chosen.name, strength, chosen.dims, part.seed
                )
        return changed

    def save_pretrained(self, folder: Path) -> None:
        """Write the guard, not the model: safetensors and JSON, no pickle."""
        frame = {"before": self.frame.before, "after": self.frame.after}
        self.guard.save(folder, frame=frame, width=width_of(self.embeddings))

    @classmethod
    def from_pretrained(
        cls, folder: Path, model: Any, tokenizer: Any, task: str | None = None
    ) -> "EcoModel":
        """Put a saved guard in front of the model that it was made for.

        Args:
            task: what the guard is wanted for; None: whatever it was trained for.

        Raises:
            CompanionError: as in `Guard.load`; or a model with embeddings of another width.
        """
        guard, described = Guard.load(folder, task), read_description(folder)
        width, wanted = width_of(input_embeddings(model)), described.get("width")
        if wanted is not None and wanted != width:
            raise CompanionError(
                f"The guard in {folder} was made for embeddings of width {wanted}, and this "
                f"model's have {width}: its strength means nothing there; search it again."
            )
        frame = described.get("frame", {"before": (), "after": ()})
        return cls(model, tokenizer, guard, Frame(tuple(frame["before"]), tuple(frame["after"])))


def input_embeddings(model: Any) -> torch.nn.Module:
    """A model's input-embedding module, or one sentence that it has none."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        found = None
    if not isinstance(found, torch.nn.Module):
        raise CompanionError(
            f"{type(model).__name__} has no input-embedding module to corrupt; a guard needs a "
            "model whose get_input_embeddings() gives one."
        )
    return found


def width_of(embeddings: torch.nn.Module) -> int:
    """How many components an embedding has."""
    weight: Any = embeddings.weight
    return int(weight.shape[-1])
