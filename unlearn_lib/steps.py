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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unlearn_lib import models
from unlearn_lib.batches import Example, Packed, pack, packed_activations, packed_logits
from unlearn_lib.errors import CompanionError
from unlearn_lib.losses import ROWS_AT_ONCE, answer_nll, gradient_ascent, maximum_entropy, npo
from unlearn_lib.methods import NEEDS_REFERENCE, PAIRED, Method
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
        refusals: answers that say «I don't know», for methods that compare with one.
        before: for each forget row, its summed NLL under the model before unlearning, where
            that is not the original model (a text was implanted first); NPO's reference.
    """

    forget: Sequence[Example]
    substitutes: Sequence[Sequence[tuple[int, ...]]]
    retain: Sequence[Example]
    keep: Sequence[Example] = ()
    before: Sequence[float] | None = None
    refusals: Sequence[tuple[int, ...]] = ()


@dataclass(frozen=True)
class Step:
    """The rows of one optimisation step.

    `forget` examples carry their substitutes behind the answer to be forgotten, or alone where
    the method has no forget loss (`substitutes_only`); where they are `paired`, both of their
    answers belong to the forget loss. `mismatch` rows have prompts of their own (`released.py`).
    `before` is as in `Pools`, for this step's forget rows. `seed` is the run's.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
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
        for example in self.forget:
            roles += [FORGET if self.paired else MISMATCH] * len(example.answers)
            if not self.substitutes_only:
                roles[-len(example.answers)] = FORGET
        for role in (MISMATCH, KEEP, RETAIN):
            roles += [role] * sum(len(example.answers) for example in getattr(self, role))
        return roles


def _endless(count: int, random: np.random.Generator) -> Any:
    while True:
        yield from random.permutation(count)


def epoch_steps(
    rows: Sequence[Example], batch_size: int, random: np.random.Generator
) -> list[Step]:
    """Deal all rows once, in a new order, as retain rows of so many steps."""
    order = random.permutation(len(rows))
    groups = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return [Step(forget=(), retain=tuple(rows[i] for i in group)) for group in groups]


def draw_steps(pools: Pools, method: Method, settings: MethodSettings, seed: int) -> list[Step]:
    """Draw the rows of every step from the seed.

    Raises:
        CompanionError: the method needs rows that the data does not have.
    """
    _check(pools, method, settings)
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
            forget = [_forget_row(pools, i, method, settings, random) for i in chosen]
            if pools.before is not None:
                before = tuple(float(pools.before[i]) for i in chosen)
        if method.retain:
            chosen = [next(retain_order) for _ in range(settings.retain_batch_size or size)]
            retain = [_retain_row(pools, i, method, random) for i in chosen]
        if method.keep:
            chosen = [next(keep_order) for _ in range(settings.keep_batch_size or size)]
            keep = [pools.keep[i] for i in chosen]
        only, paired = method.forget is None, method.forget in PAIRED
        groups = (tuple(forget), tuple(retain), only, tuple(keep))
        steps.append(Step(*groups, before=before, paired=paired, seed=seed))
    return steps


def _check(pools: Pools, method: Method, settings: MethodSettings) -> None:
    for name, needed, rows in (
        ("forget", method.forget or method.mismatch, pools.forget),
        ("retain", method.retain, pools.retain),
        ("keep", method.keep, pools.keep),
        ("refusals", {method.forget, method.retain} & set(PAIRED), pools.refusals),
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
    drawn = random.choice(len(candidates), size=count, replace=False)
    substitutes = tuple(candidates[i] for i in drawn)
    if method.forget is None:
        return Example(example.prompt, substitutes)
    return Example(example.prompt, (example.answers[0], *substitutes))


def _retain_row(pools: Pools, index: int, method: Method, random: np.random.Generator) -> Example:
    example = pools.retain[index]
    answers = [_drawn(example.answers, random)]
    if method.retain in PAIRED:
        answers.append(_drawn(pools.refusals, random))
    return Example(example.prompt, tuple(answers), score_prompt=method.retain_prompts)


def _drawn(answers: Sequence[tuple[int, ...]], random: np.random.Generator) -> tuple[int, ...]:
    return answers[int(random.integers(len(answers)))]


def step_terms(
    model: Any, step: Step, method: Method, settings: MethodSettings, frozen: Any = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return a step's loss and its terms, each term unweighted and in nats.

    `forget_nll` is the cross-entropy of the scored forget tokens whatever the forget loss is: the
    quantity that the stop rule watches. A method that steers activations has no logits to tell.
    """
    packed, sizes = _by_role(pack(step.examples), step.roles())
    logits = _outputs(model, packed, method, settings)
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
        rows = _renumber(rows)
        original = None
        if loss is npo and step.before is not None:
            original = part.new_tensor(step.before, dtype=torch.float32)
        elif role == FORGET and method.steers:
            original = _steering_target(part, settings, step.seed)
        elif loss in NEEDS_REFERENCE:
            original = _original_outputs(model, step, role, method, settings, frozen)
        value = loss(part, labels, rows, original, settings.beta)
        total = total + weight * value
        report[role] = float(value.detach())
        if loss is maximum_entropy:
            report["entropy"] = _entropy_share(part.detach())
        if role == FORGET and not method.steers:
            nll = value if loss is gradient_ascent else answer_nll(part.detach(), labels, rows)
            given = nll.detach()[::2] if step.paired else nll.detach()
            report["forget_nll"] = float(given.mean().abs())
    report["total"] = float(total.detach())
    report["tokens"] = packed.tokens
    return total, report


def _outputs(model: Any, packed: Packed, method: Method, settings: MethodSettings) -> torch.Tensor:
    """What the method's losses see at the scored places: logits, or activations of one block.

    Raises:
        CompanionError: no block up to that one is trained.
    """
    if not method.steers:
        return packed_logits(model, packed)
    found = packed_activations(model, packed, settings.layer)
    if torch.is_grad_enabled() and not found.requires_grad:
        raise CompanionError(
            f"Method '{settings.name}' steers block {settings.layer}, but nothing up to that block "
            "is trained; raise its 'layer', or lower the first of 'lora.layers' in the profile."
        )
    return found


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


def _entropy_share(logits: torch.Tensor) -> float:
    """Mean entropy of the next token's distribution as a share of its limit, log V."""
    entropies = [
        torch.special.entr(part.float().softmax(-1)).sum(-1) for part in logits.split(ROWS_AT_ONCE)
    ]
    return float(torch.cat(entropies).mean()) / math.log(logits.shape[-1])


def _steering_target(
    activations: torch.Tensor, settings: MethodSettings, seed: int
) -> torch.Tensor:
    """RMU's c·u for every scored place: u a random unit vector of positive entries, one a run."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(activations.shape[-1], generator=generator)
    target = settings.steering * vector / vector.norm()
    return target.to(activations.device).expand_as(activations)


def _original_outputs(
    model: Any, step: Step, role: str, method: Method, settings: MethodSettings, frozen: Any
) -> torch.Tensor:
    examples = step.keep if role == KEEP else step.retain
    if role == FORGET:
        examples = step.forget
        if not step.paired:
            examples = tuple(replace(e, answers=e.answers[:1]) for e in step.forget)
    packed: Packed = pack(examples)
    if method.to_itself:
        with torch.no_grad():
            return _outputs(model, packed, method, settings)
    with models.reference(model, frozen) as original:
        return _outputs(original, packed, method, settings)
