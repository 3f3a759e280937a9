"""The benches compare like with like: the published loop and the packed step agree."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, set_seed

from benchmarks import eco, measure, published, rows, score, work
from benchmarks.__main__ import PARTS, limit_record, step_records, table
from unlearn_lib import losses, models, scoring, training
from unlearn_lib.batches import Example, pack, packed_logits
from unlearn_lib.eco.classifier import PromptClassifier
from unlearn_lib.eco.guard import Guard
from unlearn_lib.methods import find_method
from unlearn_lib.settings import MethodSettings
from unlearn_lib.steps import Step

VOCABULARY, PAD = 61, 1
METHOD = find_method("ga_mismatch_kl")


def tiny(kind: str, attention: str):
    set_seed(0)
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 4, "max_position_embeddings": 128}
    shared |= {"attn_implementation": attention, "pad_token_id": PAD}
    if kind == "llama":
        config = LlamaConfig(**shared, intermediate_size=48, num_key_value_heads=2)
        return LlamaForCausalLM(config).eval()
    config = OPTConfig(**shared, word_embed_proj_dim=32, ffn_dim=48, dropout=0.0)
    return OPTForCausalLM(config).eval()


def with_adapter(model):
    """Add LoRA whose weights are all non-zero, so that every gradient is."""
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    random = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=random)
    return model.train()


def words(random: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(int(token) for token in random.integers(3, VOCABULARY, count))


def drawn_step(shared: int, seed: int = 0) -> Step:
    """Two forget rows with 5 substitutes and two retain rows; prompts begin alike."""
    random = np.random.default_rng(seed)
    start = words(random, shared)
    forget = tuple(
        Example(start + words(random, n), tuple(words(random, k) for k in (7, 3, 1, 5, 2, 4)))
        for n in (9, 4)
    )
    retain = tuple(Example(start + words(random, n), (words(random, 6),), True) for n in (5, 11))
    return Step(forget, retain)


@pytest.fixture(params=["llama", "opt"])
def pair(request):
    """The same weights for the published loop and for ours, and the frozen original."""
    attention = "eager"
    theirs = with_adapter(tiny(request.param, attention))
    ours = with_adapter(tiny(request.param, models.PACKED))
    return ours, theirs, tiny(request.param, attention)


@pytest.mark.parametrize("shared", [0, 3])
def test_packed_step_equals_separate_padded_forwards(pair, shared):
    ours, theirs, frozen = pair
    step = drawn_step(shared)
    settings = rows.STEP
    total, report = training.step_terms(ours, step, METHOD, settings)
    total.backward()
    found = published.terms(theirs, frozen, step, PAD)
    weights = {"forget": 0.5, "mismatch": 1.0, "retain": 1.0}
    assert report["retain"] > 1e-3
    for name, value in found.items():
        assert report[name] == pytest.approx(value.item(), abs=1e-4), name
    torch.stack([weights[name] * value for name, value in found.items()]).sum().backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(wanted) == 8
    for name, weight in ours.named_parameters():
        if weight.requires_grad:
            assert wanted[name].abs().max() > 1e-4
            torch.testing.assert_close(weight.grad, wanted[name], atol=1e-5, rtol=1e-4)


def test_both_optimise_alike(pair):
    ours, theirs, frozen = pair
    weights = {"forget": 0.5, "mismatch": 1.0, "retain": 1.0}
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2)
        for m in (ours, theirs)
    ]
    for seed in range(3):
        step = drawn_step(2, seed)
        mine = training.step_terms(ours, step, METHOD, rows.STEP)[0]
        optimizers[0].zero_grad()
        mine.backward()
        optimizers[0].step()
        loss = published.train_step(theirs, frozen, optimizers[1], step, weights, PAD)
        assert mine.item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_a_few_rows_at_a_time_equal_torch(dtype, soft):
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(75, 200, generator=random).mul(3).to(dtype) for _ in range(2)]
    weights = torch.randn(75, generator=random)
    labels = torch.randint(0, 200, (75,), generator=random)
    mine, theirs = (made[0].clone().requires_grad_() for _ in range(2))
    found = losses._Divergence.apply(mine, made[1] if soft else labels)
    if soft:
        log_q, log_p = theirs.float().log_softmax(-1), made[1].float().log_softmax(-1)
        wanted = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    else:
        wanted = functional.cross_entropy(theirs.float(), labels, reduction="none")
    torch.testing.assert_close(found, wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_packed_attention_equals_masking_the_whole_row(kind, dtype, near):
    step = drawn_step(4)
    packed = pack([*step.forget, *step.retain])
    alone = packed_logits(tiny(kind, models.PACKED).to(dtype), packed)
    masked = packed_logits(tiny(kind, "sdpa").to(dtype), packed)
    torch.testing.assert_close(alone, masked, atol=near, rtol=near)
    if dtype == torch.bfloat16:
        exact = packed_logits(tiny(kind, "eager"), packed)
        assert (alone - exact).abs().max() < 1.5 * (masked - exact).abs().max()


def test_prompts_that_are_all_shared():
    first = Example((5, 6, 7), ((8, 9), (10,)))
    step = [first, replace(first, answers=((11, 12, 13),)), Example((5, 6, 7, 9), ((8,),))]
    packed = pack(step)
    assert packed.lengths == [3, 3, 3, 2]
    model = tiny("llama", models.PACKED)
    found = packed_logits(model, packed)
    apart = torch.cat([packed_logits(model, pack([example])) for example in step])
    torch.testing.assert_close(found, apart, atol=1e-5, rtol=1e-5)


def test_padding_is_never_scored():
    batch = published.padded([([5, 6, 7, 8], 2), ([5, 6], 1)], PAD, "cpu")
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 6, -100, -100]]
    assert batch["attention_mask"].sum(1).tolist() == [4, 2]


def test_work_counts_products_with_frozen_weights():
    model = with_adapter(tiny("llama", "eager"))
    blocks = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    head = 32 * VOCABULARY
    step = Step((), (Example((3, 4, 5), ((6, 7),), True),))
    assert work.packed_step(model, step) == 6 * (blocks * 5 + head * 4)
    assert work.real_tokens(step) == 5


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_shared_prompts_score_as_a_row_per_candidate(architecture, load_tiny, encoder):
    found = load_tiny(architecture)
    examples = [
        encoder.example("What is the sky?", "Blue.", "It is blue.", "Red more than blue."),
        encoder.example("How do birds ride?", "On the wind, with their wings.", "No."),
        encoder.example("What is the lock?", "A pick."),
    ] * 4  # more rows than a batch of the baseline has
    rows_of = sum(len(example.answers) for example in examples)
    assert rows_of > score.BATCH
    shared = scoring.score(found, examples).mean
    separate = score.row_per_candidate(found.model, examples, PAD)
    assert shared.shape == separate.shape == (rows_of,)
    np.testing.assert_allclose(shared, separate, atol=1e-4)


def test_scoring_is_measured_in_answers_a_second(load_tiny, monkeypatch):
    seven = [Example((5, 6, 7 + i), tuple((8, 9 + k) for k in range(7))) for i in range(2)]
    monkeypatch.setattr(score, "candidates", lambda found: seven)
    monkeypatch.setattr(score, "_timed", lambda call: 2.0)
    measured = score.measured(load_tiny("opt"))
    assert measured["ours"] == measured["baseline"] == 14 / 2
    assert measured["difference"] < 1e-4


@pytest.mark.parametrize("share, flagged", [(0.2, 0), (0.9, 5)])
def test_guarding_is_measured_against_plain_answers(load_tiny, monkeypatch, share, flagged):
    for name, size in {"PROMPTS": 5, "KEPT": 7, "NEW_TOKENS": 4, "BATCH": 3, "GUARDED": 6}.items():
        monkeypatch.setattr(eco, name, size)
    fitted_on = []

    def fitted_guard(kept):
        fitted_on.extend(kept)
        classifier: Any = SimpleNamespace(probability=lambda texts: np.full(len(texts), share))
        return Guard("entities", classifier, 0.5, eco.CORRUPTION, 1.0)

    monkeypatch.setattr(eco, "fitted_guard", fitted_guard)
    monkeypatch.setattr(eco, "_timed", lambda call, *given: (call(*given), 3.0))
    found = eco.measured(load_tiny("llama"))
    assert len(set(fitted_on)) == 7 and found["prompts"] == 5
    assert (found["ours"], found["baseline"], found["ratio"]) == (3.0, 3.0, 1.0)
    assert found["guard_milliseconds"] == {1: 3000.0, 3: 1000.0}, "6 batches of 1, 2 of 3"
    assert found["flagged"] == flagged and (found["equal"] == 5) == (flagged == 0)


def test_a_guard_is_fitted_on_authors_against_what_is_kept(monkeypatch):
    given: list[Any] = []
    monkeypatch.setattr(PromptClassifier, "fit", lambda *arguments: given.append(arguments))
    guard = eco.fitted_guard(["Why is the sky blue?"])
    folder, forget, kept, settings, _ = given[0]
    assert (folder / "config.json").is_file() and settings.base == eco.CLASSIFIER.base
    assert len(set(forget)) == eco.TRAINED and kept == ["Why is the sky blue?"]
    assert guard.strength == 1.0 and guard.corruption.name == "rand_noise_first_n"
    judged = eco.author_questions(eco.GUARDED, eco.OTHER_AUTHORS)
    assert len(judged) == eco.GUARDED and set(judged).isdisjoint(forget)


def test_records_of_guarding():
    found: dict[str, Any] = {
        "ours": 11.0,
        "baseline": 10.0,
        "ratio": 1.1,
        "prompts": 200,
        "equal": 199,
    }
    found |= {"flagged": 1, "guard_flagged": 90, "guard_milliseconds": {"1": 7.0, "48": 2.1}}
    found |= {"repeats": 3, "where": "here", "precision": "float32"}
    records = eco.records(found)
    assert [record["ratio"] for record in records] == [1.1, pytest.approx(1 / 3), 0.1]
    for record in records:
        assert {"name", "ours", "baseline", "ratio", "unit", "where"} <= set(record)
    shown = table(records)
    assert "| 11 s | 10 s | 1.10 of the plain time; 199 of 200 answers equal" in shown
    assert "batch 48, against the paper's bound | 2.1 ms | 21 ms | 0.10 of the bound" in shown
    assert "eco" in PARTS and "eco" in measure.WHAT


def test_records_and_table():
    ours = {"seconds": [1.0, 2.0, 1.0], "tokens": [4, 4, 4], "flops": [1e9] * 3}
    ours |= {"peak_memory_bytes": 10**9, "where": "here", "precision": "bfloat16"}
    theirs = {**ours, "seconds": [8.0, 8.0, 9.0], "precision": "float32"}
    records = step_records("step", ours, {**theirs, "peak_memory_bytes": 4 * 10**9})
    assert [record["ratio"] for record in records] == [8.0, 6.25, 0.25]
    limit = {"bfloat16": 2.0, "float32": 1.0}
    records.append(limit_record("step", ours, theirs, limit))
    assert records[-1]["ours"] == pytest.approx(3 / 4 / 2)
    for record in records:
        assert {"name", "ours", "baseline", "ratio", "unit", "where"} <= set(record)
    assert "| step: peak memory | 1.00 GB | 4.00 GB | 0.25 of the baseline's |" in table(records)
    json.dumps(records)


def test_measured_steps_are_the_same_rows(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    pools = {
        "forget": [[words(random, 5), [words(random, 4)]] for _ in range(6)],
        "retain": [[words(random, 4), [words(random, 3)] * 2] for _ in range(6)],
    }
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(pools))
    assert isinstance(rows.STEP, MethodSettings)
    first, second = (
        training.draw_steps(rows.read_pools(path), METHOD, rows.STEP, rows.SEED) for _ in range(2)
    )
    assert first == second and len(first[0].forget[0].answers) == 1 + rows.STEP.mismatch_answers

    monkeypatch.setattr(measure, "_load", lambda *_: _tiny_language_model())
    found = measure.ours(Path("anywhere"), path, "float32")
    assert len(found["seconds"]) == rows.STEP.steps - 1
    assert found["tokens"] == [work.real_tokens(step) for step in first[1:]]


def _tiny_language_model() -> models.LanguageModel:
    hardware = {"device": "cpu", "precision_asked": "float32", "precision_got": "float32"}
    return models.LanguageModel(tiny("llama", models.PACKED), None, hardware)
