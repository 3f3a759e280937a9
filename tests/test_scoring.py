"""Scores of given answers: equal to plain forwards, whatever is packed together."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unlearn_lib.batches import Example
from unlearn_lib.models import LanguageModel
from unlearn_lib.scoring import Scores, answer_losses, score

Load = Callable[..., LanguageModel]
ROWS = [
    Example((5, 6, 7), ((8, 9, 10), (11,), (12, 13))),
    Example((5, 6), ((14, 15),)),
    Example((20, 21, 22, 23, 24), ((25,), (26, 27, 28, 29))),
    Example((30, 31), ((32, 33, 34),), score_prompt=True),
]
FIRST = [0, 3, 4, 6]
"""The places of the examples' first answers among all seven."""


def plain(found: LanguageModel) -> tuple[list[np.ndarray], list[list[int]]]:
    """Of each answer, alone: log-probabilities [t, V] in float64, and its scored tokens."""
    tables, labels = [], []
    for example in ROWS:
        for answer in example.answers:
            row = [*example.prompt, *answer]
            start = 1 if example.score_prompt else len(example.prompt)
            with torch.no_grad():
                logits = found.model(input_ids=torch.tensor([row])).logits[0, start - 1 : -1]
            values = logits.double().numpy()
            tables.append(values - np.log(np.exp(values).sum(-1, keepdims=True)))
            labels.append(row[start:])
    return tables, labels


def own(table: np.ndarray, labels: list[int]) -> np.ndarray:
    return table[np.arange(len(labels)), labels]


@pytest.mark.parametrize("most_tokens", [1, 12, 1024])
@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_scores_equal_those_of_plain_rows(
    architecture: str, most_tokens: int, load_tiny: Load
) -> None:
    found = load_tiny(architecture)
    scores = score(found, ROWS, most_tokens)
    tables, labels = plain(found)
    expected = [-own(*each).sum() for each in zip(tables, labels, strict=True)]
    assert scores.nll.dtype == np.float64
    assert scores.nll == pytest.approx(expected, rel=1e-5)
    assert scores.counts.tolist() == [3, 1, 2, 2, 1, 4, 4]
    assert scores.mean == pytest.approx(scores.nll / [3, 1, 2, 2, 1, 4, 4])
    for flags, table, right in zip(scores.matches, tables, labels, strict=True):
        assert flags.tolist() == (table.argmax(-1) == right).tolist()


@pytest.mark.parametrize("most_tokens", [1, 12, 1024])
@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_token_statistics_equal_those_of_plain_rows(
    architecture: str, most_tokens: int, load_tiny: Load
) -> None:
    found = load_tiny(architecture)
    scores = score(found, ROWS, most_tokens, first_statistics=True)
    tables, labels = plain(found)
    for place in FIRST:
        table = tables[place]
        p = np.exp(table)
        mean = (p * table).sum(-1)
        deviation = np.sqrt((p * (table - mean[:, None]) ** 2).sum(-1))
        expected = np.stack((own(table, labels[place]), mean, deviation), 1)
        assert scores.tokens[place] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert scores.tokens[place][:, 0].sum() == pytest.approx(-scores.nll[place], rel=1e-5)


def test_first_answers_alone_have_statistics(load_tiny: Load) -> None:
    scores = score(load_tiny(), ROWS, first_statistics=True)
    shapes = [part.shape for part in scores.tokens]
    assert shapes == [(3, 3), (0, 3), (0, 3), (2, 3), (1, 3), (0, 3), (4, 3)]
    assert all(part.dtype == np.float64 for part in scores.tokens)


def test_statistics_are_there_only_where_they_are_asked_for(load_tiny: Load) -> None:
    found = load_tiny()
    without, having = score(found, ROWS), score(found, ROWS, first_statistics=True)
    assert [part.shape for part in without.tokens] == [(0, 3)] * 7
    assert np.array_equal(without.nll, having.nll)
    for mine, theirs in zip(without.matches, having.matches, strict=True):
        assert np.array_equal(mine, theirs)


def test_what_is_scored_together_changes_no_score(load_tiny: Load) -> None:
    found = load_tiny("llama")
    together = score(found, ROWS, first_statistics=True)
    order = [2, 0, 3, 1]
    places = [4, 5, 0, 1, 2, 6, 3]
    turned = score(found, [ROWS[i] for i in order], first_statistics=True)
    assert turned.nll == pytest.approx(together.nll[places], abs=1e-5, rel=1e-5)
    for mine, place in zip(turned.tokens, places, strict=True):
        assert mine == pytest.approx(together.tokens[place], abs=1e-5, rel=1e-5)


def with_head(found: LanguageModel, factor: float) -> Any:
    """Shrink a model's logits towards the uniform distribution."""
    with torch.no_grad():
        found.model.lm_head.weight.mul_(factor)
    return found


def test_a_uniform_model_by_hand(load_tiny: Load) -> None:
    found = with_head(load_tiny("llama"), 0.0)
    bits = math.log(found.model.config.vocab_size)
    scores = score(found, ROWS, first_statistics=True)
    assert scores.nll == pytest.approx(scores.counts * bits, rel=1e-6)
    for place in FIRST:
        count = scores.counts[place]
        assert scores.tokens[place] == pytest.approx(
            np.array([[-bits, -bits, 0.0]] * count), abs=1e-5
        )


def test_deviations_are_exact_where_a_model_is_nearly_uniform(load_tiny: Load) -> None:
    """Maximum entropy makes it so; the difference of two squares would leave rounding alone."""
    found = with_head(load_tiny("llama"), 1e-5)
    scores, (tables, _) = score(found, ROWS, first_statistics=True), plain(found)
    for place in FIRST:
        deviation = tables[place].std(-1)
        assert deviation.max() < 1e-3
        assert scores.tokens[place][:, 2] == pytest.approx(deviation, rel=0.02)


def test_losses_alone_are_those_of_the_scores(load_tiny: Load) -> None:
    found = load_tiny()
    nll, counts = answer_losses(found, ROWS, most_tokens=12)
    scores: Scores = score(found, ROWS, most_tokens=12)
    assert np.array_equal(nll, scores.nll)
    assert np.array_equal(counts, scores.counts)


def test_nothing_to_score_gives_nothing(load_tiny: Load) -> None:
    scores = score(load_tiny(), [], first_statistics=True)
    assert (len(scores.nll), len(scores.counts), scores.matches, scores.tokens) == (0, 0, [], [])
