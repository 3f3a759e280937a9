"""Choices by the likelihood of their text and by the logit of their letter, against plain forwards."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unlearn_lib import evaluation
from unlearn_lib.data.questions import Question
from unlearn_lib.data.science import Listed, ScienceSplits
from unlearn_lib.metrics.questions import choice_right
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.settings import ScienceData
from unlearn_lib.tasks.science import Science
from unlearn_lib.util import CompanionError

Load = Callable[..., LanguageModel]
ROWS = (
    Question("How?\nA. sky\nB. blue\nC. air\nD. red\nAnswer:", "B", ("A", "C", "D")),
    Question("Why?\nA. sky\nB. pin\nC. wind\nD. no\nAnswer:", "D", ("A", "B", "C")),
)
TEXTS = (
    Question("How do birds fly?", "They beat their wings.", ("Light.", "They ride the wind.")),
    Question("Why?", "Red.", ("Air scatters blue light.", "A lock.")),
)


def logits_after(model: LanguageModel, tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one plain row."""
    with torch.no_grad():
        logits: torch.Tensor = model.model(input_ids=torch.tensor([tokens])).logits[0].float()
    return logits


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_a_letter_counts_by_its_logit_right_after_the_prompt(
    architecture: str, load_tiny: Load, tokenizer: Any
) -> None:
    model, encoder = load_tiny(architecture), TextEncoder(tokenizer, "chat", 64, 32, 128)
    choices = evaluation.choose(model, encoder, ROWS, letters=True)
    for number, row in enumerate(ROWS):
        last = logits_after(model, encoder.prompt(row.question))[-1]
        tokens = [encoder.answer(letter)[0] for letter in (row.answer, *row.perturbed_answer)]
        own = last[tokens].double().numpy()
        assert choices.first[number] == pytest.approx(own, abs=1e-4)
        shares = np.exp(own) / np.exp(own).sum()
        assert np.exp(-choices.losses[number]) == pytest.approx(shares, abs=1e-5)
        credit = choice_right(choices.losses, [0, 0])[number]
        assert credit == (own.argmax() == 0)
    assert np.array_equal(choices.per_token, choices.losses)


def test_a_text_counts_by_the_sum_and_per_token(load_tiny: Load, encoder: TextEncoder) -> None:
    model = load_tiny("llama")
    choices = evaluation.choose(model, encoder, TEXTS)
    for number, row in enumerate(TEXTS):
        prompt = encoder.prompt(row.question)
        for place, text in enumerate((row.answer, *row.perturbed_answer)):
            answer = encoder.answer(text)
            log_p = logits_after(model, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
            own = -log_p[range(len(answer)), list(answer)]
            assert choices.losses[number, place] == pytest.approx(own.sum().item(), rel=1e-4)
            assert choices.per_token[number, place] == pytest.approx(own.mean().item(), rel=1e-4)


def test_letters_that_begin_alike_are_refused(load_tiny: Load, encoder: TextEncoder) -> None:
    starts = {encoder.answer(letter)[0] for letter in "ABCD"}
    assert len(starts) == 1, "a blank of its own, where the template puts one before an answer"
    with pytest.raises(CompanionError, match="set 'form' of the data to likelihood"):
        evaluation.choose(load_tiny("opt"), encoder, ROWS, letters=True)


@pytest.mark.parametrize("form, begins", [("letters", "The following are"), ("likelihood", "Why")])
def test_guard_search_and_evaluation_ask_in_one_form(
    form: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(name: str, count: int) -> tuple[Listed, ...]:
        texts = [f"Why {number} of {name}?" for number in range(count)]
        return tuple(
            Listed(text, "yes", ("no", "maybe", "never"), subject=name, place=number % 4)
            for number, text in enumerate(texts)
        )

    task: Any = Science.__new__(Science)
    data = ScienceData.model_validate({"source": "wmdp", "form": form})
    eco = SimpleNamespace(
        search=SimpleNamespace(questions=4), classifier=SimpleNamespace(most=None)
    )
    guards = SimpleNamespace(eco=eco)
    task.settings = SimpleNamespace(data=data, guards=guards)
    task.data = ScienceSplits(rows("wmdp-bio", 12), rows("anatomy", 400), rows("law", 8))
    task.general, task.encoder = (), None
    asked: list[Any] = []

    def choose(model: Any, encoder: Any, rows: Any, letters: bool) -> evaluation.Choices:
        asked.append((rows, letters))
        return evaluation.Choices(*[np.zeros((len(rows), 4))] * 3)

    monkeypatch.setattr(evaluation, "choose", choose)
    assert task.gap_values(None, 0.25) == 0
    ((searched, letters),) = asked
    assert letters == (form == "letters") and len(searched) == 4
    prompts = [text for part in vars(task.guard_prompts).values() for text in part]
    sets = [row.question for part in task.sets("").values() for row in part]
    assert all(begins in text for text in (*prompts, *sets, *(row.question for row in searched)))
    assert all(isinstance(row, Listed) for row in task.forgotten("")), "trained on text"
