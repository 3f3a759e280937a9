"""The guarded model: what it changes and what it never changes, how it fails, saving and loading."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text_classifier import FAST, TEXTS, TRUTH, write_bert

from unlearn_lib.guard.corruptions import corrupt, prompt_seed
from unlearn_lib.guard.fit import fit_guard
from unlearn_lib.guard.model import Guard, GuardedModel
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.scoring import score
from unlearn_lib.model.tokens import Example, TextEncoder
from unlearn_lib.settings import CorruptionSettings, GuardSettings
from unlearn_lib.util import CompanionError

QUESTIONS = (
    "Where was Ann born?",
    "How do birds fly so far?",
    "What is the capital of France and why is it so?",
    "Tell me what Ann wrote, and why she did.",
)
FLAGGED, OTHERS = [0, 3], [1, 2]
NEW: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


class Classifier:
    """Is sure of every prompt about Ann, and of no other; or gives what it is told to."""

    def __init__(self, result: Any = None) -> None:
        self.result = result

    def probability(self, prompts: Sequence[str]) -> Any:
        if self.result is None:
            return np.array([0.99 if "Ann" in prompt else 0.01 for prompt in prompts])
        return self.result


GUARD = Guard("authors", Classifier(), 0.5, CorruptionSettings(dims=48), 3.0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """In float64, so that an answer does not depend on the batch's size."""
    language_model = load_tiny("llama")
    language_model.model.double()
    return language_model


@pytest.fixture(scope="module")
def guarded(plain: LanguageModel, encoder: TextEncoder) -> GuardedModel:
    return GuardedModel(plain.model, plain.tokenizer, GUARD, Frame.of(encoder.prompt))


@pytest.fixture(scope="module")
def prompts(encoder: TextEncoder) -> list[tuple[int, ...]]:
    return [encoder.prompt(question) for question in QUESTIONS]


def padded(rows: Sequence[Sequence[int]], side: str = "left") -> dict[str, torch.Tensor]:
    """A batch of token ids and its mask."""
    width, ids, mask = max(map(len, rows)), [], []
    for row in rows:
        pad = width - len(row)
        before, after = (pad, 0) if side == "left" else (0, pad)
        ids.append([1] * before + list(row) + [1] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def answered(model: Any, rows: Sequence[Sequence[int]], **options: Any) -> torch.Tensor:
    """Logits of new tokens, [B, 6, V]."""
    shown = {"return_dict_in_generate": True, "output_logits": True}
    return torch.stack(model.generate(**padded(rows), **NEW, **shown, **options).logits, 1)


def by_hand(model: GuardedModel, prompt: Sequence[int], text: str) -> torch.Tensor:
    """Embeddings [T, d] of a prompt whose question is corrupted."""
    embeddings = model.embeddings(torch.tensor(prompt)).detach()
    start, end = model.frame.question(prompt)
    chosen = torch.zeros(len(prompt), dtype=torch.bool)
    chosen[start : min(end, len(prompt) - 1)] = True
    kind, seed = model.guard.corruption, prompt_seed(text, model.guard.seed)
    return corrupt(embeddings, chosen, kind.name, model.guard.strength, kind.dims, seed)


# --- answers and scores ------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.permutations(range(4)))
def test_flagged_rows_change_and_no_other_bit(
    plain: LanguageModel, guarded: GuardedModel, prompts: Any, flags: list[bool], order: list[int]
) -> None:
    rows = [prompts[place] for place in order]
    model = GuardedModel(
        plain.model, plain.tokenizer, GUARD, guarded.frame, judge=lambda texts: flags
    )
    logits, changed = answered(plain.model, rows), answered(model, rows)
    for row, flag in enumerate(flags):
        assert torch.equal(changed[row], logits[row]) is not flag


def test_the_same_prompt_gives_the_same_answer_in_any_batch(
    guarded: GuardedModel, prompts: Any
) -> None:
    together = answered(guarded, prompts)
    for row, prompt in enumerate(prompts):
        alone = answered(guarded, [prompt])[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-9)
    reseeded = GuardedModel(guarded.model, guarded.tokenizer, replace(GUARD, seed=1), guarded.frame)
    other = answered(reseeded, prompts)
    assert torch.equal(other[OTHERS], together[OTHERS])
    assert not torch.equal(other[FLAGGED], together[FLAGGED])


def test_beams_of_a_prompt_are_corrupted_together(
    plain: LanguageModel, guarded: GuardedModel, prompts: Any
) -> None:
    beams = {**NEW, "num_beams": 2}
    expected, rows = (m.generate(**padded(prompts), **beams) for m in (plain.model, guarded))
    assert torch.equal(rows[OTHERS], expected[OTHERS])
    for row in FLAGGED:
        assert not torch.equal(rows[row], expected[row])
        alone = guarded.generate(**padded([prompts[row]]), **beams)
        assert torch.equal(alone[0, -6:], rows[row, -6:])


@pytest.mark.parametrize("cache", [True, False])
def test_the_prompt_is_corrupted_wherever_it_is_read_and_the_answer_nowhere(
    guarded: GuardedModel, prompts: Any, cache: bool
) -> None:
    rows, width = [prompts[0], prompts[2]], max(len(prompts[0]), len(prompts[2]))
    reads: list[torch.Tensor] = []
    handle = guarded.model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: reads.append(inputs[0].detach().clone())
    )
    try:
        tokens = guarded.generate(**padded(rows), **NEW, use_cache=cache)
    finally:
        handle.remove()
    expected = guarded.embeddings(tokens).detach()
    expected[0, width - len(rows[0]) : width] = by_hand(guarded, rows[0], QUESTIONS[0])
    assert [part.shape[1] for part in reads] == [
        width,
        *([1] * 5 if cache else range(width + 1, width + 6)),
    ]
    for step, part in enumerate(reads):
        assert torch.equal(part, expected[:, width + step - part.shape[1] : width + step])


@pytest.mark.parametrize("most_tokens", [1, 70, 1024])
def test_packed_scores_are_those_of_prompts_corrupted_by_hand(
    plain: LanguageModel, guarded: GuardedModel, encoder: TextEncoder, most_tokens: int
) -> None:
    answers = ("In Ann Hall.", "They beat their wings.", "So it is, Ann, by the light.")
    examples = [encoder.example(q, *answers[: 1 + i % 3]) for i, q in enumerate(QUESTIONS)]
    expected = []
    for row, example in enumerate(examples):
        for answer in example.answers:
            embedded = guarded.embeddings(torch.tensor([[*example.prompt, *answer]])).detach()
            start = len(example.prompt)
            if row in FLAGGED:
                embedded[0, :start] = by_hand(guarded, example.prompt, QUESTIONS[row])
            logits = plain.model(inputs_embeds=embedded).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
            expected.append(float(loss))
    scores = score(replace(plain, model=guarded), examples, most_tokens)
    assert scores.nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_prompt(guarded: GuardedModel, prompts: Any, side: str) -> None:
    batch = padded(prompts, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = guarded(**batch, position_ids=positions).logits
    for row, prompt in enumerate(prompts):
        own = logits[row][batch["attention_mask"][row].bool()]
        alone = guarded(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(own, alone, rtol=0, atol=1e-9)


def test_nothing_of_the_wrapped_model_leads_around_the_guard(
    guarded: GuardedModel, prompts: Any
) -> None:
    assert guarded.eval() is guarded and guarded.to("cpu") is guarded
    assert guarded.config is guarded.model.config and not hasattr(guarded, "no_such_thing")
    ids = torch.tensor([prompts[0]])
    assert torch.equal(guarded.forward(input_ids=ids).logits, guarded(ids).logits)
    assert not torch.equal(guarded(ids).logits, guarded.model(ids).logits)


# --- a guard that fails answers nothing --------------------------------------------------------


@pytest.mark.parametrize("result", [np.array([np.nan]), np.array([0.1, 0.1]), np.zeros(0)])
def test_a_failing_classifier_is_refused(guarded: GuardedModel, prompts: Any, result: Any) -> None:
    guard = replace(GUARD, classifier=Classifier(result))
    model = GuardedModel(guarded.model, guarded.tokenizer, guard, guarded.frame)
    for answer in (model.generate, model):
        with pytest.raises((CompanionError, ValueError)):
            answer(torch.tensor([prompts[1]]))


@pytest.mark.parametrize(
    "ids, reason",
    [
        ([[]], "has 0 tokens"),
        ([[40] * 128], "has 128 tokens.*context of 128"),
        ([[0, 0]], "empty"),
    ],
)
def test_an_empty_or_long_prompt_is_refused(
    guarded: GuardedModel, ids: list[list[int]], reason: str
) -> None:
    with pytest.raises(CompanionError, match=reason):
        guarded.generate(torch.tensor(ids, dtype=torch.long), **NEW)


def test_a_flagged_prompt_of_one_token_is_refused(guarded: GuardedModel) -> None:
    model = GuardedModel(guarded.model, guarded.tokenizer, GUARD, judge=lambda texts: [True])
    with pytest.raises(CompanionError, match="no token to corrupt"):
        model.generate(torch.tensor([[40]]), **NEW)


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2}])
def test_a_prompt_that_is_read_in_another_shape_is_refused(
    guarded: GuardedModel, prompts: Any, options: dict[str, int]
) -> None:
    ids = torch.tensor([[*prompts[0], *prompts[0]]])
    with pytest.raises(CompanionError, match="cannot tell its tokens apart"):
        guarded.generate(ids, None, **NEW, **options)
    assert not guarded.embeddings._forward_hooks


def test_a_model_that_does_not_look_its_embeddings_up_is_refused(
    guarded: GuardedModel, prompts: Any
) -> None:
    class Blind(torch.nn.Module):
        config = SimpleNamespace()

        def get_input_embeddings(self) -> torch.nn.Module:
            return guarded.embeddings

        def forward(self, input_ids: torch.Tensor) -> str:
            return "the secret"

    model = GuardedModel(Blind(), guarded.tokenizer, GUARD, guarded.frame)
    with pytest.raises(CompanionError, match="never looked its input embeddings up"):
        model(torch.tensor([prompts[0]]))
    assert model(torch.tensor([prompts[1]])) == "the secret"


# --- training, saving and loading --------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    folder = write_bert(tmp_path_factory.mktemp("bert"), sorted(set(" ".join(TEXTS).split())))
    forget, retain = (
        [t for t, flag in zip(TEXTS, TRUTH) if flag is kind] for kind in (True, False)
    )
    chosen = GuardSettings(classifier=FAST, false_positive_rate=0.05, corruption=GUARD.corruption)
    return fit_guard("authors", folder, TEXTS[:20], TEXTS[20:40], TEXTS[40:], chosen, 7, True)


def test_a_trained_guard_flags_by_its_calibrated_threshold(trained: Guard) -> None:
    scores = trained.scores([*TEXTS, "Где?", ""])
    assert scores[-2:].tolist() == [1, 1]
    assert trained.threshold in scores[40:-2] and trained.strength == 0 and trained.seed == 7
    assert trained.flags(TEXTS).tolist() == (scores[:-2] > trained.threshold).tolist()
    assert trained.flags(TEXTS)[:20].all()
    with pytest.raises(CompanionError, match="CYRILLIC"):
        trained.flags(["tea", "Где?"])
