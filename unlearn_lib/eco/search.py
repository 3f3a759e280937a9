"""Zeroth-order search of a corruption's strength: no gradient, only values of an objective."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unlearn_lib.errors import CompanionError
from unlearn_lib.settings.eco import SearchSettings

Strength = float | np.ndarray
Objective = Callable[[Strength], float]
FLOOR = 1e-8
"""The released code asks the objective at no strength below this."""


@dataclass(frozen=True)
class SearchStep:
    """One point of the search's curve.

    Attributes:
        step: 0 is the start.
        strength: the strength itself, not its logarithm; of a vector, the mean.
        objective: its value there.
        calls: how often the objective has been asked so far, this time included.
    """

    step: int
    strength: float
    objective: float
    calls: int


@dataclass(frozen=True)
class Found:
    """What the search found.

    Attributes:
        strength: of the curve's point with the lowest objective, the earliest of equal ones; the
            strength itself, not its logarithm. float, or float64 [width] in the vector form.
        steps: the curve, start included.
        calls: how often the objective was asked: three times a step, and once at the start.
        objective: the value at `strength`.
    """

    strength: Strength
    steps: tuple[SearchStep, ...]
    calls: int
    objective: float


def zeroth_order(
    objective: Objective, settings: SearchSettings, width: int | None = None, seed: int = 0
) -> Found:
    """Lower an objective of the strength by two-point estimates of its slope (Liu et al. 2024).

    β ← max(β - lr u (f(β + ε u) - f(max(β - ε u, 1e-8))) / 2ε, β_min), where β is the strength,
    or its logarithm (base 10), f the objective and u = 1. The vector form is Spall's simultaneous
    perturbation: u is ±1 for every component, drawn anew in each step, so that two calls serve
    all components; it floors both points. A logarithm is asked at no less than β_min, in place of
    1e-8. The divisor stays 2ε where a floor brings the points closer together: a shorter step.

    It begins at the best of `start` and `other_starts`, which the released code has not: one start
    can lie where the objective is flat. The released code takes the last β, not the best of the
    curve, and stops by f(β + ε), not by f(β). Its vector form, with u a random unit vector and
    unfloored points, is never called. The points at β ± ε are no candidates, since they may lie
    below β_min.

    Args:
        objective: called with the strength itself, a float or float64 [width]; finite.
        settings: see `SearchSettings`.
        width: components of an embedding, for the vector form only.
        seed: of the vector form's directions. Default 0.

    Raises:
        CompanionError: the objective gave nan or infinity, or a strength beyond float64.
        ValueError: the vector form without a width of at least 1.
    """
    ask = _Asked(objective, settings.logarithmic)
    floor = settings.smallest if settings.logarithmic else FLOOR
    epsilon = settings.perturbation
    directions = np.random.default_rng(seed)
    steps: list[SearchStep] = []
    best: np.ndarray = np.zeros(())
    lowest: float = np.inf
    for start in (settings.start, *settings.other_starts):
        beta = np.full(_shape(settings, width), start)
        value = ask(beta)
        steps.append(ask.step(len(steps), beta, value))
        if value < lowest:
            best, lowest = beta, value
    beta, value = best, lowest
    for number in range(len(steps), len(steps) + settings.steps):
        if settings.stop_below is not None and value < settings.stop_below:
            break
        u = directions.choice([-1.0, 1.0], beta.shape) if settings.vector else np.ones(())
        rise = ask(np.maximum(beta + epsilon * u, floor)) - ask(
            np.maximum(beta - epsilon * u, floor)
        )
        with np.errstate(over="ignore"):
            change = settings.learning_rate * rise / (2 * epsilon) * u
            beta = np.maximum(beta - change, settings.smallest)
        value = ask(beta)
        steps.append(ask.step(number, beta, value))
        if value < lowest:
            best, lowest = beta, value
    return Found(ask.strength(best), tuple(steps), ask.calls, lowest)


class _Asked:
    """The objective as a function of β, an array of shape () or [width]; counts its calls."""

    def __init__(self, objective: Objective, logarithmic: bool) -> None:
        self.objective, self.logarithmic, self.calls = objective, logarithmic, 0

    def __call__(self, beta: np.ndarray) -> float:
        strength = self.strength(beta)
        self.calls += 1
        value = float(self.objective(strength))
        if not np.isfinite(value):
            raise CompanionError(
                f"The search's objective is {value} at strength {np.mean(strength):g} (call "
                f"{self.calls}): mend the objective, or search smaller strengths."
            )
        return value

    def strength(self, beta: np.ndarray) -> Strength:
        with np.errstate(over="ignore"):
            strength = 10.0**beta if self.logarithmic else np.array(beta)
        if not np.isfinite(strength).all():
            power = "10 to the power of " if self.logarithmic else ""
            raise CompanionError(
                f"The search came to the strength {power}{np.max(beta):g}, more than a number can "
                "hold: give a smaller start or learning_rate."
            )
        return strength if np.ndim(strength) else float(strength)

    def step(self, number: int, beta: np.ndarray, value: float) -> SearchStep:
        return SearchStep(number, float(np.mean(self.strength(beta))), value, self.calls)


def _shape(settings: SearchSettings, width: int | None) -> tuple[int, ...]:
    if not settings.vector:
        return ()
    if width is None or width < 1:
        raise ValueError(
            f"width is {width}: a search of one strength for each component needs to know how "
            "many components an embedding has."
        )
    return (width,)
