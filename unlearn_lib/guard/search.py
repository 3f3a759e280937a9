"""Zeroth-order search of a corruption's strength: no gradient, only values of an objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unlearn_lib.settings import SearchSettings
from unlearn_lib.util import CompanionError

FLOOR = 1e-8
"""The released code asks the objective at no strength below this."""


@dataclass(frozen=True)
class SearchStep:
    """One point of the search's curve.

    Attributes:
        step: 0 is the first start.
        strength: the strength itself, not its logarithm.
        objective: its value there.
        calls: how often the objective has been asked so far, this time included.
    """

    step: int
    strength: float
    objective: float
    calls: int


def zeroth_order(objective: Callable[[float], float], settings: SearchSettings) -> list[SearchStep]:
    """Lower an objective of the strength by two-point estimates of its slope (Liu et al. 2024).

    β ← max(β - lr (f(β + ε) - f(max(β - ε, 1e-8))) / 2ε, β_min), where β is the strength, or its
    logarithm (base 10), and f the objective. A logarithm is asked at no less than β_min, in place
    of 1e-8. The divisor stays 2ε where a floor brings the points closer together: a shorter step.

    It begins at the best of `start` and `other_starts`, which the released code has not: one start
    can lie where the objective is flat. The released code takes the last β, not the best of the
    curve, and stops by f(β + ε), not by f(β). The points at β ± ε are no candidates, since they
    may lie below β_min.

    Args:
        objective: called with the strength itself; finite.

    Returns:
        The curve, starts included; the strength to take is `best_strength` of it.

    Raises:
        CompanionError: the objective or the strength became nan or infinite.
    """
    floor = settings.smallest if settings.logarithmic else FLOOR
    epsilon = settings.perturbation
    asked: list[tuple[float, float]] = []
    steps: list[SearchStep] = []

    def ask(beta: float) -> float:
        strength = float(np.power(10.0, beta)) if settings.logarithmic else beta
        value = float(objective(strength)) if np.isfinite(strength) else np.nan
        asked.append((strength, value))
        if not np.isfinite(value):
            raise CompanionError(
                f"The search's objective is {value} at strength {strength:g}: lower its start."
            )
        return value

    def visit(beta: float) -> float:
        value = ask(beta)
        steps.append(SearchStep(len(steps), *asked[-1], len(asked)))
        return value

    starts = [(start, visit(start)) for start in (settings.start, *settings.other_starts)]
    beta, value = min(starts, key=lambda start: start[1])
    for _ in range(settings.steps):
        if settings.stop_below is not None and value < settings.stop_below:
            break
        rise = ask(max(beta + epsilon, floor)) - ask(max(beta - epsilon, floor))
        beta = max(beta - settings.learning_rate * rise / (2 * epsilon), settings.smallest)
        value = visit(beta)
    return steps


def best_strength(steps: Sequence[SearchStep]) -> float:
    """Return the strength with the lowest objective of a curve, the earliest of equal ones."""
    return min(steps, key=lambda step: step.objective).strength
