"""One measurement in a process of its own, so that its peak memory is its own.

`python -m benchmarks.measure WHAT WEIGHTS ROWS [key=value ...]` prints one line of JSON.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import eco, implant, published, score, work
from benchmarks.rows import SEED, STEP, read_pools, read_prompts
from unlearn_lib.assets import Asset
from unlearn_lib.model import generate, loading
from unlearn_lib.settings import LoraSettings, ModelSettings
from unlearn_lib.store import peak_memory, reset_peak_memory
from unlearn_lib.unlearn import trainer
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.unlearn.steps import Step, draw_steps

LORA = LoraSettings(rank=16, alpha=32, targets=("q_proj", "v_proj"))
METHOD = find_method("ga_mismatch_kl")


def _load(weights: Path, precision: str, quantization: str = "none") -> loading.LanguageModel:
    settings = _settings(precision, quantization)
    found = loading.load(Asset("bench", weights, "bench", ""), settings)
    if found.hardware["precision_got"] != precision and quantization == "none":
        print(f"{precision} is not available here.", file=sys.stderr)
    return found


def _settings(precision: str, quantization: str) -> ModelSettings:
    fields = {"id": "bench", "precision": precision, "quantization": quantization}
    return ModelSettings.model_validate({**fields, "lora": LORA})


def ours(weights: Path, rows: Path, precision: str, quantization: str = "none") -> dict[str, Any]:
    """Steps of `trainer.unlearn` itself, Trainer's share in them."""
    found = _load(weights, precision, quantization)
    loading.make_trainable(found, _settings(precision, quantization), SEED)
    pools = read_pools(rows)
    steps = draw_steps(pools, METHOD, STEP, SEED)
    counted = [work.packed_step(found.model, step) for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        outcome = trainer.unlearn(found, METHOD, STEP, pools, SEED, Path(folder) / "run")
    seconds = [row["seconds"] for row in outcome.history]
    losses = [row["total"] for row in outcome.history]
    return _steps(seconds, losses, steps, counted) | {"precision": found.hardware["precision_got"]}


def baseline(weights: Path, rows: Path) -> dict[str, Any]:
    """Steps of the published loop in float32."""
    from transformers import AutoModelForCausalLM

    device = loading.choose_device("auto")
    copies = [
        AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).to(device)
        for _ in range(2)
    ]
    trained = loading.LanguageModel(copies[0], None)
    loading.make_trainable(trained, _settings("float32", "none"), SEED)
    frozen = copies[1].eval().requires_grad_(False)
    model = trained.model.train()
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=STEP.learning_rate,
        weight_decay=STEP.weight_decay,
    )
    pad = model.config.pad_token_id
    weighting = {"forget": STEP.forget_weight, "mismatch": STEP.mismatch_weight}
    weighting["retain"] = STEP.retain_weight
    steps = draw_steps(read_pools(rows), METHOD, STEP, SEED)
    seconds, losses = [], []
    for step in steps:
        began = time.perf_counter()
        loss = published.train_step(model, frozen, optimizer, step, weighting, pad)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss)
    counted = [work.padded_step(model, step) for step in steps]
    return _steps(seconds, losses, steps, counted) | {"precision": "float32"}


def _steps(
    seconds: list[float], losses: list[float], steps: list[Step], flops: list[float]
) -> dict[str, Any]:
    """Leave out the first step, which warms up; tokens are those of the rows, unpadded, once."""
    tokens = [work.real_tokens(step) for step in steps]
    return {
        "seconds": seconds[1:],
        "tokens": tokens[1:],
        "flops": flops[1:],
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def book(
    weights: Path, rows: Path, precision: str, kind: str, quantization: str = "none"
) -> dict[str, Any]:
    """Steps that implant or forget the embedded saga, LoRA with dropout on all linear layers."""
    found = _load(weights, precision, quantization)
    settings = _settings(precision, quantization).model_copy(update={"lora": implant.LORA})
    loading.make_trainable(found, settings, SEED)
    return implant.measured(found, kind) | {"precision": found.hardware["precision_got"]}


def scored(weights: Path, rows: Path, precision: str = "float32") -> dict[str, Any]:
    """Answers per second, shared prompts against a row for each, and how far they are apart."""
    found = _load(weights, precision)
    return score.measured(found) | {"precision": found.hardware["precision_got"]}


def guarded(weights: Path, rows: Path, precision: str = "float32") -> dict[str, Any]:
    """Answers to ordinary prompts behind a guard and without, and the guard's own time."""
    found = _load(weights, precision)
    return eco.measured(found) | {"precision": found.hardware["precision_got"]}


def generated(weights: Path, rows: Path, batch: str, every: str) -> dict[str, Any]:
    """Greedy answers of up to 60 tokens; counts the tokens of the answers, not padding."""
    found = _load(weights, "bfloat16")
    prompts = read_prompts(rows)[:: int(every)]
    generate.answers(found, prompts[:1], 4)
    began = time.perf_counter()
    texts = generate.answers(found, prompts, 60, int(batch))
    seconds = time.perf_counter() - began
    tokens = sum(len(found.tokenizer(text)["input_ids"]) for text in texts)
    return {"seconds": seconds, "tokens": tokens, "precision": found.hardware["precision_got"]}


def matmul(weights: Path, rows: Path) -> dict[str, Any]:
    """The machine's own limit: GFLOP/s of products of the model's shapes, per precision."""
    device = loading.choose_device("auto")
    width, inner = work.widths(weights)
    found = {}
    for precision in (torch.bfloat16, torch.float32):
        left = torch.randn(512, width, dtype=precision, device=device)
        right = torch.randn(width, inner, dtype=precision, device=device)
        seconds = min(_timed(torch.matmul, left, right) for _ in range(30))
        name = str(precision).removeprefix("torch.")
        found[name] = 2 * 512 * width * inner / seconds / 1e9
    return found


def _timed(
    call: Callable[..., Any], left: torch.Tensor, right: torch.Tensor, repeats: int = 10
) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call(left, right)
    if left.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


WHAT: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "book": book,
    "baseline": baseline,
    "generate": generated,
    "score": scored,
    "eco": guarded,
    "matmul": matmul,
}


def main() -> None:
    """Measure what the command line says; everything but the result goes to stderr."""
    what, weights, rows, *options = sys.argv[1:]
    reset_peak_memory()
    with contextlib.redirect_stdout(sys.stderr):
        result = WHAT[what](Path(weights), Path(rows), **dict(x.split("=") for x in options))
    where = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    print(json.dumps({**result, "peak_memory_bytes": peak_memory(), "where": where}))


if __name__ == "__main__":
    main()
