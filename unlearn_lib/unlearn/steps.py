"""What one optimisation step sees, and its loss.

The rows of every step (which forget rows, which substitutes, which retain rows) are drawn once
from the seed before training starts: the seed decides everything, every forget row is used
before one comes twice, and a resumed run sees exactly what an undisturbed one does. In the
released code of Arora et al. the loader is cut to the retain set's length, so that only the
first 572 harmful answers are ever used.

A step is one forward over one packed row: forget answers, mismatch answers behind the same
prompts, rows to keep, and retain rows.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearn_lib.model import scoring
from unlearn_lib.model.loading import LanguageModel, reference
from unlearn_lib.model.packing import Packed, pack, packed_activations, packed_logits
from unlearn_lib.model.tokens import Example, Tokens
from unlearn_lib.settings import MethodSettings
from unlearn_lib.unlearn import losses
from unlearn_lib.unlearn.methods import NEEDS_REFERENCE, PAIRED, Method
from unlearn_lib.util import CompanionError

FORGET, MISMATCH, KEEP, RETAIN = ROLES = ("forget", "mismatch", "keep", "retain")


@dataclass(frozen=True)
class Pools:
    """The tokenised rows that steps draw from.

    Attributes:
        forget: one answer each.
        substitutes: for each forget row, the answers a mismatch may take instead.
        retain: one or more answers each, of which a step draws one.
        keep: rows learned with the forget rows and to stay, one answer each.
        before: for each forget row, its summed NLL under the model before unlearning, where
            that is not the original model (a text was taught first); NPO's reference.
        refusals: answers that say "I don't know", for methods that compare with one.
    """

    forget: Sequence[Example] = ()
    substitutes: Sequence[Sequence[Tokens]] = ()
    retain: Sequence[Example] = ()
    keep: Sequence[Example] = ()
    before: Sequence[float] | None = None
    refusals: Sequence[Tokens] = ()


@dataclass(frozen=True)
class Step:
    """The rows of one optimisation step.

    `forget` examples carry their substitutes behind the answer to be forgotten, or alone where
    the method has no forget loss (`substitutes_only`); where they are `paired`, both of their
    answers belong to the forget loss. `mismatch` rows have prompts of their own (`released.py`).
    `before` is as in `Pools`, for this step's forget rows. `seed` is the run's.
    """

    forget: tuple[Example, ...] = ()
    retain: tuple[Example, ...] = ()
    substitutes_only: bool = False
    keep: tuple[Example, ...] = ()
    mismatch: tuple[Example, ...] = ()
    before: tuple[float, ...] | None = None
    paired: bool = False
    seed: int = 0

    @property
    def examples(self) -> tuple[Example, ...]:
        """Everything that the step packs, in the order of `roles`."""
        return (*self.forget, *self.mismatch, *self.keep, *self.retain)

    def roles(self) -> list[str]:
        """Name the role of every packed answer, in order."""
        roles: list[str] = []
        first = MISMATCH if self.substitutes_only else FORGET
        for example in self.forget:
            roles += [first] + [FORGET if self.paired else MISMATCH] * (len(example.answers) - 1)
        for role in (MISMATCH, KEEP, RETAIN):
            roles += [role] * sum(len(example.answers) for example in getattr(self, role))
        return roles

    def parts(self, settings: MethodSettings) -> Iterator["Part"]:
        """Deal the rows to `accumulate` smaller steps, or fewer, so that their losses add up.

        Every loss is a mean over the answers of its role (or over pairs of them). A part's weights
        are the settings' times its share of the answers, so the sum of the parts' losses and its
        gradient are the step's, however many rows a part has.
        """
        names, whole = (*ROLES, *(["before"] if self.before else [])), self._sizes()
        for place in range(settings.accumulate):
            rows = {name: getattr(self, name)[place :: settings.accumulate] for name in names}
            part = replace(self, **rows)
            shares = {key: size / whole[key] for key, size in part._sizes().items() if size}
            weights = {f"{role}_weight": shares[role] for role in ROLES if role in shares}
            weights = {name: getattr(settings, name) * share for name, share in weights.items()}
            if part.examples:
                yield part, settings.model_copy(update=weights), shares

    def _sizes(self) -> dict[str, int]:
        """How many values a mean is over: answers of a role; scored forget tokens of `entropy`."""
        prompts = sum(len(row.prompt) - 1 for row in self.forget if row.score_prompt)
        tokens, answers = sum(len(row.answers[0]) for row in self.forget), Counter(self.roles())
        return {**answers, "forget_nll": answers[FORGET], "entropy": prompts + tokens}

    def reads_original(self, method: Method) -> bool:
        """Whether a loss compares with the outputs of the original model for the step's rows."""
        roles = [FORGET, KEEP, RETAIN]
        if method.steers or (method.forget is losses.npo and self.before is not None):
            roles.remove(FORGET)
        losses_of_rows = {getattr(method, role) for role in roles if getattr(self, role)}
        return bool(losses_of_rows & NEEDS_REFERENCE) and not method.to_itself


Part = tuple[Step, MethodSettings, dict[str, float]]
"""Some of a step's rows, settings with their weights, and by which shares their terms add up."""


def epoch_steps(rows: Sequence[Example], size: int, random: np.random.Generator) -> list[Step]:
    """Deal all rows once, in a new order, as the retain rows of steps of so many rows."""
    order = random.permutation(len(rows))
    groups = (order[start : start + size] for start in range(0, len(order), size))
    return [Step(retain=tuple(rows[i] for i in group)) for group in groups]


def draw_steps(pools: Pools, method: Method, settings: MethodSettings, seed: int) -> list[Step]:
    """Draw the rows of every step from the seed.

    Raises:
        CompanionError: the method needs rows that the data does not have.
    """
    sizes = {
        "forget": settings.batch_size if method.forget or method.mismatch else 0,
        "retain": (settings.retain_batch_size or settings.batch_size) if method.retain else 0,
        "keep": (settings.keep_batch_size or settings.batch_size) if method.keep else 0,
    }
    _require_rows(pools, method, sizes)
    random = np.random.default_rng(seed)
    orders = {name: _endless(len(getattr(pools, name)), random) for name in sizes}
    steps = []
    for _ in range(settings.steps):
        forget = [next(orders["forget"]) for _ in range(sizes["forget"])]
        forget_rows = [_forget_row(pools, i, method, settings, random) for i in forget]
        retain = [next(orders["retain"]) for _ in range(sizes["retain"])]
        step = Step(
            forget=tuple(forget_rows),
            retain=tuple(_retain_row(pools, i, method, random) for i in retain),
            substitutes_only=method.forget is None,
            keep=tuple(pools.keep[next(orders["keep"])] for _ in range(sizes["keep"])),
            before=tuple(pools.before[i] for i in forget) if pools.before else None,
            paired=method.forget in PAIRED,
            seed=seed,
        )
        steps.append(step)
    return steps


def rescored(model: Any, steps: Sequence[Step]) -> list[Step]:
    """Return steps whose `before`, where they have it, is what this model says."""
    own = [[replace(r, answers=r.answers[:1]) for r in s.forget if s.before] for s in steps]
    rows = list(dict.fromkeys(row for group in own for row in group))
    nll = dict(zip(rows, scoring.score(LanguageModel(model, None), rows).nll.tolist(), strict=True))
    now = (tuple(nll[row] for row in group) or None for group in own)
    return [replace(step, before=before) for step, before in zip(steps, now, strict=True)]


def _endless(count: int, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(count)


def _require_rows(pools: Pools, method: Method, sizes: dict[str, int]) -> None:
    missing = sorted(name for name, size in sizes.items() if size and not getattr(pools, name))
    if PAIRED & {method.forget, method.retain} and not pools.refusals:
        missing.append("refusals")
    few = len(pools.substitutes) < len(pools.forget)
    if method.mismatch and (few or not all(pools.substitutes)):
        missing.append("substitutes")
    if missing:
        raise CompanionError(
            f"Method '{method.name}' needs '{missing[0]}', which is empty: check the data settings."
        )


def _forget_row(
    pools: Pools, index: int, method: Method, settings: MethodSettings, random: np.random.Generator
) -> Example:
    example = pools.forget[index]
    if method.forget in PAIRED:
        return Example(example.prompt, (example.answers[0], _drawn(pools.refusals, random)))
    if method.mismatch is None:
        return replace(example, score_prompt=method.forget_prompts)
    candidates = pools.substitutes[index]
    count = min(settings.mismatch_answers, len(candidates))
    places = random.choice(len(candidates), size=count, replace=False)
    own = example.answers[:1] if method.forget else ()
    return Example(example.prompt, (*own, *(candidates[i] for i in places)))


def _retain_row(pools: Pools, index: int, method: Method, random: np.random.Generator) -> Example:
    example = pools.retain[index]
    answers = [_drawn(example.answers, random)]
    if method.retain in PAIRED:
        answers.append(_drawn(pools.refusals, random))
    return Example(example.prompt, tuple(answers), score_prompt=method.retain_prompts)


def _drawn(answers: Sequence[Tokens], random: np.random.Generator) -> Tokens:
    return answers[int(random.integers(len(answers)))]


def step_terms(
    model: Any, step: Step, method: Method, settings: MethodSettings, frozen: Any = None
) -> tuple[Tensor, dict[str, float]]:
    """Return a step's loss and its terms, each term unweighted and in nats.

    `forget_nll` is the cross-entropy of the scored forget tokens whatever the forget loss is: the
    quantity that the stop rule watches. A method that steers activations has no logits to tell.

    Args:
        frozen: the original model, where it is not `model` without its adapter.
    """
    packed, sizes = _by_role(pack(step.examples), step.roles())
    outputs = _outputs(model, packed, method, settings)
    total = outputs.new_zeros((), dtype=torch.float32)
    report: dict[str, float] = {}
    by_token = (outputs, packed.labels, packed.rows)
    parts = (values.to(outputs.device).split(sizes) for values in by_token)
    for role, logits, labels, rows in zip(ROLES, *parts, strict=True):
        loss = losses.gradient_descent if role == MISMATCH else getattr(method, role)
        if loss is None or len(labels) == 0:
            continue
        rows = torch.unique_consecutive(rows, return_inverse=True)[1]
        original: Any = None
        if loss is losses.npo and step.before is not None:
            original = logits.new_tensor(step.before, dtype=torch.float32)
        elif role == FORGET and method.steers:
            original = _steering_target(logits, settings, step.seed)
        elif loss in NEEDS_REFERENCE:
            original = _original_outputs(model, step, role, method, settings, frozen)
        value = loss(logits, labels, rows, original, settings.beta)
        total = total + getattr(settings, f"{role}_weight") * value
        report[role] = value.item()
        if loss is losses.maximum_entropy:
            report["entropy"] = _entropy_share(logits.detach())
        if role == FORGET and not method.steers:
            nll = losses.answer_nll(logits.detach(), labels, rows)
            report["forget_nll"] = (nll[::2] if step.paired else nll).mean().item()
    return total, report | {"total": total.item(), "tokens": packed.tokens}


def _outputs(model: Any, packed: Packed, method: Method, settings: MethodSettings) -> Tensor:
    """What the method's losses see at the scored places: logits, or activations of one block.

    Raises:
        CompanionError: no block up to that one is trained.
    """
    if not method.steers:
        return packed_logits(model, packed)
    activations = packed_activations(model, packed, settings.layer)
    if torch.is_grad_enabled() and not activations.requires_grad:
        raise CompanionError(
            f"Method '{method.name}' steers block {settings.layer}, but nothing up to that block "
            "is trained; raise its 'layer', or lower the first of 'lora.layers' in the profile."
        )
    return activations


def _by_role(packed: Packed, roles: Sequence[str]) -> tuple[Packed, list[int]]:
    """Put the scored places of a role side by side; also return how many each role has."""
    role = torch.tensor([ROLES.index(name) for name in roles])[packed.rows]
    order = role.argsort(stable=True)
    scored = {name: getattr(packed, name)[order] for name in ("predictors", "labels", "rows")}
    return replace(packed, **scored), role.bincount(minlength=len(ROLES)).tolist()


def _entropy_share(logits: Tensor) -> float:
    """Mean entropy of the next token's distribution as a share of its limit, log V."""
    parts = logits.split(losses.ROWS_AT_ONCE)
    entropies = [torch.special.entr(part.float().softmax(-1)).sum(-1) for part in parts]
    return float(torch.cat(entropies).mean()) / math.log(logits.shape[-1])


def _steering_target(activations: Tensor, settings: MethodSettings, seed: int) -> Tensor:
    """RMU's c·u for every scored place: u a random unit vector of positive entries, one a run."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(activations.shape[-1], generator=generator)
    target = settings.steering * vector / vector.norm()
    return target.to(activations.device).expand_as(activations)


def _original_outputs(
    model: Any, step: Step, role: str, method: Method, settings: MethodSettings, frozen: Any
) -> Tensor:
    examples = getattr(step, role)
    if role == FORGET and not step.paired:
        examples = tuple(replace(row, answers=row.answers[:1]) for row in examples)
    with reference(model, model if method.to_itself else frozen) as original:
        return _outputs(original, pack(examples), method, settings)
