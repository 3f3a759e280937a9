"""Losses against hand-computed values, closed forms, plain torch in float64, and properties."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from unlearn_lib.unlearn import losses
from unlearn_lib.unlearn.methods import METHODS, NEEDS_REFERENCE

Tensor = torch.Tensor
Problem = dict[str, Any]

LOG2, LOG3 = math.log(2), math.log(3)
NAMES = (
    "gradient_descent gradient_ascent npo forward_kl maximum_entropy answer_preservation dpo "
    "simnpo wga undial activation_distance"
).split()
every_loss = pytest.mark.parametrize("name", NAMES)

# Three scored tokens of a vocabulary of four. Their losses: log 4; log (6/3) = log 2; log 4.
# As a pair, the answer costs 3 log 2 and the refusal 2 log 2.
LOGITS = torch.tensor([[0.0, 0, 0, 0], [LOG3, 0, 0, 0], [5.0, 5, 5, 5]])
LABELS = torch.tensor([2, 0, 3])
ROWS = torch.tensor([0, 0, 1])
UNIFORM = torch.zeros(3, 4)
ONE = torch.tensor([0])
SHORT = st.integers(1, 4)


def call(name: str, problem: Problem) -> Tensor:
    values = (problem.get(key) for key in ("logits", "labels", "rows", "reference", "beta"))
    loss: Tensor = getattr(losses, name)(*values)
    return loss


def gradient(name: str, problem: Problem) -> Tensor:
    leaf = problem["logits"].clone().requires_grad_(True)
    return torch.autograd.grad(call(name, {**problem, "logits": leaf}), leaf)[0]


@st.composite
def problems(draw: Any, length: Any = SHORT) -> Problem:
    """Random logits, labels, pairs of answers numbered without gaps, a reference and β."""
    lengths = draw(st.lists(length, min_size=2, max_size=6))
    lengths = lengths[: len(lengths) // 2 * 2]
    vocabulary, count = draw(st.integers(2, 9)), sum(lengths)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    return {
        "logits": scale * torch.randn(count, vocabulary, generator=random),
        "labels": torch.randint(vocabulary, (count,), generator=random),
        "rows": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        "reference": scale * torch.randn(count, vocabulary, generator=random),
        "beta": draw(st.sampled_from([0.1, 1.0, 4.5])),
    }


# --- values by hand --------------------------------------------------------------------------


def test_nll_per_answer_by_hand() -> None:
    mean = losses.answer_nll(LOGITS, LABELS, ROWS)
    assert_close(mean, torch.tensor([1.5 * LOG2, 2 * LOG2]))
    total = losses.answer_nll(LOGITS, LABELS, ROWS, "sum")
    assert_close(total, torch.tensor([3 * LOG2, 2 * LOG2]))


@pytest.mark.parametrize(
    "name, reference, beta, expected",
    [
        ("gradient_descent", None, 0.1, 1.75 * LOG2),
        ("gradient_ascent", None, 0.1, -1.75 * LOG2),
        # Uniform, the first answer costs log 2 more than now, the second the same.
        ("npo", UNIFORM, 0.5, 2 * (math.log(1 + math.sqrt(2)) + LOG2)),
        # Only the second token, (1/2, 1/6, 1/6, 1/6), is not uniform: half of one answer of two.
        ("maximum_entropy", None, 0.1, (0.25 * math.log(1 / 2) + 0.75 * math.log(6 / 4)) / 4),
        ("forward_kl", UNIFORM, 0.1, (0.25 * math.log(1 / 2) + 0.75 * math.log(6 / 4)) / 4),
        ("answer_preservation", None, 1.0, LOG3),
        ("answer_preservation", None, 2.0, math.log(5) / 2),
        ("dpo", UNIFORM, 1.0, 2 * LOG3),  # Δ falls from 2 log 2 to log 2
        ("dpo", UNIFORM, 2.0, math.log(5)),
        ("dpo", torch.tensor([4 * LOG2, 2 * LOG2]), 2.0, math.log(5)),  # kept from another pass
        ("simnpo", None, 2.0, (math.log(9 / 8) + math.log(17 / 16)) / 2),
        ("wga", None, 2.0, -5 / 32 * LOG2),  # p = 1/4, 1/2 | 1/4
    ],
)
def test_values_by_hand(name: str, reference: Any, beta: float, expected: float) -> None:
    problem = {"logits": LOGITS, "labels": LABELS, "rows": ROWS}
    value = call(name, {**problem, "reference": reference, "beta": beta})
    assert_close(value, torch.tensor(expected))


def test_divergences_go_from_the_original_to_the_model() -> None:
    even, now = torch.zeros(1, 2), torch.tensor([[0.0, LOG3]])  # (1/2, 1/2) and (1/4, 3/4)
    expected = torch.tensor(0.5 * LOG2 + 0.5 * math.log(2 / 3))
    assert_close(losses.forward_kl(now, ONE, ONE, even), expected)
    # Even logits with log 3 taken from the label's are (1/4, 3/4).
    lowered = torch.tensor(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))
    assert_close(losses.undial(even, ONE, ONE, even, LOG3), lowered)


def test_activation_distance_by_hand() -> None:
    activations = torch.tensor([[1.0, 2], [3, 4], [0, 0]])
    target = torch.tensor([[0.0, 0], [0, 0], [2, 0]])  # 5/2 and 25/2 | 2
    value = losses.activation_distance(activations, LABELS, ROWS, target)
    assert_close(value, torch.tensor((7.5 + 2) / 2))
    steered = losses.activation_distance(activations, LABELS, ROWS, torch.tensor([1.0, 2]))
    assert_close(steered, torch.tensor((0 + 4) / 4 + 5 / 4))


# --- closed forms and bounds -----------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [2, 7, 50_272])
def test_uniform_logits_cost_log_of_the_vocabulary_and_are_of_maximum_entropy(
    vocabulary: int,
) -> None:
    logits, labels = torch.full((3, vocabulary), 4.0), torch.tensor([0, 1, 1])
    value = losses.gradient_descent(logits, labels, ROWS)
    assert_close(value, torch.tensor(math.log(vocabulary)))
    assert losses.maximum_entropy(logits, labels, ROWS).item() == 0.0
    logits[0, 0] = 9
    assert losses.maximum_entropy(logits, labels, ROWS).item() > 1e-4


@given(problems())
def test_a_model_compared_with_itself(problem: Problem) -> None:
    problem["reference"] = problem["logits"]
    assert call("forward_kl", problem).item() == 0.0
    for name in ("npo", "dpo"):
        assert_close(call(name, problem), torch.tensor(2 / problem["beta"] * LOG2))


def test_maximum_entropy_has_no_floor_inside_its_logarithm() -> None:
    problem = {"logits": torch.tensor([[100.0, 0.0]]), "labels": ONE, "rows": ONE}
    assert_close(call("maximum_entropy", problem), torch.tensor(50 - LOG2))
    assert_close(gradient("maximum_entropy", problem), torch.tensor([[0.5, -0.5]]))


@given(problems())
def test_preferences_with_small_beta_have_the_gradient_of_ascent(problem: Problem) -> None:
    problem["beta"] = 1e-5
    ascent = gradient("gradient_ascent", problem)
    assert_close(gradient("simnpo", problem), ascent, rtol=1e-3, atol=1e-5)
    counts = problem["rows"].bincount()[problem["rows"]][:, None]  # NPO sums, ascent averages
    assert_close(gradient("npo", problem), ascent * counts, rtol=2e-3, atol=1e-5)


@given(problems())
def test_dpo_with_refusals_as_they_were_is_npo_of_the_answers(problem: Problem) -> None:
    refusal = problem["rows"] % 2 == 1
    problem["logits"][refusal] = problem["reference"][refusal]
    answers = {k: v if k == "beta" else v[~refusal] for k, v in problem.items()}
    answers["rows"] = answers["rows"] // 2
    assert_close(call("dpo", problem), call("npo", answers), rtol=1e-4, atol=1e-5)


@given(problems())
def test_wga_without_weight_is_ascent_and_undial_without_lowering_is_kl(problem: Problem) -> None:
    problem["beta"] = 0.0
    assert_close(call("wga", problem), call("gradient_ascent", problem))
    assert_close(gradient("wga", problem), gradient("gradient_ascent", problem))
    assert call("undial", problem) == call("forward_kl", problem)


@pytest.mark.parametrize("name", ["simnpo", "wga", "npo"])
def test_a_forgotten_answer_is_left_alone(name: str) -> None:
    problem = {"labels": ONE, "rows": ONE, "reference": torch.zeros(1, 2), "beta": 1.0}
    sizes = [
        gradient(name, {**problem, "logits": torch.tensor([[-x, 0.0]])}).abs().max()
        for x in (5.0, 20.0, 40.0)
    ]
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]
    assert sizes[2] < 1e-6


# --- every loss against plain torch in float64 -----------------------------------------------


def plain(
    name: str, logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, beta: float
) -> Tensor:
    """The loss as its paper writes it, one answer at a time."""
    log_q, log_p = logits.log_softmax(-1), reference.log_softmax(-1)
    answers = [rows == row for row in range(int(rows.max()) + 1)]
    token = torch.arange(len(labels))
    nll, original = -log_q[token, labels], -log_p[token, labels]
    now, before = ([cost[a].sum() for a in answers] for cost in (nll, original))

    def mean(values: Tensor) -> Tensor:
        return torch.stack([values[a].mean() for a in answers]).mean()

    def preference(margins: list[Tensor], factor: float = 2.0) -> Tensor:
        return -factor / beta * logsigmoid(beta * torch.stack(margins)).mean()

    lowered = reference.clone()
    lowered[token, labels] -= beta
    target = lowered.softmax(-1)
    pairs = range(0, len(answers), 2)
    match name:
        case "gradient_descent":
            return mean(nll)
        case "gradient_ascent":
            return -mean(nll)
        case "npo":
            return preference([n - b for n, b in zip(now, before, strict=True)])
        case "forward_kl":
            return mean((log_p.exp() * (log_p - log_q)).sum(-1))
        case "maximum_entropy":
            return mean(-math.log(logits.shape[1]) - log_q.mean(-1))
        case "answer_preservation":
            return preference([now[i + 1] - now[i] for i in pairs], 1.0)
        case "dpo":
            win = [-now[i + 1] + before[i + 1] for i in pairs]
            lose = [-now[i] + before[i] for i in pairs]
            return preference([w - x for w, x in zip(win, lose, strict=True)])
        case "simnpo":
            return preference([nll[a].mean() for a in answers])
        case "wga":
            return mean((-nll).exp().detach() ** beta * -nll)
        case "undial":
            return mean((-target * log_q).sum(-1)) + mean((target * target.log()).sum(-1))
    return mean(((logits - reference) ** 2).mean(-1))


@every_loss
@given(problem=problems(st.sampled_from([1, 2, losses.ROWS_AT_ONCE + 1])))
def test_values_and_gradients_are_those_of_plain_torch(name: str, problem: Problem) -> None:
    leaf = problem["logits"].double().requires_grad_(True)
    doubled = {**problem, "logits": leaf, "reference": problem["reference"].double()}
    expected, value = plain(name, **doubled), call(name, problem)
    assert value.dtype == torch.float32
    assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    slope = torch.autograd.grad(expected, leaf)[0]
    assert_close(gradient(name, problem).double(), slope, rtol=1e-3, atol=1e-5)


# --- properties of every loss ----------------------------------------------------------------


@every_loss
@given(problem=problems(), data=st.data())
def test_order_of_tokens_and_of_pairs_does_not_matter(
    name: str, problem: Problem, data: st.DataObject
) -> None:
    count, pairs = len(problem["labels"]), int(problem["rows"].max() + 1) // 2
    tokens = torch.tensor(data.draw(st.permutations(range(count))))
    names = torch.tensor(data.draw(st.permutations(range(pairs))))
    moved = {k: v if k == "beta" else v[tokens] for k, v in problem.items()}
    moved["rows"] = 2 * names[moved["rows"] // 2] + moved["rows"] % 2
    assert_close(call(name, moved), call(name, problem), rtol=1e-5, atol=1e-5)


@every_loss
def test_half_precision_is_summed_in_float32(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 70, 11, generator=random).bfloat16()
    problem: Problem = {"labels": torch.arange(70) % 11, "rows": torch.arange(70) // 7, "beta": 0.1}
    half = call(name, {**problem, "logits": logits, "reference": reference})
    assert half.dtype == torch.float32
    full = call(name, {**problem, "logits": logits.float(), "reference": reference.float()})
    lowered_in_half = 1e-3 if name == "undial" else 1e-5
    assert_close(half, full, rtol=lowered_in_half, atol=1e-5)


USED: set[Any] = {loss for m in METHODS.values() for loss in (m.forget, m.retain, m.keep) if loss}


@pytest.mark.parametrize("loss", sorted(USED, key=str))
def test_the_registry_knows_which_losses_need_a_reference(loss: Any) -> None:
    logits, reference = LOGITS.clone().requires_grad_(True), LOGITS.flip(0).requires_grad_(True)
    if loss not in NEEDS_REFERENCE:
        assert loss(logits, LABELS, ROWS, None, 1.0).isfinite()
        return
    with pytest.raises((AttributeError, TypeError)):
        loss(logits, LABELS, ROWS, None, 1.0)
    loss(logits, LABELS, ROWS, reference, 1.0).backward()
    assert logits.grad is not None
    assert reference.grad is None, "the original model gets no gradient"
