"""The zeroth-order search on objectives whose path is known in closed form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.eco.search import Found, Strength, zeroth_order
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings.eco import SearchSettings


def search(objective: Any, width: int | None = None, seed: int = 0, **chosen: Any) -> Found:
    given = {"steps": 20, "learning_rate": 0.25, "start": 1.0, "perturbation": 0.1, **chosen}
    return zeroth_order(objective, SearchSettings.model_validate(given), width, seed)


def bowl(lowest: float) -> Callable[[Any], float]:
    """(β - lowest)²: the two-point estimate of its slope, 2 (β - lowest), is exact."""
    return lambda strength: (strength - lowest) ** 2


# --- one strength ----------------------------------------------------------------------------


@pytest.mark.parametrize("learning_rate", [0.1, 0.25, 0.4, 0.75])
def test_a_quadratic_shrinks_by_1_minus_2_lr_a_step(learning_rate: float) -> None:
    found = search(bowl(5.0), steps=6, learning_rate=learning_rate)
    strengths = [step.strength for step in found.steps]
    expected = [5 - 4 * (1 - 2 * learning_rate) ** number for number in range(7)]
    assert strengths == pytest.approx(expected)
    assert [step.objective for step in found.steps] == pytest.approx(
        [(b - 5) ** 2 for b in expected]
    )


def test_it_converges_to_the_minimum() -> None:
    found = search(bowl(5.0))
    assert found.strength == pytest.approx(5, abs=1e-4)
    assert isinstance(found.strength, float)


def test_by_hand_as_released() -> None:
    # f(0.1999) - f(0.0001) = -0.3996 on a slope of -2: β = 0.1 + 100 * 0.3996 / 0.1998 = 200.1.
    found = zeroth_order(lambda strength: float(1 - 2 * strength), SearchSettings(steps=1))
    assert found.strength == pytest.approx(200.1)


def test_three_calls_a_step_and_one_at_the_start() -> None:
    asked: list[float] = []

    def objective(strength: Strength) -> float:
        asked.append(float(strength))
        return (asked[-1] - 5) ** 2

    found = search(objective, steps=2)
    assert asked == pytest.approx([1, 1.1, 0.9, 3, 3.1, 2.9, 4])
    assert found.calls == len(asked)
    assert [(step.step, step.calls) for step in found.steps] == [(0, 1), (1, 4), (2, 7)]


def test_never_below_the_smallest() -> None:
    found = search(bowl(-5.0), smallest=0.3)
    assert [step.strength for step in found.steps] == pytest.approx([1] + [0.3] * 20)


def test_the_lower_point_has_a_floor_and_the_divisor_has_not() -> None:
    asked: list[float] = []

    def objective(strength: Strength) -> float:
        asked.append(float(strength))
        return asked[-1]

    found = search(objective, steps=1, perturbation=2.0, smallest=0.1)
    assert asked[1:3] == [3.0, 1e-8]
    assert found.strength == pytest.approx(1 - 0.25 * (3 - 1e-8) / 4)


@given(st.floats(0.1, 20), st.floats(0.01, 2), st.integers(0, 9))
def test_the_best_of_the_curve_is_returned(lowest: float, rate: float, steps: int) -> None:
    found = search(bowl(lowest), learning_rate=rate, steps=steps + 1)
    best = min(found.steps, key=lambda step: step.objective)
    assert (found.strength, found.objective) == (best.strength, best.objective)
    assert found.objective == bowl(lowest)(found.strength)


def test_the_best_is_not_the_last_where_the_search_overshoots() -> None:
    found = search(
        bowl(5.0), learning_rate=1.2, perturbation=0.05, steps=3
    )  # 1.4 times as far off, but for the floor
    assert [step.strength for step in found.steps] == pytest.approx([1, 10.6, 0.1, 11.86])
    assert found.strength == 1.0


def test_of_equal_points_the_earliest_is_returned() -> None:
    assert search(lambda strength: 0.5, start=2.0).strength == 2.0


def test_it_stops_below_the_limit() -> None:
    found = search(bowl(5.0), stop_below=4.0)  # 16, 4, 1: 4 is not below 4
    assert [step.objective for step in found.steps] == pytest.approx([16, 4, 1])
    start = search(bowl(1.0), stop_below=0.1)
    assert start.calls == 1 and len(start.steps) == 1 and start.strength == 1.0


def test_logarithms_are_searched_and_strengths_are_told() -> None:
    found = search(
        lambda strength: (np.log10(strength) - 3) ** 2,
        logarithmic=True, start=-1.0, smallest=-2.0, steps=3,
    )  # fmt: skip
    assert [step.strength for step in found.steps] == pytest.approx([0.1, 10, 100, 10**2.5])
    assert found.strength == pytest.approx(10**2.5)


def test_the_smallest_logarithm_is_the_floor() -> None:
    asked: list[float] = []

    def objective(strength: Strength) -> float:
        asked.append(float(strength))
        return 0.0

    search(objective, logarithmic=True, start=-3.0, smallest=-3.0, perturbation=1.0, steps=1)
    assert asked == pytest.approx([1e-3, 1e-2, 1e-3, 1e-3])


# --- one strength for each component ---------------------------------------------------------

TARGET = np.array([3.0, 1.0, 4.0, 1.5, 2.0])


def separable(strength: Strength) -> float:
    return float(((strength - TARGET) ** 2).mean())


def test_a_vector_step_by_hand() -> None:
    # f is linear with slopes s = (-1, -2), so that both components move by -lr (s·u) u:
    # u = ±(1, 1) gives (0.75, 0.75) and u = ±(1, -1) gives (-0.25, 0.25).
    moves = set()
    for seed in range(8):
        found = search(
            lambda strength: float(strength @ np.array([-1.0, -2.0])),
            width=2, seed=seed, vector=True, steps=1, start=5.0,
        )  # fmt: skip
        moves.add(tuple(np.round(found.strength - 5.0, 9)))
    assert moves == {(0.75, 0.75), (-0.25, 0.25)}


def test_a_vector_comes_near_a_separable_minimum() -> None:
    found = search(separable, width=5, vector=True, steps=100, smallest=0.01)
    assert isinstance(found.strength, np.ndarray) and found.strength.shape == (5,)
    assert found.objective == separable(found.strength) < 0.01 * found.steps[0].objective
    assert found.calls == 301


def test_a_vectors_curve_holds_means() -> None:
    found = search(separable, width=5, vector=True, start=2.0, steps=1)
    assert found.steps[0].strength == 2.0
    logarithmic = search(separable, width=5, vector=True, start=0.5, steps=1, logarithmic=True)
    assert logarithmic.steps[0].strength == pytest.approx(10**0.5)


def test_all_components_stay_above_the_smallest() -> None:
    found = search(lambda strength: float(np.sum(strength)), width=3, vector=True, smallest=0.5)
    assert np.min(found.strength) == 0.5


def test_directions_come_from_the_seed() -> None:
    first, same, other = (
        search(separable, width=5, vector=True, steps=3, seed=seed).strength for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_an_objective_may_write_over_what_it_is_given() -> None:
    def careless(strength: Any) -> float:
        value = separable(strength)
        strength[:] = 0
        return value

    settings = {"width": 5, "vector": True, "steps": 4}
    assert np.array_equal(
        search(careless, **settings).strength, search(separable, **settings).strength
    )


@pytest.mark.parametrize("width", [None, 0])
def test_a_vector_needs_a_width(width: int | None) -> None:
    with pytest.raises(ValueError, match=f"width is {width}"):
        search(separable, width=width, vector=True)


# --- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_an_objective_that_is_no_number_is_named_with_its_strength(broken: float) -> None:
    with pytest.raises(CompanionError, match=rf"objective is {broken} at strength 1.1 \(call 2\)"):
        search(lambda strength: broken if strength > 1 else 0.0)


def test_a_power_of_ten_that_overflows_is_named() -> None:
    with pytest.raises(CompanionError, match="10 to the power of 400.* smaller start"):
        search(lambda strength: 0.0, logarithmic=True, start=400.0)


def test_a_step_that_overflows_is_named() -> None:
    with pytest.raises(CompanionError, match="came to the strength .*learning_rate"):
        search(lambda strength: -1e308 * min(strength, 1.2), learning_rate=1e5)


def test_an_objectives_own_error_passes_through() -> None:
    def objective(strength: Strength) -> float:
        raise CompanionError("The strength is beyond what torch.float16 holds.")

    with pytest.raises(CompanionError, match="float16"):
        search(objective)
