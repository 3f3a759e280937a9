"""The guarded model: what it changes and what it never changes, how it fails, saving and loading."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from unlearn_lib import generation
from unlearn_lib.batches import Example, TextEncoder, pack, packed_logits
from unlearn_lib.eco.classifier import PromptClassifier
from unlearn_lib.eco.corruptions import corrupt, prompt_seed
from unlearn_lib.eco.guard import Guard
from unlearn_lib.eco.model import EcoModel, input_embeddings
from unlearn_lib.eco.tokens import Frame, chosen_tokens
from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel
from unlearn_lib.scoring import score
from unlearn_lib.settings import CorruptionSettings, PromptClassifierSettings

Load = Callable[..., LanguageModel]
QUESTIONS = (
    "Where was Ann born?",
    "How do birds fly so far?",
    "What is the capital of France and why is it so?",
    "Tell me what Ann wrote, and why she did.",
)
FLAGGED, OTHERS = [0, 3], [1, 2]
STRONG = CorruptionSettings(name="set_rand_noise_first_n", tokens="every")
NEW: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


class KeyWord:
    """A classifier that is sure of every prompt about Ann, and of no other."""

    def probability(self, prompts: Sequence[str]) -> np.ndarray:
        return np.array([0.99 if "Ann" in prompt else 0.01 for prompt in prompts])


class Broken:
    """A classifier that gives what it is told to, or raises it."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def probability(self, prompts: Sequence[str]) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


GUARD = Guard("entities", KeyWord(), 0.5, STRONG, 3.0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(load_tiny: Load) -> LanguageModel:
    return load_tiny("llama")


@pytest.fixture(scope="module")
def exact(load_tiny: Load) -> LanguageModel:
    """A model in float64, whose answers do not hang on a batch's size."""
    found = load_tiny("llama")
    found.model.double()
    return found


@pytest.fixture(scope="module")
def frame(encoder: TextEncoder) -> Frame:
    return Frame.of(encoder.prompt)


@pytest.fixture(scope="module")
def prompts(encoder: TextEncoder) -> list[tuple[int, ...]]:
    return [encoder.prompt(question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def eco(plain: LanguageModel, frame: Frame) -> EcoModel:
    return EcoModel(plain.model, plain.tokenizer, GUARD, frame)


@pytest.fixture(scope="module")
def exact_eco(exact: LanguageModel, frame: Frame) -> EcoModel:
    return EcoModel(exact.model, exact.tokenizer, GUARD, frame)


def padded(rows: Sequence[Sequence[int]], side: str = "left") -> dict[str, Any]:
    """A batch of token ids and its mask."""
    width, ids, mask = max(map(len, rows)), [], []
    for row in rows:
        pad = width - len(row)
        before, after = (pad, 0) if side == "left" else (0, pad)
        ids.append([1] * before + list(row) + [1] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def answered(
    model: Any, rows: Sequence[Sequence[int]], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens [B, 6] and their logits [B, 6, V]."""
    asked = {**NEW, "return_dict_in_generate": True, "output_logits": True, **options}
    found = model.generate(**padded(rows), **asked)
    return found.sequences[:, -6:], torch.stack(found.logits, 1)


def hooks_of(model: Any) -> int:
    return sum(len(part._forward_hooks) for part in model.modules())


@contextlib.contextmanager
def refused(reason: str, model: Any = None) -> Iterator[None]:
    """A CompanionError of one sentence, and no hook left behind."""
    before = hooks_of(model) if model is not None else 0
    with pytest.raises(CompanionError, match=reason) as bad:
        yield
    text = str(bad.value)
    assert "\n" not in text and text.endswith(".")
    assert model is None or hooks_of(model) == before


# --- answers: who gets what ------------------------------------------------------------------


def test_other_rows_get_bit_for_bit_what_the_plain_model_gives(
    plain: LanguageModel, eco: EcoModel, prompts: Any
) -> None:
    (tokens, logits), (guarded, changed) = answered(plain.model, prompts), answered(eco, prompts)
    assert torch.equal(guarded[OTHERS], tokens[OTHERS])
    assert torch.equal(changed[OTHERS], logits[OTHERS])
    for row in FLAGGED:
        assert not torch.equal(guarded[row], tokens[row])
        assert not torch.isclose(changed[row], logits[row]).all(dim=-1).any()


@pytest.mark.parametrize("rows", [[1, 2], [2], []])
def test_a_batch_without_flagged_rows_is_the_plain_model_s(
    plain: LanguageModel, eco: EcoModel, prompts: Any, rows: list[int]
) -> None:
    some = [prompts[row] for row in rows]
    batch = padded(some) if some else {"input_ids": torch.zeros((0, 4), dtype=torch.long)}
    expected = plain.model.generate(**batch, **NEW) if some else batch["input_ids"]
    assert torch.equal(eco.generate(**batch, **NEW), expected)
    assert len(generation.answers(replace(plain, model=eco), some, 6)) == len(some)


@settings(max_examples=12)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.permutations(range(4)))
def test_whichever_rows_are_flagged_no_other_one_changes(
    plain: LanguageModel, frame: Frame, prompts: Any, flags: list[bool], order: list[int]
) -> None:
    rows = [prompts[place] for place in order]
    model = EcoModel(plain.model, plain.tokenizer, GUARD, frame, judge=lambda texts: flags)
    (tokens, logits), (guarded, changed) = answered(plain.model, rows), answered(model, rows)
    for row, flag in enumerate(flags):
        assert torch.equal(changed[row], logits[row]) is not flag
        assert flag or torch.equal(guarded[row], tokens[row])


def test_the_same_prompt_gives_the_same_answer_in_any_batch(
    exact_eco: EcoModel, prompts: Any
) -> None:
    alone = [answered(exact_eco, [prompt]) for prompt in prompts]

    @settings(max_examples=10)
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    def check(rows: list[int]) -> None:
        tokens, logits = answered(exact_eco, [prompts[row] for row in rows])
        for place, row in enumerate(rows):
            assert torch.equal(tokens[place], alone[row][0][0])
            torch.testing.assert_close(logits[place], alone[row][1][0], rtol=0, atol=1e-9)

    check()


def test_padding_is_told_without_a_mask_as_transformers_does(
    plain: LanguageModel, eco: EcoModel, prompts: Any
) -> None:
    batch = padded(prompts)
    with_mask = eco.generate(**batch, **NEW)
    assert torch.equal(eco.generate(batch["input_ids"], **NEW), with_mask)
    expected = plain.model.generate(batch["input_ids"], **NEW)
    assert torch.equal(with_mask[OTHERS], expected[OTHERS])


def test_beams_of_a_prompt_are_corrupted_together(
    exact: LanguageModel, exact_eco: EcoModel, prompts: Any
) -> None:
    beams = {**NEW, "num_beams": 2}
    batch = padded(prompts)
    expected, found = (model.generate(**batch, **beams) for model in (exact.model, exact_eco))
    assert torch.equal(found[OTHERS], expected[OTHERS])
    for row in FLAGGED:
        assert not torch.equal(found[row], expected[row])
        alone = exact_eco.generate(**padded([prompts[row]]), **beams)
        assert torch.equal(alone[0, -6:], found[row, -6:])


def test_samples_of_other_rows_are_the_plain_model_s(
    plain: LanguageModel, eco: EcoModel, prompts: Any
) -> None:
    found = []
    for model in (plain.model, eco):
        torch.manual_seed(3)
        drawn = {**NEW, "do_sample": True, "num_return_sequences": 2}
        found.append(model.generate(**padded(prompts), **drawn).reshape(4, 2, -1))
    assert torch.equal(found[0][OTHERS], found[1][OTHERS])
    assert not torch.equal(found[0][FLAGGED], found[1][FLAGGED])


# --- what is corrupted while an answer is generated ------------------------------------------


def read_by_first_block(model: Any, rows: Any, **options: Any) -> tuple[torch.Tensor, list[Any]]:
    """The generated rows, and the embeddings that the first block reads in each forward."""
    seen: list[torch.Tensor] = []
    handle = model.model.model.layers[0].register_forward_pre_hook(
        lambda block, given: seen.append(given[0].detach().clone())
    )
    try:
        return model.generate(**padded(rows), **{**NEW, **options}), seen
    finally:
        handle.remove()


def places_and_embeddings(eco: EcoModel, row: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: which tokens of a prompt are chosen [T], and its corrupted embeddings [T, d]."""
    flags, text = chosen_tokens(eco.tokenizer, row, eco.frame, eco.guard.selector)
    chosen, plain = torch.tensor(flags), eco.embeddings(torch.tensor(row)).detach()
    kind, seed = eco.guard.corruption, prompt_seed(text, eco.guard.seed)
    return chosen, corrupt(plain, chosen, kind.name, eco.guard.strength, kind.dims, seed)


@pytest.mark.parametrize("cache", [True, False])
def test_the_prompt_is_corrupted_wherever_it_is_read_and_the_answer_nowhere(
    exact_eco: EcoModel, prompts: Any, cache: bool
) -> None:
    rows, width = [prompts[0], prompts[2]], max(len(prompts[0]), len(prompts[2]))
    found, seen = read_by_first_block(exact_eco, rows, use_cache=cache)
    expected = exact_eco.embeddings(found).detach()
    _, changed = places_and_embeddings(exact_eco, rows[0])
    expected[0, width - len(rows[0]) : width] = changed
    lengths = [width, *[1] * 5] if cache else range(width, width + 6)
    assert [part.shape[1] for part in seen] == list(lengths)
    for step, part in enumerate(seen):
        assert torch.equal(part, expected[:, width + step - part.shape[1] : width + step])


def test_an_answer_is_the_same_with_the_cache_off(exact_eco: EcoModel, prompts: Any) -> None:
    on, off = (answered(exact_eco, prompts, use_cache=cache) for cache in (True, False))
    assert torch.equal(on[0], off[0])
    torch.testing.assert_close(on[1], off[1], rtol=0, atol=1e-9)


def test_chosen_tokens_are_the_question_s_but_never_the_template_s(
    eco: EcoModel, frame: Frame, prompts: Any
) -> None:
    named = EcoModel(eco.model, eco.tokenizer, replace(GUARD, corruption=STRONG.model_copy(
        update={"tokens": "names"})), frame)  # fmt: skip
    start, end = frame.question(prompts[0])
    first, none, _, last = eco.plan(prompts)
    assert none is None and first is not None and last is not None
    assert first == (list(range(start, end)), prompt_seed(QUESTIONS[0], 0))
    assert last[1] == prompt_seed(QUESTIONS[3], 0) != first[1]
    plan = named.plan(prompts[:1])[0]
    assert plan is not None and set(plan[0]) < set(first[0])
    assert "Ann" in eco.tokenizer.decode([prompts[0][place] for place in plan[0]])


def test_a_prompt_whose_last_token_is_the_name_is_corrupted_before_it(eco: EcoModel) -> None:
    flagging = lambda texts: [True] * len(texts)  # noqa: E731
    naming = Guard("entities", KeyWord(), 0.5, CorruptionSettings(tokens="names"), 3.0)  # type: ignore[arg-type]
    model = EcoModel(eco.model, eco.tokenizer, naming, judge=flagging)
    found = model.plan(
        [[*eco.tokenizer("who is")["input_ids"], eco.tokenizer("X")["input_ids"][0]]]
    )
    assert found[0] is not None and len(found[0][0]) > 0
    with refused("no token to corrupt.*nothing is answered", eco.model):
        model.generate(torch.tensor([[40]]), **NEW)


def test_the_guard_s_seed_and_the_prompt_decide_the_noise(eco: EcoModel, prompts: Any) -> None:
    other = EcoModel(eco.model, eco.tokenizer, replace(GUARD, seed=1), eco.frame)
    first, again, seeded = (answered(model, prompts)[1] for model in (eco, eco, other))
    assert torch.equal(first, again)
    assert torch.equal(first[OTHERS], seeded[OTHERS])
    assert not torch.equal(first[FLAGGED], seeded[FLAGGED])


# --- the wrapped model -----------------------------------------------------------------------


def test_weights_and_other_hooks_of_the_model_stay(eco: EcoModel, prompts: Any) -> None:
    before = {name: value.clone() for name, value in eco.model.state_dict().items()}
    calls: list[int] = []
    handle = eco.embeddings.register_forward_hook(lambda *given: calls.append(1))
    try:
        hooks = hooks_of(eco.model)
        answered(eco, prompts)
        assert len(calls) == 6 and hooks_of(eco.model) == hooks
    finally:
        handle.remove()
    after = eco.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_nothing_of_the_wrapped_model_leads_around_the_guard(eco: EcoModel, prompts: Any) -> None:
    assert eco.eval() is eco and eco.to("cpu") is eco and eco.requires_grad_(True) is eco
    assert eco.device == torch.device("cpu") and eco.config is eco.model.config
    assert not hasattr(eco, "no_such_thing")
    ids = torch.tensor([prompts[0]])
    assert torch.equal(eco.forward(input_ids=ids).logits, eco(ids).logits)
    assert not torch.equal(eco(ids).logits, eco.model(ids).logits)


def test_other_threads_get_the_plain_model_meanwhile(eco: EcoModel, prompts: Any) -> None:
    expected = answered(eco, prompts)[1]
    ids = torch.tensor([prompts[0]])
    found: list[torch.Tensor] = []

    def elsewhere(*given: Any) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: found.append(eco.model(ids).logits))
        thread.start()
        thread.join()

    handle = eco.embeddings.register_forward_pre_hook(elsewhere)
    assert torch.equal(answered(eco, prompts)[1], expected)
    assert torch.equal(found[0], eco.model(ids).logits)


# --- scores ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples(encoder: TextEncoder) -> list[Example]:
    answers = ("In Ann Hall.", "They beat their wings.", "So it is, Ann, by the light.")
    return [encoder.example(q, *answers[: 1 + place % 3]) for place, q in enumerate(QUESTIONS)]


def by_hand(eco: EcoModel, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Of each answer, alone: logits [t, V] with exactly the chosen prompt tokens corrupted."""
    found = []
    for example, plan in zip(examples, eco.plan([example.prompt for example in examples])):
        for answer in example.answers:
            row = eco.embeddings(torch.tensor([[*example.prompt, *answer]])).detach()
            if plan is not None:
                row[0, : len(example.prompt)] = places_and_embeddings(eco, example.prompt)[1]
            logits = eco.model(inputs_embeds=row).logits[0]
            found.append(logits[len(example.prompt) - 1 : -1].detach())
    return found


def losses(tables: Sequence[torch.Tensor], examples: Sequence[Example]) -> list[float]:
    answers = [torch.tensor(answer) for example in examples for answer in example.answers]
    entropy = functools.partial(torch.nn.functional.cross_entropy, reduction="sum")
    return [float(entropy(table, answer)) for table, answer in zip(tables, answers, strict=True)]


@pytest.mark.parametrize("most_tokens", [1, 70, 1024])
def test_scores_are_those_of_prompts_corrupted_by_hand_and_whole_answers(
    exact: LanguageModel, exact_eco: EcoModel, examples: list[Example], most_tokens: int
) -> None:
    scores = score(replace(exact, model=exact_eco), examples, most_tokens)
    expected = losses(by_hand(exact_eco, examples), examples)
    assert scores.nll == pytest.approx(expected, rel=1e-5)
    unguarded = score(exact, examples, most_tokens).nll
    flagged = np.repeat([True, False, False, True], [len(e.answers) for e in examples])
    assert scores.nll[~flagged] == pytest.approx(unguarded[~flagged], rel=1e-6)
    assert (abs(scores.nll - unguarded)[flagged] > 0.1).all()


@settings(max_examples=8)
@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_no_other_example_of_a_packed_row_changes(
    plain: LanguageModel, frame: Frame, examples: list[Example], flags: list[bool]
) -> None:
    model = EcoModel(plain.model, plain.tokenizer, GUARD, frame, judge=lambda texts: flags)
    packed = pack(examples, share=False)
    with torch.no_grad():
        expected, found = packed_logits(plain.model, packed), packed_logits(model, packed)
    owners = np.repeat(np.arange(4), [len(example.answers) for example in examples])
    changed = torch.tensor(flags)[torch.from_numpy(owners)[packed.rows]]
    assert torch.equal(found[~changed], expected[~changed])
    assert not torch.isclose(found[changed], expected[changed]).all(dim=-1).any()


def test_guarded_prompts_share_no_beginning(
    exact: LanguageModel, exact_eco: EcoModel, encoder: TextEncoder
) -> None:
    """Names at the beginning, no frame: one flagged prompt must not touch another's."""
    model = EcoModel(exact.model, exact.tokenizer, GUARD)
    questions = ("What is Ann's song?", "What is the sky?", "What is it?")
    examples = [encoder.example(question, "Blue.") for question in questions]
    together = score(replace(exact, model=model), examples).nll
    assert together == pytest.approx(losses(by_hand(model, examples), examples), rel=1e-5)


# --- one forward pass ------------------------------------------------------------------------


def test_a_padded_batch_is_corrupted_at_the_places_given(
    exact_eco: EcoModel, examples: list[Example]
) -> None:
    rows = [[*example.prompt, *example.answers[0]] for example in examples]
    batch = padded(rows, "right")
    places = [list(range(len(example.prompt))) for example in examples]
    mask = batch["attention_mask"]
    logits = exact_eco(batch["input_ids"], places, attention_mask=mask).logits
    first = [Example(example.prompt, example.answers[:1]) for example in examples]
    for row, (table, example) in enumerate(zip(by_hand(exact_eco, first), first)):
        start = len(example.prompt) - 1
        found = logits[row, start : start + len(table)]
        torch.testing.assert_close(found, table, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_prompt(exact_eco: EcoModel, prompts: Any, side: str) -> None:
    batch = padded(prompts, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = exact_eco(**batch, position_ids=positions).logits
    for row, prompt in enumerate(prompts):
        own = logits[row][batch["attention_mask"][row].bool()]
        alone = exact_eco(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(own, alone, rtol=0, atol=1e-9)


# --- a guard that fails answers nothing ------------------------------------------------------


@pytest.mark.parametrize(
    "result, reason",
    [
        (RuntimeError("out of memory\nsomewhere"), "The guard failed .RuntimeError: out of memory"),
        (KeyError("logits"), "The guard failed .KeyError"),
        (CompanionError("Prompt 1 of 1 is unreadable."), "^Prompt 1 of 1 is unreadable.$"),
        (np.array([np.nan]), "nan or outside"),
        (np.array([0.1, 0.1]), "The guard failed .ValueError"),
        (np.zeros(0), "The guard failed .ValueError"),
        (None, "The guard failed"),
    ],
)
def test_a_failing_classifier_is_refused(
    eco: EcoModel, prompts: Any, result: Any, reason: str
) -> None:
    guard = Guard("entities", Broken(result), 0.5, STRONG, 3.0)  # type: ignore[arg-type]
    model = EcoModel(eco.model, eco.tokenizer, guard, eco.frame)
    for answer in (model.generate, model):
        with refused(reason, eco.model):
            answer(torch.tensor([prompts[1]]))


def test_a_failing_selector_is_refused(eco: EcoModel, prompts: Any) -> None:
    guard = replace(GUARD)
    guard.__dict__["selector"] = lambda text: 1 / 0
    model = EcoModel(eco.model, eco.tokenizer, guard, eco.frame)
    with refused("The guard failed .ZeroDivisionError.*nothing is answered", eco.model):
        model.generate(torch.tensor([prompts[0]]), **NEW)
    assert model.generate(torch.tensor([prompts[1]]), **NEW).shape == (1, len(prompts[1]) + 6)


@pytest.mark.parametrize(
    "options",
    [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2}],
    ids=["in chunks", "with a guessed answer"],
)
def test_a_prompt_that_is_read_in_another_shape_is_refused(
    eco: EcoModel, prompts: Any, options: dict[str, int]
) -> None:
    ids = torch.tensor([[*prompts[0], *prompts[0]]])
    with refused("cannot tell its tokens apart; nothing is answered", eco.model):
        eco.generate(ids, None, **NEW, **options)


def test_a_model_that_reads_its_rows_one_by_one_is_refused(eco: EcoModel, prompts: Any) -> None:
    class OneByOne(torch.nn.Module):
        config = SimpleNamespace()

        def get_input_embeddings(self) -> torch.nn.Module:
            return eco.embeddings

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.cat([eco.embeddings(row[None]) for row in input_ids])

    model = EcoModel(OneByOne(), eco.tokenizer, GUARD, eco.frame)
    with refused("reads a batch of shape .2, (..). as .1, (..).", eco.model):
        model(torch.tensor([prompts[0], prompts[0]]))


def test_a_model_that_does_not_look_its_embeddings_up_is_refused(
    eco: EcoModel, prompts: Any
) -> None:
    class Blind(torch.nn.Module):
        config = SimpleNamespace()

        def get_input_embeddings(self) -> torch.nn.Module:
            return eco.embeddings

        def forward(self, input_ids: torch.Tensor) -> str:
            return "the secret"

        def generate(self, **given: Any) -> str:
            return "the secret"

    model = EcoModel(Blind(), eco.tokenizer, GUARD, eco.frame)
    for answer in (model.generate, model):
        with refused("Blind never looked its input embeddings up.*nothing is answered", eco.model):
            answer(torch.tensor([prompts[0]]))
        assert answer(torch.tensor([prompts[1]])) == "the secret"


@pytest.mark.parametrize("found", [None, NotImplementedError(), AttributeError(), "no module"])
def test_a_model_without_input_embeddings_is_refused(eco: EcoModel, found: Any) -> None:
    class Bare:
        def get_input_embeddings(self) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

    with refused("Bare has no input-embedding module"):
        EcoModel(Bare(), eco.tokenizer, GUARD)
    with refused("object has no input-embedding module"):
        input_embeddings(object())


def test_an_empty_prompt_is_refused(eco: EcoModel, prompts: Any) -> None:
    batch = padded([prompts[1], ()])
    with refused("Prompt 1 is empty", eco.model):
        eco.generate(**batch, **NEW)
    with refused("Prompt 0 is empty", eco.model):
        eco(torch.zeros((1, 0), dtype=torch.long))
    unjudged = replace(GUARD, classifier=PromptClassifier(None, None, None, ("LATIN",)))  # type: ignore[arg-type]
    with refused("Prompt 1 of 1.*empty", eco.model):
        EcoModel(eco.model, eco.tokenizer, unjudged).generate(torch.tensor([[0, 0]]), **NEW)


@pytest.mark.parametrize("length", [128, 200])
def test_a_prompt_without_room_for_an_answer_is_refused(eco: EcoModel, length: int) -> None:
    with refused(f"Prompt 0 has {length} tokens.*context of 128; shorten it", eco.model):
        eco.generate(torch.full((1, length), 40), **NEW)
    assert eco.generate(torch.full((1, 127), 40), max_new_tokens=1).shape == (1, 128)


def test_a_strength_that_overflows_is_refused(load_tiny: Load, frame: Frame, prompts: Any) -> None:
    found = load_tiny("llama")
    guard = replace(GUARD, strength=1e6)
    model = EcoModel(found.model.half(), found.tokenizer, guard, frame)
    with refused(r"Strength 1e\+06 takes row 0 .* take a smaller strength, or load", found.model):
        model.generate(torch.tensor([prompts[0]]), **NEW)
    assert torch.equal(
        model.generate(torch.tensor([prompts[1]]), **NEW),
        found.model.generate(torch.tensor([prompts[1]]), **NEW),
    )


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with refused("threshold is .*give one from 0 to 1"):
        replace(GUARD, threshold=threshold)


# --- saving and loading ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(eco: EcoModel) -> EcoModel:
    """Behind a random encoder of text that flags two of the questions, one strength a component."""
    torch.manual_seed(1)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"intermediate_size": 16, "max_position_embeddings": 64, "initializer_range": 1.0}
    config = BertConfig(vocab_size=len(eco.tokenizer), **size, **shape)
    chosen = PromptClassifierSettings(base="tiny", maximum_length=32)
    encoder = BertForSequenceClassification(config).eval()
    classifier = PromptClassifier(encoder, eco.tokenizer, chosen, ("LATIN",))
    threshold = float(np.median(classifier.probability(QUESTIONS)))
    vector = np.linspace(1, 3, 64)
    guard = Guard("entities", classifier, threshold, STRONG, vector, seed=7)
    return EcoModel(eco.model, eco.tokenizer, guard, eco.frame)


@pytest.fixture(scope="module")
def saved(real: EcoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "new" / "guard"
    real.save_pretrained(folder)
    return folder


def test_a_loaded_guard_answers_the_same(real: EcoModel, saved: Path, prompts: Any) -> None:
    loaded = EcoModel.from_pretrained(saved, real.model, real.tokenizer, "entities")
    assert loaded.frame == real.frame and loaded.guard.seed == 7
    assert loaded.guard.threshold == real.guard.threshold
    assert loaded.guard.corruption == STRONG
    np.testing.assert_array_equal(loaded.guard.strength, real.guard.strength)
    assert sum(plan is not None for plan in loaded.plan(prompts)) == 2
    assert torch.equal(answered(loaded, prompts)[1], answered(real, prompts)[1])


def test_a_number_as_strength_is_saved_too(real: EcoModel, tmp_path: Path) -> None:
    real.save_pretrained(tmp_path)
    number = EcoModel(real.model, real.tokenizer, replace(real.guard, strength=0.1))
    number.save_pretrained(tmp_path)
    loaded = EcoModel.from_pretrained(tmp_path, real.model, real.tokenizer)
    assert loaded.guard.strength == 0.1 and loaded.frame == Frame((), ())
    assert not (tmp_path / "strength.safetensors").exists()


def test_only_safetensors_and_text_are_written(saved: Path) -> None:
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jinja"}
    assert {"eco.json", "strength.safetensors", "model.safetensors"} <= {f.name for f in files}


ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from unlearn_lib.eco.model import EcoModel

guard, model, batch, options = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
eco = EcoModel.from_pretrained(Path(guard), plain, tokenizer, "entities")
batch = {name: torch.tensor(rows) for name, rows in json.loads(batch).items()}
print(json.dumps(eco.generate(**batch, **json.loads(options)).tolist()))
"""


def test_a_new_process_answers_the_same(
    real: EcoModel, saved: Path, tiny_assets: Any, prompts: Any
) -> None:
    batch = padded(prompts)
    asked = json.dumps({name: rows.tolist() for name, rows in batch.items()})
    given = [str(saved), str(tiny_assets["llama"].folder), asked, json.dumps(NEW)]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == real.generate(**batch, **NEW).tolist()
    plain = real.model.generate(**batch, **NEW).tolist()
    assert sum(row == other for row, other in zip(found, plain)) == 2


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def rewrite(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize("name", ["eco.json", "strength.safetensors", "classifier/guard.json", "classifier/model.safetensors"])  # fmt: skip
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_a_damaged_guard_is_refused(eco: EcoModel, copy: Path, name: str, harm: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if harm != "missing":
        (copy / name).write_bytes(content[: len(content) // 2 if harm == "truncated" else 0])
    with refused("no whole (guard in|prompt classifier)"):
        EcoModel.from_pretrained(copy, eco.model, eco.tokenizer)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"version": 99}, "version 99.*reads version 1: train it again"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": "high"}, "no whole guard in .*ValueError"),
        ({"strength": [1]}, "no whole guard in .*TypeError"),
        ({"corruption": {"name": "wipe"}}, "no whole guard in .*ValidationError"),
        ({"width": 32}, "embeddings of width 32, and this model's have 64.*search it again"),
    ],
)
def test_a_guard_that_means_something_else_is_refused(
    eco: EcoModel, copy: Path, changed: dict[str, Any], reason: str
) -> None:
    rewrite(copy / "eco.json", **changed)
    with refused(reason):
        EcoModel.from_pretrained(copy, eco.model, eco.tokenizer)


def test_a_guard_of_another_task_is_refused(eco: EcoModel, saved: Path, tmp_path: Path) -> None:
    with refused("trained for the task 'entities', not for 'book'"):
        EcoModel.from_pretrained(saved, eco.model, eco.tokenizer, "book")
    with refused("no whole guard in .*none"):
        EcoModel.from_pretrained(tmp_path / "none", eco.model, eco.tokenizer)
    (tmp_path / "eco.json").write_text('{"version": 1}')
    with refused("lacks .*'corruption'.*train it again"):
        EcoModel.from_pretrained(tmp_path, eco.model, eco.tokenizer)


def test_a_guard_whose_saving_was_cut_short_is_no_guard(
    real: EcoModel, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older description never stands beside a newer classifier."""
    monkeypatch.setattr(PromptClassifier, "save", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        real.save_pretrained(copy)
    with refused("no whole guard in"):
        EcoModel.from_pretrained(copy, real.model, real.tokenizer)
