"""Losses against hand-computed values, closed forms and properties."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from unlearn_lib import losses
from unlearn_lib.methods import METHODS, NEEDS_REFERENCE, PAIRED

Problem = dict[str, Any]

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
BY_NAME = {
    "gradient_descent": losses.gradient_descent,
    "gradient_ascent": losses.gradient_ascent,
    "npo": losses.npo,
    "forward_kl": losses.forward_kl,
}

# Three scored tokens of a vocabulary of four. Their losses: log 4; log (6/3) = log 2; log 4.
LOGITS = torch.tensor([[0.0, 0, 0, 0], [LOG3, 0, 0, 0], [5.0, 5, 5, 5]])
LABELS = torch.tensor([2, 0, 3])
ROWS = torch.tensor([0, 0, 1])


@st.composite
def problems(draw: Any) -> Problem:
    """Random logits, labels, answers numbered without gaps, and a reference."""
    answers = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    vocabulary = draw(st.integers(2, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count = sum(answers)
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return {
        "logits": scale * torch.randn(count, vocabulary, generator=random),
        "labels": torch.randint(vocabulary, (count,), generator=random),
        "rows": torch.repeat_interleave(torch.arange(len(answers)), torch.tensor(answers)),
        "reference": scale * torch.randn(count, vocabulary, generator=random),
    }


def gradient(loss: Any, logits: torch.Tensor, *rest: Any) -> torch.Tensor:
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(loss(leaf, *rest), leaf)[0]


# --- values by hand --------------------------------------------------------------------------


def test_nll_per_answer_by_hand() -> None:
    mean = losses.answer_nll(LOGITS, LABELS, ROWS)
    assert_close(mean, torch.tensor([1.5 * LOG2, LOG4]))
    total = losses.answer_nll(LOGITS, LABELS, ROWS, "sum")
    assert_close(total, torch.tensor([3 * LOG2, LOG4]))


def test_ga_and_gd_are_means_of_per_answer_means() -> None:
    expected = torch.tensor((1.5 * LOG2 + 2 * LOG2) / 2)
    assert_close(losses.gradient_descent(LOGITS, LABELS, ROWS), expected)
    assert_close(losses.gradient_ascent(LOGITS, LABELS, ROWS), -expected)


def test_npo_by_hand() -> None:
    reference = torch.zeros(2, 4)  # uniform: the answer costs 2 log 4, one log 2 more than now
    value = losses.npo(LOGITS[:2], LABELS[:2], ROWS[:2], reference, beta=0.5)
    assert_close(value, torch.tensor(4 * math.log(1 + math.sqrt(2))))


def test_npo_averages_over_answers_not_over_their_sum() -> None:
    reference = torch.zeros(3, 4)
    first = losses.npo(LOGITS[:2], LABELS[:2], ROWS[:2], reference[:2], 0.3)
    second = losses.npo(LOGITS[2:], LABELS[2:], ROWS[2:] - 1, reference[2:], 0.3)
    both = losses.npo(LOGITS, LABELS, ROWS, reference, 0.3)
    assert_close(both, (first + second) / 2)


def test_forward_kl_by_hand() -> None:
    original = torch.tensor([[0.0, 0.0]])  # (1/2, 1/2)
    now = torch.tensor([[0.0, LOG3]])  # (1/4, 3/4)
    value = losses.forward_kl(now, torch.tensor([0]), torch.tensor([0]), original)
    assert_close(value, torch.tensor(0.5 * LOG2 + 0.5 * math.log(2 / 3)))
    backward = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    assert abs(value.item() - backward) > 0.01


def test_forward_kl_weighs_answers_alike() -> None:
    original = torch.zeros(3, 2)
    now = torch.tensor([[0.0, LOG3], [0.0, LOG3], [0.0, 0.0]])
    value = losses.forward_kl(now, torch.zeros(3, dtype=torch.int64), ROWS, original)
    assert_close(value, torch.tensor((0.5 * LOG2 + 0.5 * math.log(2 / 3)) / 2))


# --- closed forms and bounds -----------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [2, 7, 50_272])
def test_uniform_logits_cost_log_of_the_vocabulary(vocabulary: int) -> None:
    logits, labels = torch.full((3, vocabulary), 4.0), torch.tensor([0, 1, 1])
    value = losses.gradient_descent(logits, labels, ROWS)
    assert_close(value, torch.tensor(math.log(vocabulary)))


@given(problems())
def test_kl_of_a_model_with_itself_is_zero(problem: Problem) -> None:
    logits, labels, rows = problem["logits"], problem["labels"], problem["rows"]
    assert losses.forward_kl(logits, labels, rows, logits).item() == 0.0


@given(problems())
def test_kl_is_not_negative_and_is_cross_entropy_less_entropy(
    problem: Problem,
) -> None:
    value = losses.forward_kl(**problem)
    assert value.item() >= -1e-6
    p, log_q = problem["reference"].softmax(-1), problem["logits"].log_softmax(-1)
    floor = losses.per_row((-p * p.clamp_min(1e-38).log()).sum(-1), problem["rows"]).mean()
    published = losses.per_row((-p * log_q).sum(-1), problem["rows"]).mean()
    assert_close(value, published - floor, rtol=1e-4, atol=1e-4)


@given(problems(), st.floats(0.01, 5))
def test_npo_at_equality_is_two_over_beta_log_two(problem: Problem, beta: float) -> None:
    logits = problem["logits"]
    value = losses.npo(logits, problem["labels"], problem["rows"], logits, beta)
    assert_close(value, torch.tensor(2 / beta * LOG2))


@given(problems(), st.floats(0.01, 5))
def test_npo_is_bounded_below_by_zero(problem: Problem, beta: float) -> None:
    assert losses.npo(**problem, beta=beta).item() >= 0


@given(problems())
def test_npo_with_small_beta_has_the_gradient_of_ascent(
    problem: Problem,
) -> None:
    logits, labels, rows = problem["logits"], problem["labels"], problem["rows"]
    found = gradient(losses.npo, logits, labels, rows, problem["reference"], 1e-5)
    ascent = gradient(lambda z: -losses.answer_nll(z, labels, rows, "sum").mean(), logits)
    assert_close(found, ascent, rtol=2e-3, atol=1e-5)


def test_npo_gradient_fades_once_an_answer_is_unlikely() -> None:
    reference, labels, rows = torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0])
    sizes = [
        gradient(losses.npo, torch.tensor([[-x, 0.0]]), labels, rows, reference, 1.0).abs().max()
        for x in (0.0, 5.0, 20.0)
    ]
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]


# --- properties of every loss ----------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
@given(problem=problems(), data=st.data())
def test_order_of_tokens_and_of_answers_does_not_matter(
    name: str, problem: Problem, data: st.DataObject
) -> None:
    loss, count = BY_NAME[name], len(problem["labels"])
    answers = int(problem["rows"].max()) + 1
    tokens = torch.tensor(data.draw(st.permutations(range(count))))
    names = torch.tensor(data.draw(st.permutations(range(answers))))
    moved = {key: value[tokens] for key, value in problem.items()}
    moved["rows"] = names[moved["rows"]]
    assert_close(loss(**moved), loss(**problem), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BY_NAME)
@given(problem=problems(), constant=st.floats(-20, 20))
def test_a_constant_added_to_the_logits_does_not_matter(
    name: str, problem: Problem, constant: float
) -> None:
    shifted = {**problem, "logits": problem["logits"] + constant}
    assert_close(BY_NAME[name](**shifted), BY_NAME[name](**problem), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BY_NAME)
def test_half_precision_logits_are_summed_in_float32(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 70, 11, generator=random).bfloat16()
    labels, rows = torch.arange(70) % 11, torch.arange(70) // 7
    half = BY_NAME[name](logits, labels, rows, reference)
    assert half.dtype == torch.float32
    assert_close(half, BY_NAME[name](logits.float(), labels, rows, reference.float()))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_values_and_gradients_are_those_of_plain_torch(count: int) -> None:
    random = torch.Generator().manual_seed(count)
    logits, reference = torch.randn(2, count, 13, generator=random)
    labels = torch.randint(13, (count,), generator=random)
    rows = torch.arange(count) // 3

    def plain_nll(z: torch.Tensor) -> torch.Tensor:
        return losses.per_row(functional.cross_entropy(z, labels, reduction="none"), rows).mean()

    def plain_kl(z: torch.Tensor) -> torch.Tensor:
        q, p = z.log_softmax(-1), reference.log_softmax(-1)
        kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        return losses.per_row(kl, rows).mean()

    for ours, plain in ((losses.gradient_descent, plain_nll), (losses.forward_kl, plain_kl)):
        assert_close(ours(logits, labels, rows, reference), plain(logits))
        assert_close(gradient(ours, logits, labels, rows, reference), gradient(plain, logits))


@pytest.mark.parametrize("name", ["npo", "forward_kl"])
def test_no_gradient_reaches_the_reference(name: str) -> None:
    logits = LOGITS.clone().requires_grad_(True)
    reference = LOGITS.flip(0).clone().requires_grad_(True)
    BY_NAME[name](logits, LABELS, ROWS, reference).backward()
    assert logits.grad is not None
    assert reference.grad is None


@pytest.mark.parametrize("name", ["npo", "forward_kl"])
def test_a_missing_reference_is_refused(name: str) -> None:
    with pytest.raises(AssertionError, match="original model"):
        BY_NAME[name](LOGITS, LABELS, ROWS)


# --- direction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, sign", [("gradient_ascent", 1), ("npo", 1), ("gradient_descent", -1)]
)
@given(problem=problems())
def test_a_small_step_moves_the_answers_the_right_way(
    name: str, sign: int, problem: Problem
) -> None:
    rest = problem["labels"], problem["rows"], problem["logits"]
    step = gradient(BY_NAME[name], problem["logits"], *rest)
    if step.abs().max() < 1e-3:
        return
    before = losses.gradient_descent(problem["logits"], *rest)
    after = losses.gradient_descent(problem["logits"] - 0.1 * step, *rest)
    assert sign * (after - before) > 0


# --- the registry ----------------------------------------------------------------------------

USED: set[Any] = {
    loss for method in METHODS.values() for loss in (method.forget, method.retain, method.keep) if loss
}  # fmt: skip


def test_every_method_says_where_it_comes_from_and_uses_known_losses() -> None:
    assert all(method.source for method in METHODS.values())
    assert all(getattr(losses, loss.__name__) is loss for loss in USED)


@pytest.mark.parametrize("name", sorted(loss.__name__ for loss in USED))
def test_the_registry_knows_which_losses_need_a_reference(name: str) -> None:
    loss = getattr(losses, name)
    logits, labels, rows = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0, 1])
    if loss in NEEDS_REFERENCE:
        with pytest.raises(AssertionError):
            loss(logits, labels, rows)
    else:
        assert loss(logits, labels, rows).isfinite()


@pytest.mark.parametrize("name", sorted(loss.__name__ for loss in USED))
def test_the_registry_knows_which_losses_take_pairs(name: str) -> None:
    """One row more than a pair is a row without its partner."""
    loss = getattr(losses, name)
    logits, labels, rows = torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.arange(3)
    if loss in PAIRED:
        with pytest.raises(ValueError, match="no partner"):
            loss(logits, labels, rows, logits)
    else:
        assert loss(logits, labels, rows, logits).isfinite()
