"""Our losses and metrics against the released codes' formulas, on random logits of ragged lengths.

The released formulas are written out here on padded batches, as those codes have them: logits [B,
L, V], labels [B, L] with -100 where nothing is scored, the label at t predicted at t - 1. Where
`differences.yaml` states no difference the values are equal; where it does, they differ just so.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer
from torch.nn.functional import cross_entropy, kl_div, logsigmoid
from torch.testing import assert_close

from unlearn_lib.data.words import words_of
from unlearn_lib.metrics import memory, questions, texts
from unlearn_lib.model.packing import pack
from unlearn_lib.model.tokens import Example
from unlearn_lib.report.notes import DIFFERENCES
from unlearn_lib.unlearn import losses

Tensor = torch.Tensor
STATED = {each["id"]: each for each in yaml.safe_load(DIFFERENCES.read_text(encoding="utf-8"))}
VOCABULARY, IGNORED, BETA = 11, -100, 0.7
RAGGED, EVEN = (5, 1, 9, 3), (4, 4, 4, 4)
lengths_of_answers = pytest.mark.parametrize("lengths", [RAGGED, EVEN], ids=["ragged", "even"])


class Batch(NamedTuple):
    """The same logits flat, as our losses take them, and padded, as the released codes do."""

    logits: Tensor
    labels: Tensor
    rows: Tensor
    reference: Tensor
    padded: Tensor
    padded_labels: Tensor
    padded_reference: Tensor


def batch(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random logits behind prompts of 2, 3, 4 ... tokens."""
    random = torch.Generator().manual_seed(seed)
    prompts = range(2, 2 + len(lengths))
    longest = max(p + n for p, n in zip(prompts, lengths))
    shape = (len(lengths), longest, VOCABULARY)
    padded = 2 * torch.randn(shape, generator=random, dtype=torch.double)
    reference = padded + torch.randn(shape, generator=random, dtype=torch.double)
    labels = torch.full(shape[:2], IGNORED)
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        drawn = torch.randint(VOCABULARY, (length,), generator=random)
        labels[row, prompt : prompt + length] = drawn
    scored = labels[:, 1:] != IGNORED
    flat = (padded[:, :-1][scored].float(), labels[:, 1:][scored])
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    before = reference[:, :-1][scored].float()
    return Batch(*flat, rows, before, padded, labels, reference)


def ours(name: str, data: Batch) -> Tensor:
    value: Tensor = getattr(losses, name)(data.logits, data.labels, data.rows, data.reference, BETA)
    return value.double()


def costs(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each label, [B, L - 1]; 0 where nothing is scored."""
    flat = logits[:, :-1].transpose(1, 2)
    return cross_entropy(flat, labels[:, 1:], ignore_index=IGNORED, reduction="none")


def per_token(values: Tensor, data: Batch) -> Tensor:
    """One mean over all scored tokens of a batch."""
    return values[data.padded_labels[:, 1:] != IGNORED].mean()


def per_answer(values: Tensor, data: Batch) -> Tensor:
    """A mean of per-answer means."""
    scored = data.padded_labels[:, 1:] != IGNORED
    return ((values * scored).sum(1) / scored.sum(1)).mean()


# --- losses ----------------------------------------------------------------------------------


def by_token(name: str, data: Batch) -> Tensor:
    """What a loss averages, at each place of a padded batch."""
    log_q, log_p = data.padded.log_softmax(-1)[:, :-1], data.padded_reference[:, :-1]
    nll = costs(data.padded, data.padded_labels)
    match name:
        case "gradient_descent":
            return nll
        case "gradient_ascent":
            return -nll
        case "wga":
            return -(nll * (-nll).exp() ** BETA)
        case "maximum_entropy":
            uniform = torch.full_like(log_q, 1 / VOCABULARY)
            return kl_div((log_q.exp() + 1e-12).log(), uniform, reduction="none").sum(-1)
        case "forward_kl":
            target = log_p.log_softmax(-1)
        case _:
            places = data.padded_labels[:, 1:].clamp(min=0)[..., None]
            target = log_p.scatter_add(-1, places, torch.full_like(log_p, -BETA)).log_softmax(-1)
    return kl_div(log_q, target, reduction="none", log_target=True).sum(-1)


LONG_ANSWERS = {
    "gradient_descent": "closer_look_long_answers",
    "gradient_ascent": "closer_look_long_answers",
    "maximum_entropy": "closer_look_long_answers",
    "wga": "open_unlearning_wga",
    "forward_kl": "closer_look_kl_positions",
    "undial": "open_unlearning_undial",
}


@lengths_of_answers
@pytest.mark.parametrize("name", LONG_ANSWERS)
def test_means_are_of_answers_where_the_released_ones_are_of_tokens(
    name: str, lengths: tuple[int, ...]
) -> None:
    data = batch(lengths)
    values = by_token(name, data)
    assert_close(ours(name, data), per_answer(values, data), rtol=1e-5, atol=1e-6)
    same = torch.isclose(ours(name, data), per_token(values, data), rtol=1e-4)
    assert bool(same) == (lengths == EVEN)
    said = STATED[LONG_ANSWERS[name]]["ours"]
    assert any(words in said for words in ("per-answer means", "then over rows", "Scored tokens"))


def test_ascent_by_hand_is_what_its_docstring_says() -> None:
    """Nine tokens at 1 nat and one at 2: -1.5 by answers, -1.1 by tokens."""
    tokens = torch.tensor([2.0] + [1.0] * 9).neg().exp()
    logits = torch.stack([tokens, 1 - tokens], 1).log()
    rows, labels = torch.tensor([0] + [1] * 9), torch.zeros(10, dtype=torch.int64)
    assert losses.gradient_ascent(logits, labels, rows).item() == pytest.approx(-1.5)
    assert -cross_entropy(logits, labels).item() == pytest.approx(-1.1)
    assert "-1.1" in str(losses.gradient_ascent.__doc__)


@lengths_of_answers
@pytest.mark.parametrize("name", ["npo", "dpo", "answer_preservation", "simnpo"])
def test_preferences_are_the_released_ones(name: str, lengths: tuple[int, ...]) -> None:
    data = batch(lengths)
    now, before = (
        costs(logits, data.padded_labels).sum(1) for logits in (data.padded, data.padded_reference)
    )
    scored = (data.padded_labels[:, 1:] != IGNORED).sum(1)
    margins = {
        "npo": now - before,
        "simnpo": now / scored,
        "dpo": (before - now)[1::2] - (before - now)[::2],
        "answer_preservation": now[1::2] - now[::2],
    }
    factor = 1 if name == "answer_preservation" else 2
    expected = -factor / BETA * logsigmoid(BETA * margins[name]).mean()
    assert_close(ours(name, data), expected, rtol=1e-5, atol=1e-6)
    assert "sum" in STATED["closer_look_long_answers"]["released_code"]


@lengths_of_answers
def test_rmu_steers_one_place_to_the_left(lengths: tuple[int, ...]) -> None:
    """The released mask is of the answer's own tokens, ours of the places that predict them."""
    data = batch(lengths)
    target = data.padded_reference[0, 0]
    distance = (data.padded - target).square().mean(-1)
    mask = data.padded_labels != IGNORED
    counts = mask.sum(1)
    value = losses.activation_distance(data.logits, data.labels, data.rows, target.float())
    left = ((distance[:, :-1] * mask[:, 1:]).sum(1) / counts).mean()
    assert_close(value.double(), left, rtol=1e-5, atol=1e-6)
    sums = (distance * mask).sum(1)
    released = (sums / counts[:, None]).mean()  # every sum over every length
    assert not torch.isclose(value.double(), released, rtol=1e-3)
    own = (sums / counts).mean()
    assert bool(torch.isclose(released, own, rtol=1e-9)) == (lengths == EVEN)
    packed = pack([Example((7, 8, 9), ((1, 2, 3, 4),))])
    own_places = [3, 4, 5, 6]
    assert packed.predictors.tolist() == [place - 1 for place in own_places]
    assert "one to the left" in STATED["open_unlearning_rmu"]["ours"]


# --- metrics ---------------------------------------------------------------------------------


@given(st.text(st.characters(max_codepoint=127)), st.text("The running_dogs é’-1", max_size=20))
def test_words_of_ascii_are_those_of_rouge_score(text: str, accented: str) -> None:
    assert texts.rouge_words(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert words_of(accented) == words_of(accented)


def answers(data: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities [t, V] and labels [t] of each answer."""
    log_p = data.logits.double().log_softmax(-1)
    return [
        (log_p[data.rows == row].numpy(), data.labels[data.rows == row].numpy())
        for row in range(int(data.rows.max()) + 1)
    ]


def strength(matches: np.ndarray) -> float:
    """Extraction strength as released: k runs over the tokens, so that 1/L is the least."""
    starts = [k for k in range(len(matches)) if matches[k:].all()]
    return 1 - min(starts, default=len(matches) - 1) / len(matches)


def test_memorisation_counts_the_end_token_and_the_released_one_does_not() -> None:
    right = [log_p.argmax(1) == labels for log_p, labels in answers(batch(RAGGED, seed=3))]
    right += [np.array([True, True, True, False]), np.array([False, True, True])]
    assert memory.exact_memorisation(right) == pytest.approx([row.mean() for row in right])
    for row, ours_of_row in zip(right, memory.extraction_strength(right)):
        assert ours_of_row == pytest.approx(strength(row) if row[-1] else 0)
    cut = [row[:-1] for row in right if len(row) > 1]
    theirs = [strength(row) for row in cut]
    floored = np.maximum(memory.extraction_strength(cut), [1 / len(row) for row in cut])
    assert floored == pytest.approx(theirs)
    assert (memory.extraction_strength(right)[-2], theirs[-2]) == (0, 1)
    said = STATED["open_unlearning_end_token"]
    assert "is 0 here and 1 there" in said["ours"] and "last token out" in said["released_code"]


@pytest.mark.parametrize("k", [0.2, 0.4, 1.0])
def test_attacks_are_the_released_ones_but_for_sign_and_end_token(k: float) -> None:
    rows = answers(batch(RAGGED, seed=1))
    own = [log_p[np.arange(len(labels)), labels] for log_p, labels in rows]
    means = [(np.exp(log_p) * log_p).sum(1) for log_p, _ in rows]
    variances = [
        (np.exp(log_p) * log_p**2).sum(1) - mean**2 for (log_p, _), mean in zip(rows, means)
    ]
    scores = [(o - m) / np.sqrt(np.maximum(v, 1e-6)) for o, m, v in zip(own, means, variances)]

    def lowest(values: np.ndarray) -> float:
        return float(np.sort(values)[: max(1, int(k * len(values)))].mean())

    deviations = [np.sqrt(np.maximum(variance, 0)) for variance in variances]
    for whole in (True, False):  # ours, and theirs: what is left without the last token
        part = [slice(None) if whole else slice(-1)] * len(rows)
        places = [i for i, row in enumerate(own) if whole or len(row) > 1]
        cut = [[column[i][part[i]] for i in places] for column in (own, means, deviations)]
        expected = [lowest(own[i][part[i]]) for i in places]
        assert memory.min_k_score(cut[0], k) == pytest.approx(expected)
        expected = [lowest(scores[i][part[i]]) for i in places]
        assert memory.min_k_plus_plus_score(cut[0], cut[1], cut[2], k) == pytest.approx(expected)
    assert memory.min_k_score([[-1.0, -9.0]], k) < memory.min_k_score([[-1.0]], k)
    assert "Min-K" in STATED["open_unlearning_end_token"]["released_code"]


def test_probability_and_truth_ratio_are_the_released_ones_with_the_end_token() -> None:
    data = batch((5, 1, 9, 3, 2, 2), seed=2)
    nll = costs(data.padded, data.padded_labels).sum(1)
    mean = nll / (data.padded_labels != IGNORED).sum(1)
    flat = losses.answer_nll(data.logits, data.labels, data.rows)
    assert_close(flat.double(), mean, rtol=1e-5, atol=1e-6)
    table = mean.reshape(2, 3).numpy()
    right, wrong = np.exp(-table[:, 0]), np.exp(-table[:, 1:].mean(1))
    raw = questions.truth_ratios(table[:, 1:], table[:, 0])
    assert raw == pytest.approx(right / wrong)
    released = np.minimum(wrong / right, right / wrong)
    assert questions.folded_truth_ratio(raw, forget=True) == pytest.approx(released)
    kept = np.maximum(0, 1 - wrong / right)
    assert questions.folded_truth_ratio(raw, forget=False) == pytest.approx(kept)
    shares = np.exp(-table) / np.exp(-table).sum(1, keepdims=True)
    options = questions.option_probability(table[:, 0], table[:, 1:])
    assert options == pytest.approx(shares[:, 0])
    assert "count it" in STATED["open_unlearning_end_token"]["released_code"]


def test_choices_by_sum_by_mean_and_by_letter_can_all_disagree() -> None:
    sums, counts = np.array([[6.0, 4.0, 9.0, 8.0]]), np.array([[3, 1, 9, 2]])
    letters = np.array([[2.0, 0.0, 0.0, 1.0]])  # logits of A to D

    def picked(scores: Any) -> int:
        return int(np.argmax([questions.choice_right(scores, [place])[0] for place in range(4)]))

    assert (picked(sums), picked(sums / counts), picked(-letters)) == (1, 2, 0)
    assert questions.choice_right([[1.0, 1.0, 3.0, 3.0]], [1]).tolist() == [0.5]
    said = STATED["eco_choices"]
    assert "letters A to D" in said["released_code"] and "summed" in said["ours"]
    assert "share the credit" in said["ours"] and "per token" in said["ours"]
