"""Losses of Yuan et al. 2025 and open-unlearning: by hand, in closed form, against plain torch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from unlearn_lib import losses
from unlearn_lib.batches import Example, pack, packed_logits
from unlearn_lib.models import LanguageModel

Tensor = torch.Tensor
Problem = dict[str, Any]

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
PAIRS = ("answer_preservation", "dpo")
NEED_REFERENCE = ("npo", "forward_kl", "dpo", "undial", "activation_distance")
NAMES = (
    "gradient_descent", "gradient_ascent", "npo", "forward_kl", "maximum_entropy",
    "answer_preservation", "dpo", "simnpo", "wga", "undial", "activation_distance",
)  # fmt: skip
every_loss = pytest.mark.parametrize("name", NAMES)

# Three scored tokens of a vocabulary of four. Their losses: log 4; log (6/3) = log 2; log 4.
# As a pair, the answer costs 3 log 2 and the refusal 2 log 2.
LOGITS = torch.tensor([[0.0, 0, 0, 0], [LOG3, 0, 0, 0], [5.0, 5, 5, 5]])
LABELS = torch.tensor([2, 0, 3])
ROWS = torch.tensor([0, 0, 1])
ONE = torch.tensor([0])


def call(name: str, *arguments: Any, **named: Any) -> Tensor:
    value: Tensor = getattr(losses, name)(*arguments, **named)
    return value


def gradient(name: str, problem: Problem) -> Tensor:
    leaf = problem["logits"].clone().requires_grad_(True)
    return torch.autograd.grad(call(name, **{**problem, "logits": leaf}), leaf)[0]


@st.composite
def problems(draw: Any) -> Problem:
    """Random logits, labels, pairs of answers numbered without gaps, a reference and β."""
    answers = draw(st.lists(st.integers(1, 4), min_size=2, max_size=6))
    answers = answers[: len(answers) // 2 * 2]
    vocabulary = draw(st.integers(2, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count = sum(answers)
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    return {
        "logits": scale * torch.randn(count, vocabulary, generator=random),
        "labels": torch.randint(vocabulary, (count,), generator=random),
        "rows": torch.repeat_interleave(torch.arange(len(answers)), torch.tensor(answers)),
        "reference": scale * torch.randn(count, vocabulary, generator=random),
        "beta": draw(st.sampled_from([0.1, 1.0, 4.5])),
    }


# --- values by hand --------------------------------------------------------------------------


def test_maximum_entropy_by_hand() -> None:
    # Only the second token, (1/2, 1/6, 1/6, 1/6), is not uniform: half of one answer of two.
    expected = (0.25 * math.log(1 / 2) + 0.75 * math.log(6 / 4)) / 4
    assert_close(losses.maximum_entropy(LOGITS, LABELS, ROWS), torch.tensor(expected))


@pytest.mark.parametrize("beta, expected", [(1.0, LOG3), (2.0, math.log(5) / 2)])
def test_answer_preservation_by_hand(beta: float, expected: float) -> None:
    value = losses.answer_preservation(LOGITS, LABELS, ROWS, None, beta)
    assert_close(value, torch.tensor(expected))


@pytest.mark.parametrize("beta, expected", [(1.0, 2 * LOG3), (2.0, math.log(5))])
def test_dpo_by_hand(beta: float, expected: float) -> None:
    kept = torch.tensor([4 * LOG2, 2 * LOG2])  # of uniform logits; Δ falls from 2 log 2 to log 2
    for reference in (torch.zeros(3, 4), kept):
        value = losses.dpo(LOGITS, LABELS, ROWS, reference, beta)
        assert_close(value, torch.tensor(expected))


def test_preferences_average_over_pairs() -> None:
    labels, rows = LABELS.repeat(2), torch.tensor([0, 0, 1, 3, 3, 2])
    value = losses.answer_preservation(LOGITS.repeat(2, 1), labels, rows, None, 1.0)
    assert_close(value, torch.tensor((LOG3 + math.log(3 / 2)) / 2))


def test_simnpo_by_hand() -> None:
    value = losses.simnpo(LOGITS, LABELS, ROWS, None, beta=2.0)  # means 1.5 log 2 and 2 log 2
    assert_close(value, torch.tensor((math.log(9 / 8) + math.log(17 / 16)) / 2))


def test_wga_by_hand() -> None:
    value = losses.wga(LOGITS, LABELS, ROWS, None, beta=2.0)  # p = 1/4, 1/2 | 1/4
    assert_close(value, torch.tensor(-5 / 32 * LOG2))


def test_undial_by_hand() -> None:
    even = torch.zeros(1, 2)  # with log 3 taken from its label: (1/4, 3/4)
    value = losses.undial(even, ONE, ONE, even, beta=LOG3)
    assert_close(value, torch.tensor(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)))


def test_activation_distance_by_hand() -> None:
    activations = torch.tensor([[1.0, 2], [3, 4], [0, 0]])
    target = torch.tensor([[0.0, 0], [0, 0], [2, 0]])  # 5/2 and 25/2 | 2
    value = losses.activation_distance(activations, LABELS, ROWS, target)
    assert_close(value, torch.tensor((7.5 + 2) / 2))
    steered = losses.activation_distance(activations, LABELS, ROWS, torch.tensor([1.0, 2]))
    assert_close(steered, torch.tensor((0 + 4) / 4 + 5 / 4))


# --- closed forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [2, 7, 49_152])
def test_maximum_entropy_is_zero_at_uniform_and_nowhere_below(vocabulary: int) -> None:
    logits = torch.full((3, vocabulary), 4.0)
    assert losses.maximum_entropy(logits, LABELS.clamp_max(1), ROWS).item() == 0.0
    logits[0, 0] = 9
    assert losses.maximum_entropy(logits, LABELS.clamp_max(1), ROWS).item() > 1e-4


def test_maximum_entropy_has_no_floor_inside_its_logarithm() -> None:
    value = losses.maximum_entropy(torch.tensor([[100.0, 0.0]]), ONE, ONE)
    assert_close(value, torch.tensor(50 - LOG2))
    steep = gradient(
        "maximum_entropy", {"logits": torch.tensor([[100.0, 0.0]]), "labels": ONE, "rows": ONE}
    )
    assert_close(steep, torch.tensor([[0.5, -0.5]]))


@given(st.floats(0.01, 5), st.integers(1, 4))
def test_equal_costs_give_log_two_over_beta(beta: float, length: int) -> None:
    rows = torch.arange(4).repeat_interleave(length)
    logits, labels = torch.zeros(len(rows), 5), torch.zeros_like(rows)
    value = losses.answer_preservation(logits, labels, rows, None, beta)
    assert_close(value, torch.tensor(LOG2 / beta))


@given(problems())
def test_dpo_at_the_original_model_is_two_over_beta_log_two(problem: Problem) -> None:
    value = losses.dpo(**{**problem, "reference": problem["logits"]})
    assert_close(value, torch.tensor(2 / problem["beta"] * LOG2))


@given(problems())
def test_dpo_with_refusals_as_they_were_is_npo_of_the_answers(problem: Problem) -> None:
    refusal = problem["rows"] % 2 == 1
    problem["logits"][refusal] = problem["reference"][refusal]
    answers = {k: v if k == "beta" else v[~refusal] for k, v in problem.items()}
    answers["rows"] = answers["rows"] // 2
    assert_close(losses.dpo(**problem), losses.npo(**answers), rtol=1e-4, atol=1e-5)


@given(problems())
def test_simnpo_with_small_beta_has_the_gradient_of_ascent(problem: Problem) -> None:
    found, ascent = (
        gradient(name, {**problem, "beta": 1e-5}) for name in ("simnpo", "gradient_ascent")
    )
    assert_close(found, ascent, rtol=1e-3, atol=1e-5)


@given(problems())
def test_wga_without_weight_is_ascent(problem: Problem) -> None:
    problem["beta"] = 0.0
    assert_close(losses.wga(**problem), losses.gradient_ascent(**problem))
    assert_close(gradient("wga", problem), gradient("gradient_ascent", problem))


@pytest.mark.parametrize("name, beta", [("simnpo", 1.0), ("wga", 1.0), ("npo", 1.0)])
def test_a_forgotten_answer_is_left_alone(name: str, beta: float) -> None:
    logits = torch.tensor([[-40.0, 0.0]])
    problem = {"logits": logits, "labels": ONE, "rows": ONE, "reference": torch.zeros(1, 2)}
    assert call(name, **problem, beta=beta).abs() < 1e-6
    assert gradient(name, {**problem, "beta": beta}).abs().max() < 1e-6


@given(problems())
def test_undial_is_zero_at_its_target_with_no_gradient(problem: Problem) -> None:
    label = torch.nn.functional.one_hot(problem["labels"], problem["logits"].shape[1])
    problem["logits"] = problem["reference"] - problem["beta"] * label + 3
    assert losses.undial(**problem).abs() < 1e-6
    assert gradient("undial", problem).abs().max() < 1e-6


@given(problems())
def test_undial_of_nothing_is_the_divergence_from_the_original(problem: Problem) -> None:
    problem["beta"] = 0.0
    assert losses.undial(**problem) == losses.forward_kl(**problem)


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
        return torch.stack([-factor / beta * (beta * m).sigmoid().log() for m in margins]).mean()

    lowered = reference.clone()
    for place, label in enumerate(labels):
        lowered[place, label] -= beta
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
@given(problem=problems())
def test_values_and_gradients_are_those_of_plain_torch(name: str, problem: Problem) -> None:
    leaf = problem["logits"].double().requires_grad_(True)
    doubled = {**problem, "logits": leaf, "reference": problem["reference"].double()}
    expected = plain(name, **doubled)
    found = call(name, **problem)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected.detach(), rtol=1e-4, atol=1e-5)
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
    assert_close(call(name, **moved), call(name, **problem), rtol=1e-5, atol=1e-5)


@every_loss
@given(problem=problems())
def test_pairs_of_equal_number_average_whatever_their_lengths(name: str, problem: Problem) -> None:
    parts, last = [], int(problem["rows"].max())
    for row in range(0, last, 2):
        chosen = problem["rows"] // 2 == row // 2
        part = {k: v if k == "beta" else v[chosen] for k, v in problem.items()}
        parts.append(call(name, **{**part, "rows": part["rows"] - row}))
    whole = call(name, **problem)
    assert_close(whole, torch.stack(parts).mean(), rtol=1e-5, atol=1e-5)


@every_loss
def test_half_precision_is_summed_in_float32(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    full, reference = torch.randn(2, 70, 11, generator=random)
    labels, rows = torch.arange(70) % 11, torch.arange(70) // 7
    half = call(name, full.bfloat16(), labels, rows, reference.bfloat16())
    assert half.dtype == torch.float32
    assert_close(half, call(name, full, labels, rows, reference), rtol=1e-2, atol=1e-2)
    rounded = full.bfloat16().float(), labels, rows, reference.bfloat16().float()
    lowered_in_half = 1e-3 if name == "undial" else 1e-5
    assert_close(half, call(name, *rounded), rtol=lowered_in_half, atol=1e-5)


@pytest.mark.parametrize("name", NEED_REFERENCE)
def test_a_reference_is_needed_and_gets_no_gradient_nor_change(name: str) -> None:
    with pytest.raises(AssertionError, match="needs the"):
        call(name, LOGITS, LABELS, ROWS)
    logits, reference = LOGITS.clone().requires_grad_(True), LOGITS.flip(0).requires_grad_(True)
    call(name, logits, LABELS, ROWS, reference).backward()
    assert logits.grad is not None
    assert reference.grad is None
    assert torch.equal(reference, LOGITS.flip(0))


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_without_its_partner_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"Row 2, the last of 3, has no partner; .*refusal\.$"):
        call(name, LOGITS, LABELS, torch.arange(3), LOGITS)


# --- direction -------------------------------------------------------------------------------


def refusal_cost(problem: Problem) -> Tensor:
    """Sum of NLL(refusal) - NLL(answer) over pairs."""
    nll = losses.answer_nll(problem["logits"], problem["labels"], problem["rows"], "sum")
    return (nll[1::2] - nll[::2]).sum()


def stepped(name: str, problem: Problem) -> Problem | None:
    """The problem after one small step down the loss's gradient; None where there is none."""
    slope = gradient(name, problem)
    size = slope.norm()
    if size < 1e-3:
        return None
    return {**problem, "logits": problem["logits"] - 0.01 * slope / size}


@pytest.mark.parametrize("name", ["gradient_ascent", "npo", "simnpo", "wga", "undial"])
@given(problem=problems())
def test_a_step_makes_the_forget_answers_less_likely(name: str, problem: Problem) -> None:
    problem["reference"] = problem["logits"]
    if (after := stepped(name, problem)) is not None:
        assert losses.gradient_descent(**after) > losses.gradient_descent(**problem)


@pytest.mark.parametrize("name, sign", [("answer_preservation", 1), ("dpo", -1)])
@given(problem=problems())
def test_a_step_moves_the_answer_against_its_refusal(
    name: str, sign: int, problem: Problem
) -> None:
    if (after := stepped(name, problem)) is not None:
        assert sign * (refusal_cost(after) - refusal_cost(problem)) > 0


@pytest.mark.parametrize("start", [0.9, 0.1])
def test_a_step_of_maximum_entropy_goes_to_uniform_from_both_sides(start: float) -> None:
    logits = torch.tensor([[math.log(start), math.log(1 - start)]])
    after = stepped("maximum_entropy", {"logits": logits, "labels": ONE, "rows": ONE})
    assert after is not None
    moved = after["logits"].softmax(-1)[0, 0].item()
    assert abs(moved - 0.5) < abs(start - 0.5)
    assert (moved < start) == (start > 0.5)


# --- packing and padding, on a real architecture ---------------------------------------------

# A question, its answer and a refusal of another length: the rows of every pair loss.
BATCH = [
    Example((5, 6, 7), ((8, 9, 10, 11), (20, 21))),
    Example((12, 13), ((14,), (22, 23, 24))),
    Example((5, 15, 16, 17), ((18, 19), (20, 21))),
]


def laid_out(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Labels and rows of a batch's answers, in order."""
    packed = pack(batch)
    return packed.labels, packed.rows


def padded(model: Any, batch: list[Example], width: int, pad: int) -> Tensor:
    """Logits at the answers' tokens, from a batch with one row an answer, padded to `width`."""
    rows = [(len(e.prompt), [*e.prompt, *answer]) for e in batch for answer in e.answers]
    ids = torch.tensor([row + [pad] * (width - len(row)) for _, row in rows])
    logits = model(input_ids=ids, attention_mask=(ids != pad).long()).logits
    places = zip(logits, rows, strict=True)
    return torch.cat([found[start - 1 : len(row) - 1] for found, (start, row) in places])


@every_loss
def test_packing_order_and_padding_do_not_matter(
    name: str, load_tiny: Callable[..., LanguageModel]
) -> None:
    found, original = load_tiny("llama"), load_tiny("gpt2").model

    def packed(batch: list[Example]) -> Tensor:
        with torch.no_grad():
            both = [packed_logits(model, pack(batch)) for model in (found.model, original)]
        return call(name, both[0], *laid_out(batch), both[1])

    def with_padding(width: int) -> Tensor:
        pad = found.tokenizer.pad_token_id
        with torch.no_grad():
            both = [padded(model, BATCH, width, pad) for model in (found.model, original)]
        return call(name, both[0], *laid_out(BATCH), both[1])

    together = packed(BATCH)
    one_by_one = torch.stack([packed([example]) for example in BATCH]).mean()
    for other in (one_by_one, packed(BATCH[::-1]), with_padding(7), with_padding(40)):
        assert_close(other, together, rtol=1e-5, atol=1e-5)
