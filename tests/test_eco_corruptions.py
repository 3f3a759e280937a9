"""Corruptions of embeddings against values by hand, and what holds for every one of them."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from unlearn_lib.eco.corruptions import CORRUPTIONS, corrupt, prompt_seed
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings.eco import CorruptionName

Tensor = torch.Tensor

NAMES = sorted(CORRUPTIONS)
MOVES = ["reverse_order", "shuffle"]
NOISY = [name for name in NAMES if "noise" in name]
DRAWN = [*NOISY, "shuffle"]

# By absolute value, row 0 ranks its components 1, 3, 0, 2 and row 2 ranks them 2, 0, 3, 1.
EMBEDDINGS = torch.tensor([[1.0, -4, 0.5, 2], [9, 9, 9, 9], [-3, 0.25, 5, 1], [6, 7, 8, -9]])
CHOSEN = torch.tensor([True, False, True, False])


def corrupted(name: str, **chosen: Any) -> list[list[float]]:
    """Rows 0 and 2 of the example, corrupted; the other two are checked here."""
    result = corrupt(EMBEDDINGS, CHOSEN, name, **{"strength": 10.0, "dims": 2, **chosen})
    assert torch.equal(result[~CHOSEN], EMBEDDINGS[~CHOSEN])
    return result[CHOSEN].tolist()


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """A prompt's embeddings, rows chosen, a name of a corruption and its settings."""
    tokens, width = draw(st.integers(0, 6)), draw(st.integers(1, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    chosen = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    return {
        "embeddings": torch.randn(tokens, width, generator=random).to(dtype),
        "chosen": torch.tensor(chosen, dtype=torch.bool),
        "name": draw(st.sampled_from(NAMES)),
        "strength": draw(st.sampled_from([0.0, 0.5, 100.0])),
        "dims": draw(st.none() | st.integers(1, width)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def bits(embeddings: Tensor) -> bytes:
    return embeddings.contiguous().view(torch.uint8).numpy().tobytes()


# --- values by hand --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, first, third",
    [
        ("zero_out_first_n", [0, 0, 0.5, 2], [0, 0, 5, 1]),
        ("zero_out_top_k", [1, 0, 0.5, 0], [0, 0.25, 0, 1]),
        ("flip_sign_first_n", [-1, 4, 0.5, 2], [3, -0.25, 5, 1]),
        ("flip_sign_top_k", [1, 4, 0.5, -2], [3, 0.25, -5, 1]),
        ("add_value_first_n", [11, 6, 0.5, 2], [7, 10.25, 5, 1]),
        ("add_value_top_k", [1, 6, 0.5, 12], [7, 0.25, 15, 1]),
        ("add_value_least_k", [11, -4, 10.5, 2], [-3, 10.25, 5, 11]),
        ("sub_value_first_n", [-9, -14, 0.5, 2], [-13, -9.75, 5, 1]),
        ("sub_value_top_k", [1, -14, 0.5, -8], [-13, 0.25, -5, 1]),
        ("sub_value_least_k", [-9, -4, -9.5, 2], [-3, -9.75, 5, -9]),
        ("reverse_order", [-3, 0.25, 5, 1], [1, -4, 0.5, 2]),
    ],
)
def test_by_hand(name: str, first: list[float], third: list[float]) -> None:
    assert corrupted(name) == [first, third]


def test_noise_is_the_seeds_normal_numbers_times_the_strength() -> None:
    noise = 10 * torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    rows = EMBEDDINGS[CHOSEN]
    first = torch.tensor(corrupted("rand_noise_first_n", seed=3))
    assert_close(first, torch.cat([(rows + noise)[:, :2], rows[:, 2:]], dim=1))
    placed = torch.tensor(corrupted("set_rand_noise_first_n", seed=3))
    assert_close(placed, torch.cat([noise[:, :2], rows[:, 2:]], dim=1))
    top = torch.tensor(corrupted("rand_noise_top_k", seed=3))
    largest = torch.tensor([[False, True, False, True], [True, False, True, False]])
    assert_close(top, torch.where(largest, rows + noise, rows))


def test_noise_has_the_variance_of_its_strength() -> None:
    zeros, all_rows = torch.zeros(100, 400), torch.ones(100, dtype=torch.bool)
    for name in NOISY:
        noise = corrupt(zeros, all_rows, name, 5.0)
        assert noise.mean().item() == pytest.approx(0, abs=0.1)
        assert noise.std().item() == pytest.approx(5, abs=0.1)


def test_random_components_are_the_same_in_all_rows_and_move_with_the_seed() -> None:
    zeros, all_rows = torch.zeros(5, 20), torch.ones(5, dtype=torch.bool)
    places = set()
    for seed in range(20):
        changed = corrupt(zeros, all_rows, "rand_noise_rand_n", 1.0, dims=3, seed=seed) != 0
        assert (changed == changed[0]).all() and changed[0].sum() == 3
        places.add(tuple(changed[0].tolist()))
    assert len(places) > 15


def test_of_equal_components_the_first_come_first() -> None:
    row, every = torch.tensor([[2.0, -2, 2, -2]]), torch.tensor([True])
    assert corrupt(row, every, "zero_out_top_k", 1.0, dims=2).tolist() == [[0, 0, 2, -2]]
    assert corrupt(row, every, "add_value_least_k", 1.0, dims=1).tolist() == [[3, -2, 2, -2]]


def test_a_vector_of_strengths_works_component_by_component() -> None:
    vector = torch.tensor([0.0, 1, 2, 3])
    expected = [[1, -3, 2.5, 5], [-3, 1.25, 7, 4]]
    for strength in (vector, vector.numpy().astype(np.float64)):
        assert corrupted("add_value_first_n", strength=strength, dims=None) == expected
    noise = torch.tensor(corrupted("rand_noise_first_n", strength=vector)) - EMBEDDINGS[CHOSEN]
    same = torch.tensor(corrupted("rand_noise_first_n", strength=1.0)) - EMBEDDINGS[CHOSEN]
    assert_close(noise, vector * same)


def test_wide_embeddings_are_corrupted_in_their_own_precision() -> None:
    embeddings = torch.tensor([[1 + 2**-40]], dtype=torch.float64)
    result = corrupt(embeddings, torch.tensor([True]), "add_value_first_n", 1.0)
    assert result.item() == 2 + 2**-40


# --- properties ------------------------------------------------------------------------------


def test_every_corruption_of_the_settings_is_here() -> None:
    assert set(CORRUPTIONS) == set(get_args(CorruptionName))


@given(problems())
def test_only_chosen_rows_change_and_never_the_input(problem: dict[str, Any]) -> None:
    embeddings, chosen = problem["embeddings"], problem["chosen"]
    before = embeddings.clone()
    result = corrupt(**problem)
    assert bits(embeddings) == bits(before)
    assert result.data_ptr() != embeddings.data_ptr() or not embeddings.numel()
    assert result.dtype == embeddings.dtype and result.shape == embeddings.shape
    assert bits(result[~chosen]) == bits(embeddings[~chosen])


@given(problems())
def test_no_more_than_dims_components_of_a_row_change(problem: dict[str, Any]) -> None:
    if problem["name"] not in MOVES:
        changed = corrupt(**problem) != problem["embeddings"]
        assert (changed.sum(dim=1) <= (problem["dims"] or changed.shape[1])).all()


@given(problems(), st.sampled_from(MOVES))
def test_moves_keep_the_rows(problem: dict[str, Any], name: str) -> None:
    moved = corrupt(**{**problem, "name": name})
    assert sorted(moved.tolist()) == sorted(problem["embeddings"].tolist())


@given(problems(), st.sampled_from(["flip_sign_first_n", "flip_sign_top_k", "reverse_order"]))
def test_twice_is_nothing(problem: dict[str, Any], name: str) -> None:
    once = corrupt(**{**problem, "name": name})
    twice = corrupt(**{**problem, "name": name, "embeddings": once})
    assert bits(twice) == bits(problem["embeddings"])


@given(problems())
def test_the_same_seed_gives_the_same_whatever_was_drawn_before(problem: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first, state = corrupt(**problem), torch.get_rng_state()
    torch.rand(7)
    assert bits(corrupt(**problem)) == bits(first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@given(problems(), st.integers(1, 5))
def test_padding_and_neighbours_do_not_matter(problem: dict[str, Any], padding: int) -> None:
    alone, embeddings = corrupt(**problem), problem["embeddings"]
    problem["embeddings"] = torch.cat(
        [embeddings.new_full((padding, embeddings.shape[1]), 7), embeddings]
    )
    problem["chosen"] = torch.cat([torch.zeros(padding, dtype=torch.bool), problem["chosen"]])
    assert bits(corrupt(**problem)[padding:]) == bits(alone)


@given(problems(), st.sampled_from(NOISY))
def test_noise_is_the_same_in_every_dtype(problem: dict[str, Any], name: str) -> None:
    problem |= {"name": name, "embeddings": torch.zeros_like(problem["embeddings"])}
    narrow = corrupt(**problem)
    wide = corrupt(**{**problem, "embeddings": problem["embeddings"].double()})
    assert_close(narrow.double(), wide, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", DRAWN)
def test_another_seed_gives_another_result(name: str) -> None:
    embeddings = torch.arange(60.0).reshape(12, 5)
    every = torch.ones(12, dtype=torch.bool)
    results = {bits(corrupt(embeddings, every, name, 1.0, seed=seed)) for seed in range(10)}
    assert len(results) == 10


@pytest.mark.parametrize("name", sorted(set(NOISY) - {"rand_noise_top_k", "rand_noise_rand_n"}))
def test_fewer_components_keep_the_noise_of_those_that_stay(name: str) -> None:
    few, many = torch.tensor(corrupted(name, dims=1)), torch.tensor(corrupted(name, dims=3))
    assert torch.equal(few[:, 0], many[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_chosen_is_an_equal_copy(name: str) -> None:
    result = corrupt(EMBEDDINGS, torch.zeros(4, dtype=torch.bool), name, 1.0)
    assert torch.equal(result, EMBEDDINGS) and result is not EMBEDDINGS


# --- seeds of prompts ------------------------------------------------------------------------


def test_a_prompts_seed_is_the_same_everywhere() -> None:
    # printf '2:Où ? 東京' | sha256sum | cut -c 1-8
    assert prompt_seed("Où ? 東京", 2) == 0x77ACEBA5


def test_other_prompts_and_other_seeds_differ() -> None:
    prompts = [("Who?", 5), ("Who?", 0), ("Who? ", 5), ("who?", 5), ("", 5)]
    assert len({prompt_seed(text, seed) for text, seed in prompts}) == 5


@given(st.text(), st.integers(0, 9))
@example("half of a pair: \ud800", 0)
def test_every_text_has_a_seed(text: str, seed: int) -> None:
    assert 0 <= prompt_seed(text, seed) < 2**32


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "rand_noise_first"}, "no corruption 'rand_noise_first'.*'rand_noise_first_n'"),
        ({"dims": 5}, "dims is 5, but .* has 4 components: give 1 to 4"),
        ({"dims": 0}, "dims is 0"),
        ({"strength": -1.0}, "strength is -1: give a finite number, 0 or larger"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": float("inf")}, "strength is inf"),
        ({"strength": torch.tensor([1.0, 1, -2, 1])}, "strength is -2"),
        ({"strength": torch.ones(3)}, r"shape \(3,\), but .* 4 components"),
    ],
)
@pytest.mark.parametrize("name", ["rand_noise_first_n", "reverse_order"])
def test_settings_that_cannot_be(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(CompanionError, match=message):
        corrupted(**{"name": name, **given})


@pytest.mark.parametrize(
    "embeddings, chosen, message",
    [
        (torch.zeros(1, 4, 4), CHOSEN, r"shape \(1, 4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.int64), CHOSEN, "torch.int64"),
        (EMBEDDINGS, CHOSEN[:3], r"shape \(3,\): .* 4 rows"),
        (EMBEDDINGS, torch.tensor([0, 2]), "torch.int64"),
        (EMBEDDINGS / torch.tensor([1, 1, 0, 1])[:, None], CHOSEN, "Row 2 of the embeddings holds"),
    ],
)
def test_tensors_that_cannot_be(embeddings: Tensor, chosen: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(embeddings, chosen, "rand_noise_first_n", 1.0)


@pytest.mark.parametrize(
    "dtype, strength, remedy",
    [
        (torch.float16, 1e6, "take a smaller strength, or load the model in bfloat16 or float32"),
        (torch.bfloat16, 1e39, "take a smaller strength"),
        (torch.float32, 1e39, "take a smaller strength"),
    ],
)
@pytest.mark.parametrize("name", ["rand_noise_first_n", "sub_value_top_k"])
def test_a_strength_beyond_the_dtype(
    name: str, dtype: torch.dtype, strength: float, remedy: str
) -> None:
    with pytest.raises(CompanionError) as caught:
        corrupt(EMBEDDINGS.to(dtype), CHOSEN, name, strength)
    text = str(caught.value)
    assert f"Strength {strength:g} takes row 0" in text and str(dtype) in text
    assert text.endswith(f": {remedy}.")
    assert torch.isfinite(corrupt(EMBEDDINGS.double(), CHOSEN, name, strength)).all()


def test_the_papers_largest_strength_fits_bfloat16() -> None:
    result = corrupt(EMBEDDINGS.bfloat16(), CHOSEN, "rand_noise_first_n", 1e6, dims=1)
    assert result.isfinite().all() and result[0, 0].abs() > 1e3
