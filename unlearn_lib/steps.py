"""What one optimisation step sees, and its loss.

The rows of every step (which forget rows, which substitutes, which retain rows) are drawn once
from the seed before training starts: the seed decides everything, every forget row is used
before one comes twice, and a resumed run sees exactly what an undisturbed one does. In the
released code of Arora et al. the loader is cut to the retain set's length, so that only the
first 572 harmful answers are ever used.

A step is one forward over one packed row: forget answers, mismatch answers behind the same
prompts, rows to keep, and retain rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unlearn_lib import models
from unlearn_lib.batches import Example, Packed, pack, packed_logits
from unlearn_lib.errors import CompanionError
from unlearn_lib.losses import answer_nll, gradient_ascent, npo
from unlearn_lib.methods import NEEDS_REFERENCE, Method
from unlearn_lib.settings import MethodSettings

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
            that is not the original model (a text was implanted first); NPO's reference.
    """

    forget: Sequence[Example]
    substitutes: Sequence[Sequence[tuple[int, ...]]]
    retain: Sequence[Example]
    keep: Sequence[Example] = ()
    before: Sequence[float] | None = None


@dataclass(frozen=True)
class Step:
    """The rows of one optimisation step.

    `forget` examples carry their substitutes behind the answer to be forgotten, or alone where
    the method has no forget loss (`substitutes_only`). `mismatch` rows have prompts of their own
    (`released.py`). `before` is as in `Pools`, for this step's forget rows.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    substitutes_only: bool = False
    keep: tuple[Example, ...] = ()
    mismatch: tuple[Example, ...] = ()
    before: tuple[float, ...] | None = None

    @property
    def examples(self) -> tuple[Example, ...]:
        """Everything that the step packs, in the order of `roles`."""
        return (*self.forget, *self.mismatch, *self.keep, *self.retain)

    def roles(self) -> list[str]:
        """Name the role of every packed answer, in order."""
        roles: list[str] = []
        for example in self.forget:
            roles += [MISMATCH] * len(example.answers)
            if not self.substitutes_only:
                roles[-len(example.answers)] = FORGET
        for role in (MISMATCH, KEEP, RETAIN):
            roles += [role] * sum(len(example.answers) for example in getattr(self, role))
        return roles


def _endless(count: int, random: np.random.Generator) -> Any:
    while True:
        yield from random.permutation(count)


def draw_steps(pools: Pools, method: Method, settings: MethodSettings, seed: int) -> list[Step]:
    """Draw the rows of every step from the seed.

    Raises:
        CompanionError: the method needs rows that the data does not have.
    """
    for name, needed, rows in (
        ("forget", method.forget or method.mismatch, pools.forget),
        ("retain", method.retain, pools.retain),
        ("keep", method.keep, pools.keep),
    ):
        if needed and not rows:
            raise CompanionError(
                f"The {name} set is empty, and method '{settings.name}' needs it; check the "
                "profile's data settings."
            )
    if method.mismatch and not all(pools.substitutes):
        raise CompanionError(
            f"A forget row has no answer to put in its place, and method '{settings.name}' needs "
            "one; check the profile's data settings."
        )
    random = np.random.default_rng(seed)
    forget_order = _endless(len(pools.forget), random)
    retain_order = _endless(len(pools.retain), random)
    keep_order = _endless(len(pools.keep), random)
    size = settings.batch_size
    steps = []
    for _ in range(settings.steps):
        forget: list[Example] = []
        retain: list[Example] = []
        keep: list[Example] = []
        before = None
        if method.forget or method.mismatch:
            chosen = [next(forget_order) for _ in range(size)]
            forget = [_with_substitutes(pools, i, method, settings, random) for i in chosen]
            if pools.before is not None:
                before = tuple(float(pools.before[i]) for i in chosen)
        if method.retain:
            chosen = [next(retain_order) for _ in range(settings.retain_batch_size or size)]
            retain = [_one_answer(pools.retain[i], method, random) for i in chosen]
        if method.keep:
            chosen = [next(keep_order) for _ in range(settings.keep_batch_size or size)]
            keep = [pools.keep[i] for i in chosen]
        only = method.forget is None
        steps.append(Step(tuple(forget), tuple(retain), only, tuple(keep), before=before))
    return steps


def _with_substitutes(
    pools: Pools, index: int, method: Method, settings: MethodSettings, random: np.random.Generator
) -> Example:
    example = pools.forget[index]
    if method.mismatch is None:
        return example
    candidates = pools.substitutes[index]
    count = min(settings.mismatch_answers, len(candidates))
    drawn = random.choice(len(candidates), size=count, replace=False)
    substitutes = tuple(candidates[i] for i in drawn)
    if method.forget is None:
        return Example(example.prompt, substitutes)
    return Example(example.prompt, (example.answers[0], *substitutes))


def _one_answer(example: Example, method: Method, random: np.random.Generator) -> Example:
    answer = example.answers[random.integers(len(example.answers))]
    return Example(example.prompt, (answer,), score_prompt=method.retain_prompts)


def step_terms(
    model: Any, step: Step, method: Method, settings: MethodSettings, frozen: Any = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a step's loss and its terms, each term unweighted and in nats.

    `forget_nll` is the cross-entropy of the forget answers whatever the forget loss is: the
    quantity that the stop rule watches.
    """
    packed, sizes = _by_role(pack(step.examples), step.roles())
    logits = packed_logits(model, packed)
    total = logits.new_zeros((), dtype=torch.float32)
    report: dict[str, float] = {}
    terms = (
        (FORGET, method.forget, settings.forget_weight),
        (MISMATCH, method.mismatch and _mismatch_loss, settings.mismatch_weight),
        (KEEP, method.keep, settings.keep_weight),
        (RETAIN, method.retain, settings.retain_weight),
    )
    parts = (tensor.to(logits.device).split(sizes) for tensor in (packed.labels, packed.rows))
    for (role, loss, weight), part, labels, rows in zip(
        terms, logits.split(sizes), *parts, strict=True
    ):
        if loss is None or len(labels) == 0:
            continue
        rows, original = _renumber(rows), None
        if loss is npo and step.before is not None:
            original = part.new_tensor(step.before, dtype=torch.float32)
        elif loss in NEEDS_REFERENCE:
            original = _reference_logits(model, step, role, frozen, method.to_itself)
        value = loss(part, labels, rows, original, settings.beta)
        total = total + weight * value
        report[role] = float(value.detach())
        if role == FORGET:
            nll = value if loss is gradient_ascent else answer_nll(part.detach(), labels, rows)
            report["forget_nll"] = float(nll.detach().mean().abs())
    report["total"] = float(total.detach())
    report["tokens"] = packed.tokens
    return total, report


def _by_role(packed: Packed, roles: Sequence[str]) -> tuple[Packed, list[int]]:
    """Put the scored places of a role side by side; also return how many each role has."""
    role = np.array([ROLES.index(name) for name in roles])[packed.rows.numpy()]
    order = torch.from_numpy(np.argsort(role, kind="stable"))
    scored = {name: getattr(packed, name)[order] for name in ("predictors", "labels", "rows")}
    return replace(packed, **scored), np.bincount(role, minlength=len(ROLES)).tolist()


def _mismatch_loss(
    logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, *_: Any
) -> torch.Tensor:
    return answer_nll(logits, labels, rows).mean()


def _renumber(rows: torch.Tensor) -> torch.Tensor:
    return torch.unique_consecutive(rows, return_inverse=True)[1]


def _reference_logits(
    model: Any, step: Step, role: str, frozen: Any, itself: bool = False
) -> torch.Tensor:
    examples = step.keep if role == KEEP else step.retain
    if role == FORGET:
        examples = tuple(Example(e.prompt, e.answers[:1]) for e in step.forget)
    packed: Packed = pack(examples)
    if itself:
        with torch.no_grad():
            return packed_logits(model, packed)
    with models.reference(model, frozen) as original:
        return packed_logits(original, packed)
