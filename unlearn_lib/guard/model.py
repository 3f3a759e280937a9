"""A causal language model behind a guard: no weight is changed, flagged prompts are corrupted.

Liu et al. 2024, ECO: a prompt that the guard flags has the embeddings of chosen tokens corrupted
before the first block reads them; every other prompt passes as it is. A guard does not remove
knowledge: anyone with the weights can still extract it, and so does every prompt that is missed.

Where the released code differs: it corrupts answer tokens too while it scores; it draws new noise
in every forward, so that one prompt gives many answers; and it removes all hooks of a model, not
its own. Here answer tokens are never touched, noise is a function of the prompt and the guard's
seed, and a guard that fails answers nothing. What could read or write tokens that nobody judged
(embeddings, a filled cache, a second prompt, forced tokens) is refused: arguments, settings and
attributes go to the wrapped model only if a list names them.

Which models can be measured is in docs/architectures.md. A mixture of experts gives unflagged
rows what the plain model gives up to rounding only, as its experts multiply all rows together. A
model that reads token ids elsewhere too (Gemma 3n) would see a flagged name there.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearn_lib.assets import find_model
from unlearn_lib.guard.corruptions import corrupt, prompt_seed
from unlearn_lib.guard.prompts import refusal
from unlearn_lib.guard.tokens import Frame, NamesIn, chosen_tokens, load_ner, question_text
from unlearn_lib.settings import CorruptionSettings
from unlearn_lib.text_classifier import TextClassifier
from unlearn_lib.util import CompanionError, digest, file_digests, write_text

Rows = Sequence[Sequence[int]]
DESCRIPTION = "guard.json"
SAVED = ("task", "threshold", "corruption", "strength", "scripts", "seed")
"""Attributes of a guard that are written as JSON."""
Part = tuple[int, list[int], int]
"""A flagged prompt of a batch: its row, the places of its chosen tokens, its noise's seed."""
ATTRIBUTES = frozenset("config device dtype generation_config get_input_embeddings padded".split())
"""What a guarded model shows of the wrapped one."""
GENERATION = frozenset(
    """generation_config transformers_version stopping_criteria streamer synced_gpus tokenizer
    do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff num_beams
    early_stopping length_penalty num_return_sequences max_length max_new_tokens min_length
    min_new_tokens max_time stop_strings repetition_penalty no_repeat_ngram_size use_cache
    renormalize_logits remove_invalid_values output_attentions output_hidden_states output_logits
    output_scores return_dict_in_generate bos_token_id eos_token_id pad_token_id prefill_chunk_size
    prompt_lookup_num_tokens""".split()
)
"""Arguments and settings of transformers' `generate` by which no other text is read or written."""
FORWARD = frozenset(
    """attention_mask position_ids use_cache logits_to_keep labels output_attentions
    output_hidden_states return_dict""".split()
)
"""Arguments of a forward pass by which no other text is read."""


@dataclass(frozen=True, eq=False)
class Guard:
    """Which prompts are flagged, which of their tokens are corrupted, and how.

    It reads plain texts and knows no model, so that one guard serves any; only the strength belongs
    to one model, whose embeddings it was searched for.

    Attributes:
        task: what it was trained for; it is refused for another.
        classifier: says how likely a prompt asks for what is to be forgotten.
        threshold: a prompt is flagged above it; 0 to 1.
        corruption: what happens to a flagged prompt, and to which of its tokens.
        strength: of the corruption.
        scripts: names of the scripts that it was trained on; a prompt in another is refused.
        seed: of the corruption's noise, together with the prompt's text.
    """

    task: str
    classifier: TextClassifier
    threshold: float
    corruption: CorruptionSettings
    strength: float
    scripts: tuple[str, ...] = ("LATIN",)
    seed: int = 0

    @functools.cached_property
    def ner(self) -> NamesIn | None:
        """What finds names; None: every token of a question is corrupted."""
        name = self.corruption.ner
        if name is None:
            return None
        return load_ner(find_model(name).folder, self.classifier.model.device)

    def flags(self, prompts: Sequence[str]) -> np.ndarray:
        """Return which prompts are to be corrupted, bool [n].

        Raises:
            CompanionError: a prompt that cannot be judged: it is refused, and with it the batch.
        """
        for reason in filter(None, (refusal(prompt, self.scripts) for prompt in prompts)):
            raise CompanionError(reason)
        scores = self.classifier.probability(prompts)
        if len(scores) != len(prompts) or np.isnan(scores).any():
            raise CompanionError("The guard's classifier fails: nothing is answered.")
        return scores > self.threshold

    def scores(self, prompts: Sequence[str]) -> np.ndarray:
        """Return each prompt's probability, 1 for one that cannot be judged: float64 [n]."""
        scores = np.ones(len(prompts))
        readable = [i for i, prompt in enumerate(prompts) if not refusal(prompt, self.scripts)]
        scores[readable] = self.classifier.probability([prompts[place] for place in readable])
        return scores

    def save(self, folder: Path | str, **more: Any) -> None:
        """Write the guard, and more JSON values, into a folder: safetensors and JSON."""
        folder = Path(folder)
        self.classifier.save(folder / "classifier")
        written = {name: getattr(self, name) for name in SAVED} | more
        written |= {"files": file_digests(folder / "classifier", "")}
        written = json.loads(json.dumps(written, default=dict))
        text = json.dumps(written | {"sha256": digest(written)}, indent=1, sort_keys=True)
        write_text(folder / DESCRIPTION, text + "\n")

    @classmethod
    def load(cls, folder: Path | str, task: str | None = None) -> "Guard":
        """Load what `save` wrote; `task`: what it is wanted for, None: whatever it was trained for.

        Raises:
            CompanionError: no guard there, an altered one, or one of another task.
        """
        folder = Path(folder)
        try:
            written = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            whole = written.pop("sha256") == digest(written)
            kinds = type(written["task"]), type(written["seed"]), bool(written["scripts"])
            whole &= kinds == (str, int, True) and bool(np.isfinite(written["strength"]))
            whole &= written["files"] == file_digests(folder / "classifier", "")
            if not whole or not 0 <= written["threshold"] < 1:
                raise ValueError("it was altered")
            values = {name: written[name] for name in SAVED}
            values["corruption"] = CorruptionSettings(**values["corruption"])
            values["scripts"] = tuple(values["scripts"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(repr(error).split())
            raise CompanionError(f"{folder} holds no complete guard ({reason}).") from error
        guard = cls(classifier=TextClassifier.load(folder / "classifier"), **values)
        if task not in (None, guard.task):
            raise CompanionError(
                f"The guard in {folder} was trained for task '{guard.task}', not for '{task}'."
            )
        return guard


class GuardedModel(torch.nn.Module):
    """Wraps a `transformers` causal LM; `generate` and calls corrupt the prompts that are flagged.

    `ATTRIBUTES` (`config`, `device`, ...) are the wrapped model's, its other methods are not here;
    `to`, `eval` and the like return the guarded one. The guard's classifier runs on the device of
    the model's embeddings, so that times compare like with like. A batch may hold flagged and
    other prompts: the others' rows get, bit for bit, what the plain model gives them in that batch.

    Args:
        model: a causal LM with an input-embedding module.
        tokenizer: its tokenizer; the guard reads the decoded question.
        guard: classifier, threshold, corruption, strength.
        frame: the chat template's tokens around a question, which are neither judged nor
            corrupted; default: none, the whole prompt is the question.
        judge: which questions are flagged, bool [n]; default: the guard's classifier.
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
        super().__init__()
        self.model, self.tokenizer, self.guard = model, tokenizer, guard
        self.frame = frame or Frame()
        self.judge = judge or guard.flags
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ATTRIBUTES:
                return getattr(self.model, name)
            raise AttributeError(
                f"A guarded model has no '{name}', which the guard would not see: call `generate` "
                "or the model itself, or take the attribute from the model before you wrap it."
            ) from None

    def plan(self, prompts: Rows) -> list[Part]:
        """Return what is corrupted of the prompts that are flagged.

        Args:
            prompts: token ids, without padding or answers.

        Raises:
            CompanionError: a prompt that is empty, in an unseen script, or flagged without a token
                to corrupt; or not a flag for each.
        """
        self.guard.classifier.to(self.model.get_input_embeddings().weight.device)
        texts = [question_text(self.tokenizer, row, self.frame) for row in prompts]
        flags = np.asarray(self.judge(texts))
        if flags.shape != (len(texts),):
            raise CompanionError(f"The judge gives {flags.size} flags for {len(texts)} prompts.")
        parts: list[Part] = []
        for row in np.flatnonzero(flags).tolist():
            places = chosen_tokens(self.tokenizer, prompts[row], self.frame, self.guard.ner)
            if not places:
                raise CompanionError(
                    "A flagged prompt has no token to corrupt, so nothing is answered: say more."
                )
            parts.append((row, places, prompt_seed(texts[row], self.guard.seed)))
        return parts

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> Any:
        """Generate as the wrapped model does, flagged prompts corrupted while they are read.

        Args:
            input_ids: int64 [B, T]; padded on the left, if at all.
            attention_mask: [B, T], 0 on padding; None: the tokenizer's padding token is, unless
                it is the end token too.
            options: of transformers' `generate`, those that `GENERATION` names; None counts as
                not given.

        Returns:
            int64 [B, T + answer], or what the options ask for.

        Raises:
            CompanionError: as in `plan`; or an option by which other text than `input_ids` could
                be read or written; or a mask that hides more than special tokens; or the
                corruption overflows; or the model did not read the embeddings that were to be
                corrupted. Then nothing is answered, nor does a streamer get a token.
        """
        config = options.get("generation_config")
        _refuse_unjudged(options, GENERATION)
        _refuse_unjudged(config.to_diff_dict() if config else {}, GENERATION)
        pad, mask = self.tokenizer.pad_token_id, attention_mask
        if mask is None and pad not in (None, self.tokenizer.eos_token_id):
            mask = input_ids != pad
        options |= {"input_ids": input_ids, "attention_mask": attention_mask}
        with self._corrupting(input_ids, self._visible(input_ids, mask)):
            return self.model.generate(**options)

    def forward(self, input_ids: torch.Tensor, prompts: Rows | None = None, **options: Any) -> Any:
        """Run one forward pass, in which tokens of prompts may be corrupted and answers never.

        Args:
            input_ids: int64 [B, T], a prompt with its answer a row; or one packed row, [1, L].
            prompts: the places of each prompt's tokens, one entry for each row, or for each
                prompt of a packed row; for scoring: the other tokens are the caller's answers and
                are not judged. None or empty: every token belongs to its row's prompt, except
                those that a mask [B, T] among the options hides.
            options: of the wrapped model's forward, those that `FORWARD` names; beside prompts
                also masks of any shape and `packed_lengths`.

        Raises:
            CompanionError: as in `generate`; or not a prompt for each row.
        """
        _refuse_unjudged(options, FORWARD | {"packed_lengths"} if prompts else FORWARD)
        if not prompts:
            mask, positions = map(options.get, ("attention_mask", "position_ids"))
            prompts = self._visible(input_ids, mask, positions)
        if len(input_ids) not in (1, len(prompts)):
            raise CompanionError(f"There are {len(input_ids)} rows and {len(prompts)} prompts.")
        with self._corrupting(input_ids, prompts):
            return self.model(input_ids=input_ids, **options)

    @contextlib.contextmanager
    def _corrupting(self, input_ids: torch.Tensor, places: Rows) -> Iterator[None]:
        """Corrupt the flagged prompts whenever the model looks them up meanwhile.

        It does so once with the cache on, and for every new token with the cache off: the row then
        begins with the prompt.
        """
        parts = self._flagged(input_ids, places)
        if not parts:
            yield
            return
        (rows, tokens), done = input_ids.shape, False

        def hook(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor | None:
            nonlocal done
            if done and output.shape[1] < tokens:
                return None
            if (not done and output.shape[1] != tokens) or output.shape[0] % rows:
                raise CompanionError(
                    f"The model reads {rows} prompts of {tokens} tokens as {output.shape[:2]}, so "
                    "the guard cannot tell its tokens apart: nothing is answered."
                )
            done = True
            return self.corrupted(output, parts, output.shape[0] // rows)

        def require(*_: Any) -> None:
            if not done:
                raise CompanionError(
                    "The model never looked up its embeddings, so no token was corrupted: nothing "
                    "is answered."
                )

        whole = getattr(self.model, "get_base_model", lambda: self.model)()  # PEFT generates by it
        embeddings = self.model.get_input_embeddings()
        with embeddings.register_forward_hook(hook), whole.register_forward_hook(require):
            yield
        require()

    def _visible(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, positions: Any = None
    ) -> list[list[int]]:
        """Return the places of each row's tokens that no mask [B, T] hides.

        Raises:
            CompanionError: a mask of another shape, or one that hides other than special tokens,
                whose own rows the model reads all the same; or positions that do not rise, by
                which it reads another text than stands there.
        """
        mask = torch.ones_like(input_ids) if mask is None else mask.to(input_ids.device)
        special = set(self.tokenizer.all_special_ids)
        if mask.shape != input_ids.shape or set(input_ids[mask == 0].tolist()) - special:
            raise CompanionError(
                "The attention mask must have the shape of input_ids and hide padding alone: the "
                "guard judges all that the model reads."
            )
        places = [torch.nonzero(row)[:, 0].tolist() for row in mask]
        if positions is not None:
            rows = zip(positions.expand_as(input_ids), places)
            if not all((row[own].diff() > 0).all() for row, own in rows):
                raise CompanionError("position_ids must rise along a prompt: leave them out.")
        return places

    def _flagged(self, input_ids: torch.Tensor, places: Rows) -> list[Part]:
        """Return the flagged prompts of a batch; `places` are those of each prompt's tokens."""
        rows = [0 if len(input_ids) == 1 else row for row in range(len(places))]
        prompts = [input_ids[row, list(own)].tolist() for row, own in zip(rows, places)]
        parts = self.plan(prompts)
        return [(rows[i], [places[i][token] for token in own], seed) for i, own, seed in parts]

    def corrupted(
        self, embeddings: torch.Tensor, parts: Sequence[Part], copies: int = 1
    ) -> torch.Tensor:
        """Return embeddings [B, T, d] with the chosen tokens of flagged prompts corrupted.

        Args:
            copies: rows that stand for one prompt, side by side (beams).

        Raises:
            CompanionError: as in `corrupt`; or a prompt is the same afterwards.
        """
        kind, strength, changed = self.guard.corruption, self.guard.strength, embeddings.clone()
        for row, places, seed in parts:
            chosen = torch.zeros(embeddings.shape[1], dtype=torch.bool)
            chosen[places] = True
            for copy in range(row * copies, (row + 1) * copies):
                changed[copy] = corrupt(changed[copy], chosen, kind.name, strength, kind.dims, seed)
                if torch.allclose(changed[copy], embeddings[copy]):
                    raise CompanionError(
                        f"'{kind.name}' of strength {strength:g} leaves a flagged prompt as it is, "
                        "so nothing is answered: take another corruption or a larger strength."
                    )
        return changed

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the guard, not the model: safetensors and JSON, no pickle."""
        width = self.model.get_input_embeddings().weight.shape[-1]
        self.guard.save(folder, frame=(self.frame.before, self.frame.after), width=width)

    @classmethod
    def from_pretrained(cls, folder: Path | str, model: Any, tokenizer: Any) -> "GuardedModel":
        """Put a saved guard in front of the model that it was made for.

        Raises:
            CompanionError: as in `Guard.load`; or a model with embeddings of another width.
        """
        guard, width = Guard.load(folder), model.get_input_embeddings().weight.shape[-1]
        written = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
        if written["width"] != width:
            raise CompanionError(
                f"The guard in {folder} was made for embeddings of width {written['width']}, and "
                f"this model's have {width}: its strength means nothing there; search it again."
            )
        return cls(model, tokenizer, guard, Frame(*map(tuple, written["frame"])))


def _refuse_unjudged(options: dict[str, Any], known: frozenset[str]) -> None:
    for name in sorted({name for name, value in options.items() if value is not None} - known):
        raise CompanionError(
            f"A guarded model takes no '{name}': by it a text could be read or written that the "
            "guard never judged. Leave it out, and give the whole prompt as input_ids."
        )
