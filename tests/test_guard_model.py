"""The guarded model: what it changes and what it never changes, how it fails, saving and loading."""

import copy
import json
import math
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
from test_text_classifier import FAST, TEXTS, write_bert

from unlearn_lib.guard.corruptions import corrupt, prompt_seed
from unlearn_lib.guard.fit import fit_guard
from unlearn_lib.guard.model import Guard, GuardedModel
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.scoring import score
from unlearn_lib.model.tokens import TextEncoder, special_ids
from unlearn_lib.settings import CorruptionSettings, GuardSettings
from unlearn_lib.util import CompanionError, digest

QUESTIONS = (
    "Where was Ann born?",
    "How do birds fly so far?",
    "What is the capital of France and why is it so?",
    "Tell me what Ann wrote, and why she did.",
)
FLAGGED, OTHERS = [0, 3], [1, 2]
NEW: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


class KeyWord:
    """Is sure of every prompt about Ann, and of no other."""

    def probability(self, prompts: Sequence[str]) -> np.ndarray:
        return np.array([0.99 if "Ann" in prompt else 0.01 for prompt in prompts])

    def to(self, device: torch.device) -> None:
        """It runs nowhere."""


GUARD = Guard("authors", KeyWord(), 0.5, CorruptionSettings(dims=24), 3.0)  # type: ignore[arg-type]


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
    embeddings = model.get_input_embeddings()(torch.tensor(prompt)).detach()
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
    model = GuardedModel(plain.model, plain.tokenizer, GUARD, guarded.frame, lambda texts: flags)
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
    expected = guarded.get_input_embeddings()(tokens).detach()
    expected[0, width - len(rows[0]) : width] = by_hand(guarded, rows[0], QUESTIONS[0])
    assert len(reads) == 6
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
            ids, start = torch.tensor([[*example.prompt, *answer]]), len(example.prompt)
            embedded = guarded.get_input_embeddings()(ids).detach()
            if row in FLAGGED:
                embedded[0, :start] = by_hand(guarded, example.prompt, QUESTIONS[row])
            logits = plain.model(inputs_embeds=embedded).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
            expected.append(loss.item())
    scores = score(replace(plain, model=guarded), examples, most_tokens)
    assert scores.nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_prompt(guarded: GuardedModel, prompts: Any, side: str) -> None:
    batch = padded(prompts, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    mask = batch["attention_mask"]
    ids = batch["input_ids"]
    logits = guarded(ids, attention_mask=mask, position_ids=positions).logits
    for row, prompt in enumerate(prompts):
        own = logits[row][mask[row].bool()]
        alone = guarded(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(own, alone, rtol=0, atol=1e-9)


def test_nothing_of_the_wrapped_model_leads_around_the_guard(
    guarded: GuardedModel, prompts: Any
) -> None:
    assert guarded.eval() is guarded and guarded.to("cpu") is guarded
    assert guarded.config is guarded.model.config and not hasattr(guarded, "no_such_thing")
    assert copy.deepcopy(guarded).guard.threshold == guarded.guard.threshold
    ids = torch.tensor([prompts[0]])
    assert torch.equal(guarded.forward(input_ids=ids).logits, guarded(ids).logits)
    assert not torch.equal(guarded(ids).logits, guarded.model(ids).logits)


# --- a guard that fails answers nothing --------------------------------------------------------


@pytest.mark.parametrize("result", [np.array([np.nan]), np.array([0.1, 0.1]), np.zeros(0)])
def test_a_failing_classifier_is_refused(guarded: GuardedModel, prompts: Any, result: Any) -> None:
    classifier: Any = SimpleNamespace(probability=lambda prompts: result, to=lambda device: None)
    guard = replace(GUARD, classifier=classifier)
    model = GuardedModel(guarded.model, guarded.tokenizer, guard, guarded.frame)
    for answer in (model.generate, model):
        with pytest.raises((CompanionError, ValueError)):
            answer(torch.tensor([prompts[1]]))


@pytest.mark.parametrize("ids", [[[]], [[0, 0]]])
def test_an_empty_prompt_is_refused(guarded: GuardedModel, ids: list[list[int]]) -> None:
    with pytest.raises(CompanionError, match="empty"):
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
    assert not guarded.get_input_embeddings()._forward_hooks


def test_a_model_that_does_not_look_its_embeddings_up_is_refused(
    guarded: GuardedModel, prompts: Any
) -> None:
    class Blind(torch.nn.Module):
        config = SimpleNamespace()

        def get_input_embeddings(self) -> torch.nn.Module:
            return guarded.get_input_embeddings()

        def forward(self, input_ids: torch.Tensor) -> str:
            return "the secret"

    model = GuardedModel(Blind(), guarded.tokenizer, GUARD, guarded.frame)
    with pytest.raises(CompanionError, match="never looked up its embeddings"):
        model(torch.tensor([prompts[0]]))
    assert model(torch.tensor([prompts[1]])) == "the secret"


# --- training, saving and loading --------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    folder = write_bert(tmp_path_factory.mktemp("bert"), sorted(set(" ".join(TEXTS).split())))
    fast = FAST.model_copy(update={"epochs": 15})
    chosen = GuardSettings(classifier=fast, false_positive_rate=0.1, corruption=GUARD.corruption)
    return fit_guard("authors", folder, TEXTS[:20], TEXTS[20:45], TEXTS[45:], chosen, 7, True)


def test_a_trained_guard_flags_by_its_calibrated_threshold(trained: Guard) -> None:
    scores = trained.scores([*TEXTS, "Где?", ""])
    assert scores[-2:].tolist() == [1, 1]
    assert trained.threshold in scores[45:-2] and trained.strength == 0 and trained.seed == 7
    assert trained.flags(TEXTS).tolist() == (scores[:-2] > trained.threshold).tolist()
    assert trained.flags(TEXTS)[:20].all()
    with pytest.raises(CompanionError, match="CYRILLIC"):
        trained.flags(["tea", "Где?"])


@pytest.fixture
def saved(trained: Guard, guarded: GuardedModel, tmp_path: Path) -> Path:
    guard = replace(trained, strength=3.0)
    model = GuardedModel(guarded.model, guarded.tokenizer, guard, guarded.frame)
    model.save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"


def test_a_loaded_guard_answers_the_same(
    trained: Guard, guarded: GuardedModel, saved: Path, encoder: TextEncoder
) -> None:
    model, prompts = guarded.model, [encoder.prompt(text) for text in (TEXTS[0], TEXTS[-1])]
    loaded = GuardedModel.from_pretrained(saved, model, guarded.tokenizer)
    assert loaded.frame == guarded.frame and loaded.guard.scripts == trained.scripts
    assert loaded.guard.threshold == trained.threshold and loaded.guard.strength == 3
    logits, expected = answered(loaded, prompts), answered(model, prompts)
    assert torch.equal(logits[1], expected[1]) and not torch.equal(logits[0], expected[0])
    files = {file.suffix for file in saved.rglob("*") if file.is_file()}
    assert files == {".safetensors", ".json"}


def test_a_folder_may_be_a_string(guarded: GuardedModel, saved: Path, tmp_path: Path) -> None:
    loaded = GuardedModel.from_pretrained(str(saved), guarded.model, guarded.tokenizer)
    loaded.save_pretrained(str(tmp_path / "again"))
    again = Guard.load(str(tmp_path / "again"), "authors")
    again.save(str(tmp_path / "third"))
    assert Guard.load(tmp_path / "third").threshold == loaded.guard.threshold


@pytest.mark.parametrize(
    "name, changed, reason",
    [
        ("guard.json", None, "no complete guard"),
        ("guard.json", {"corruption": {"name": "wipe"}}, "no complete guard"),
        ("guard.json", {"width": 32}, "embeddings of width 32, and this model's have 64"),
        ("guard.json", {"threshold": 1.0}, "no complete guard"),
        ("guard.json", {"threshold": math.nan}, "no complete guard"),
        ("guard.json", {"strength": "strong"}, "no complete guard"),
        ("guard.json", {"strength": math.inf}, "was altered"),
        ("guard.json", {"scripts": []}, "was altered"),
        ("guard.json", {"seed": "x"}, "was altered"),
        ("guard.json", {"sha256": "0" * 64}, "was altered"),
        ("classifier/model.safetensors", None, "was altered"),
    ],
)
def test_another_or_a_damaged_guard_is_refused(
    guarded: GuardedModel, saved: Path, name: str, changed: dict[str, Any] | None, reason: str
) -> None:
    if changed is None:
        (saved / name).write_text("{")
    else:
        written = json.loads((saved / name).read_text()) | changed
        right = digest({key: value for key, value in written.items() if key != "sha256"})
        (saved / name).write_text(json.dumps(written | {"sha256": right} | changed))
    with pytest.raises(CompanionError, match=reason):
        GuardedModel.from_pretrained(saved, guarded.model, guarded.tokenizer)


@pytest.mark.parametrize(
    "kind, strength", [("rand_noise_first_n", 0.0), ("rand_noise_first_n", 1e-12), ("shuffle", 9.0)]
)
def test_a_corruption_that_changes_nothing_answers_nothing(
    kind: Any, strength: float, guarded: GuardedModel
) -> None:
    corruption = CorruptionSettings(name=kind)
    guard = replace(guarded.guard, corruption=corruption, strength=strength)
    model = GuardedModel(guarded.model, guarded.tokenizer, guard, judge=lambda texts: [True])
    row = guarded.tokenizer("How do", add_special_tokens=False, return_tensors="pt")["input_ids"]
    row = row[:, :2]  # the last token is never chosen, so that one is left
    with pytest.raises(CompanionError, match="leaves a flagged prompt as it is"):
        model.generate(row, max_new_tokens=2)


def test_a_guard_of_another_task_is_refused(saved: Path) -> None:
    with pytest.raises(CompanionError, match="task 'authors', not for 'book'"):
        Guard.load(saved, "book")


# --- architectures -----------------------------------------------------------------------------

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
ARCHITECTURES = """OPT GPT2 GPTNeoX Llama Mistral Qwen2 Qwen3 Gemma2 Gemma3 Phi Phi3 Falcon Bloom Mpt
    Olmo Olmo2 Mamba""".split()
CLASSES = {"GPT2": "GPT2Config GPT2LMHeadModel", "Gemma3": "Gemma3TextConfig Gemma3ForCausalLM"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mixed_batch_changes_flagged_rows_and_no_other_bit(
    name: str, guarded: GuardedModel, prompts: Any
) -> None:
    kinds = CLASSES.get(name, f"{name}Config {name}ForCausalLM").split()
    config_class, model_class = (getattr(transformers, kind) for kind in kinds)
    tokenizer = guarded.tokenizer
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.2, **SHAPE}
    torch.manual_seed(0)
    config = config_class(**special_ids(tokenizer), **sizes)
    model = model_class(config).eval()
    behind = GuardedModel(model, tokenizer, GUARD, guarded.frame)
    logits, changed = answered(model, prompts), answered(behind, prompts)
    assert torch.equal(changed[OTHERS], logits[OTHERS])
    assert (changed - logits)[FLAGGED].abs().amax(-1).gt(1e-3).all()
    expected = model(inputs_embeds=by_hand(behind, prompts[0], QUESTIONS[0])[None]).logits
    torch.testing.assert_close(behind(torch.tensor([prompts[0]])).logits, expected)
