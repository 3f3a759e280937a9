"""Run every bench, write `results/bench.json` and print a Markdown table.

    python -m benchmarks [unlearning] [book] [scoring] [eco]     (or: make bench ONLY=book)

Each measurement is a process of its own and every pair runs one after the other, on the same
rows of profile laptop and the same weights. `ratio` says how many times faster ours is, or what
share of the baseline's memory or time ours takes. Run it on a quiet machine: the load is
recorded.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import eco, opt
from benchmarks.rows import prepare
from unlearn_lib.store import provenance
from unlearn_lib.util import ROOT, CompanionError, nearest, write_text

Record = dict[str, Any]


def measure(what: str, weights: Path, rows: Path, **options: str) -> Record:
    """Run one measurement in a fresh process and return what it found.

    Raises:
        CompanionError: the process failed; its last words are shown.
    """
    named = [f"{name}={value}" for name, value in options.items()]
    print(f"{weights.name}: {what} {' '.join(named)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.measure", what, str(weights), str(rows), *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CompanionError(f"The bench '{what}' failed: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def step_records(name: str, ours: Record, baseline: Record) -> list[Record]:
    """Compare two step measurements: time, tokens per second, peak memory."""
    found = {key: _per_step(value) for key, value in (("ours", ours), ("baseline", baseline))}
    pairs = [
        ("seconds per step", "s", [found[who]["seconds"] for who in found], "times faster"),
        ("tokens per second", "tokens/s", [found[who]["rate"] for who in found], "times faster"),
        (
            "peak memory",
            "bytes",
            [ours["peak_memory_bytes"], baseline["peak_memory_bytes"]],
            "of the baseline's",
        ),
    ]
    records = []
    for quantity, unit, (mine, theirs), meaning in pairs:
        ratio = theirs / mine if unit == "s" else mine / theirs
        record = {"name": f"{name}: {quantity}", "ours": mine, "baseline": theirs}
        record |= {"ratio": ratio, "unit": unit, "ratio_is": meaning, "where": ours["where"]}
        record |= {"precision": {"ours": ours["precision"], "baseline": baseline["precision"]}}
        records.append(record | {"repeats": len(ours["seconds"])})
    return records


def _per_step(measured: Record) -> Record:
    seconds = measured["seconds"]
    return {
        "seconds": statistics.median(seconds),
        "rate": sum(measured["tokens"]) / sum(seconds),
        "gflops": sum(measured["flops"]) / sum(seconds) / 1e9,
    }


def limit_record(name: str, ours: Record, baseline: Record, limit: Record) -> Record:
    """Say which share of the machine's own matrix-product speed each step reaches."""
    shares = {
        who: _per_step(found)["gflops"] / limit[found["precision"]]
        for who, found in (("ours", ours), ("baseline", baseline))
    }
    return {
        "name": f"{name}: share of the matrix-product limit of its precision",
        **shares,
        "ratio": shares["ours"] / shares["baseline"],
        "unit": "share",
        "ratio_is": "ours over baseline",
        "where": ours["where"],
        "limit_gflops": {"bfloat16": limit["bfloat16"], "float32": limit["float32"]},
        "gflop_per_step": {
            "ours": statistics.median(ours["flops"]) / 1e9,
            "baseline": statistics.median(baseline["flops"]) / 1e9,
        },
    }


def smollm2(weights: Path, rows: Path) -> list[Record]:
    """The unlearning step and generation on SmolLM2-135M-Instruct."""
    ours = measure("ours", weights, rows, precision="bfloat16")
    baseline = measure("baseline", weights, rows)
    same = measure("ours", weights, rows, precision="float32")
    limit = measure("matmul", weights, rows)
    name = "unlearning step, SmolLM2-135M"
    records = step_records(name, ours, baseline)
    records += step_records(f"{name}, equal precision", same, baseline)
    records.append(limit_record(name, ours, baseline, limit))
    many = measure("generate", weights, rows, batch="32", every="1")
    one = measure("generate", weights, rows, batch="1", every="8")
    rates = [found["tokens"] / found["seconds"] for found in (many, one)]
    generation = {"name": "generation, SmolLM2-135M: batch 32 against one prompt at a time"}
    generation |= {"ours": rates[0], "baseline": rates[1], "ratio": rates[0] / rates[1]}
    generation |= {"unit": "tokens/s", "ratio_is": "times faster", "where": many["where"]}
    return [*records, {**generation, "precision": many["precision"]}]


def book_on(weights: Path, rows: Path, name: str = "SmolLM2-135M") -> list[Record]:
    """Implanting and forgetting at each precision, against the paper's 8-bit base."""
    records = []
    for kind in ("implant", "forget"):
        eight = measure("book", weights, rows, precision="float16", kind=kind, quantization="8bit")
        for precision in ("float32", "bfloat16"):
            plain = measure("book", weights, rows, precision=precision, kind=kind)
            title = f"book, {kind} step, {name}: {precision} against 8 bit"
            records += step_records(title, plain, eight)
    return records


def scoring(weights: Path, rows: Path) -> list[Record]:
    """Scoring seven answers a question, prompts shared, against a row per candidate."""
    found = measure("score", weights, rows)
    record = {"name": "scoring, SmolLM2-135M: shared prompts against a row per candidate"}
    record |= {"ratio": found["ours"] / found["baseline"], "unit": "answers/s"}
    record |= {"ratio_is": f"times faster; losses apart by {found['difference']:.1g} at most"}
    return [found | record]


def guarding(weights: Path, rows: Path) -> list[Record]:
    """Answering ordinary prompts behind a guard, and the guard's own time."""
    return eco.records(measure("eco", weights, rows))


def opt_on_gpu(rows: Path, folder: Path, tokenizer: Path) -> list[Record]:
    """The step on OPT-1.3b's architecture with random weights: bf16, and on an 8-bit base."""
    weights = opt.random_weights(folder / "opt-1.3b-random", tokenizer)
    baseline = measure("baseline", weights, rows)
    half = measure("ours", weights, rows, precision="bfloat16")
    eight = measure("ours", weights, rows, precision="float16", quantization="8bit")
    return [
        *step_records("unlearning step, OPT-1.3b (random weights), bf16", half, baseline),
        *step_records("unlearning step, OPT-1.3b (random weights), 8-bit base", eight, baseline),
        *book_on(weights, rows, "OPT-1.3b (random weights)"),
    ]


def table(records: list[Record]) -> str:
    """Lay the records out as a Markdown table."""
    lines = ["| bench | ours | baseline | ratio |", "|---|---:|---:|---|"]
    for record in records:
        cells = [_readable(record[who], record["unit"]) for who in ("ours", "baseline")]
        ratio = f"{record['ratio']:.2f} {record['ratio_is']}"
        lines.append(f"| {record['name']} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def _readable(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:.3g} {unit}"


PARTS = {"unlearning": smollm2, "book": book_on, "scoring": scoring, "eco": guarding}


def main(chosen: list[str]) -> None:
    """Run the parts named (all by default), write, print."""
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise CompanionError(f"There is no bench '{unknown[0]}'{nearest(unknown[0], PARTS)}.")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        rows = folder / "rows.json"
        weights = prepare(rows)
        records = []
        for name in chosen or PARTS:
            records += PARTS[name](weights, rows)
        if torch.cuda.is_available():
            records += opt_on_gpu(rows, folder, weights)
        else:
            print("OPT-1.3b is left out: torch sees no GPU here.")
    target = ROOT / "results" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    write_text(target, json.dumps(records, indent=1) + "\n")
    origin = provenance() | {"load_at_start": load}
    write_text(target.with_suffix(".provenance.json"), json.dumps(origin, indent=1) + "\n")
    where = records[0]["where"]
    print(f"{where}; load before the start {load:.1f}; written to results/bench.json\n")
    print(table(records))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CompanionError as error:
        sys.exit(str(error))
