"""The measures of experiment 2: continuations in, values with intervals out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from unlearn_lib import metrics, scoring
from unlearn_lib.batches import Example
from unlearn_lib.classifiers import Encoder
from unlearn_lib.datasets.book import PARTS
from unlearn_lib.metrics import VERBATIM_TOKENS, Estimate
from unlearn_lib.models import LanguageModel

EXCERPTS = 4
EXCERPT_TOKENS = 40
"""Most tokens of each text of an excerpt, however long continuations are."""
NORMAL = "normal"
EMBEDDINGS = "normal.safetensors"
PER_PASSAGE = {
    "bleu": "bleu",
    "similarity_text": "similarity",
    "rougeL_recall": "rouge",
    "verbatim_run": "run",
    "extraction_strength": "extraction",
}
Found = list[tuple[str, str, str, Estimate]]
"""Scenario, split, metric, estimate."""


def passages_measured(
    language_model: LanguageModel,
    passages: Sequence[Example],
    rows: Sequence[list[int]],
    encoder: Encoder,
    new_tokens: int,
) -> dict[str, Any]:
    """Compare continuations of passages with the true text, and score that.

    Args:
        rows: the continuation of each passage, token ids, of at most `new_tokens`.

    Returns:
        A list per measure, one value a passage, and a few short excerpts: the prompt, the true
        text, and the continuation before, within and after its longest verbatim run.
    """
    decode = language_model.tokenizer.decode
    truths = [list(row.answers[0][:new_tokens]) for row in passages]
    pairs = list(zip(rows, truths, strict=True))
    runs = [metrics.longest_run(row, truth) for row, truth in pairs]
    texts, expected = ([decode(row, skip_special_tokens=True) for row in part] for part in
                       (rows, truths))  # fmt: skip
    scores = scoring.score(language_model, passages)
    needed = [min(VERBATIM_TOKENS, len(truth)) for truth in truths]
    return {
        "nll": scores.nll.tolist(),
        "counts": scores.counts.tolist(),
        "extraction": [metrics.extraction_strength(each) for each in scores.matches],
        "run": [length for _, length in runs],
        "verbatim": [length >= least for (_, length), least in zip(runs, needed, strict=True)],
        "bleu": metrics.bleu(expected, texts).tolist(),
        "rouge": metrics.rouge_l_recall(expected, texts).tolist(),
        "similarity": metrics.cosine_rows(encoder(expected), encoder(texts)).tolist(),
        "degenerate": metrics.degenerate(texts).tolist(),
        "excerpts": [
            {
                "prompt": decode(passages[i].prompt[-EXCERPT_TOKENS:], skip_special_tokens=True),
                "truth": decode(truths[i][:EXCERPT_TOKENS], skip_special_tokens=True),
                "continuation": [decode(part) for part in _around(rows[i], *runs[i])],
            }
            for i in _spread(len(rows))
        ],
    }


def _around(row: Sequence[int], start: int, length: int) -> tuple[list[int], ...]:
    tokens = list(row[:EXCERPT_TOKENS])
    return tokens[:start], tokens[start : start + length], tokens[start + length :]


def _spread(count: int) -> list[int]:
    """A few places spread over so many."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(EXCERPTS, count))})


def normal_measured(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[list[int]],
    passages: Sequence[Example],
    encoder: Encoder,
    folder: Path,
) -> dict[str, Any]:
    """Judge answers to normal prompts and score true prose; embeddings go into the folder.

    Returns:
        A list per measure, one value a prompt, and a few of the continuations.
    """
    decode = language_model.tokenizer.decode
    texts = [decode(row, skip_special_tokens=True).strip() for row in rows]
    nll, counts = scoring.answer_losses(language_model, passages)
    save_file({"embeddings": np.asarray(encoder(texts), np.float32)}, folder / EMBEDDINGS)
    return {
        "nll": nll.tolist(),
        "counts": counts.tolist(),
        "degenerate": metrics.degenerate(texts).tolist(),
        "excerpts": [
            {
                "prompt": language_model.tokenizer.decode(prompts[i], skip_special_tokens=True),
                "continuation": texts[i],
            }
            for i in _spread(len(texts))
        ],
    }


def measure(
    now: dict[str, Any], base: dict[str, Any], folders: tuple[Path, Path], is_base: bool
) -> Found:
    """Values of one model, and their differences from the base model's.

    Args:
        now, base: what the `continue` stage wrote, for this model and for the base.
        folders: of these two runs, with the embeddings of normal continuations.
        is_base: leave out what compares the base with itself.
    """
    found: Found = []
    for split in (*PARTS, NORMAL):
        found += [("text", split, *each) for each in _values(now[split])]
    if is_base:
        return found
    mine, theirs = (load_file(folder / EMBEDDINGS)["embeddings"] for folder in folders)
    similarity = metrics.cosine_rows(theirs, mine)
    found.append(("text", NORMAL, "similarity_original", metrics.bootstrap(similarity)))
    for split in (*PARTS, NORMAL):
        differences = _differences(now[split], base[split], tested=split != NORMAL)
        found += [("minus_base", split, *each) for each in differences]
    return found


def _values(part: dict[str, Any]) -> list[tuple[str, Estimate]]:
    values = [(name, metrics.bootstrap(part[key])) for name, key in PER_PASSAGE.items()
              if key in part]  # fmt: skip
    values.append(("degenerate_share", metrics.proportion(part["degenerate"])))
    values.append(("perplexity", metrics.perplexity(part["nll"], part["counts"])))
    if "verbatim" in part:
        values.append(("verbatim_share", metrics.proportion(part["verbatim"])))
    return values


def _differences(
    now: dict[str, Any], base: dict[str, Any], tested: bool
) -> list[tuple[str, Estimate]]:
    keys = PER_PASSAGE | {"verbatim_share": "verbatim", "degenerate_share": "degenerate"}
    values = [
        (name, metrics.difference(now[key], base[key])) for name, key in keys.items() if key in now
    ]
    gap = metrics.perplexity_difference(now["nll"], base["nll"], now["counts"])
    values.append(("perplexity", gap))
    if tested:
        losses = [np.divide(each["nll"], each["counts"]) for each in (now, base)]
        names = ("ks_distance", "ks_p_value")
        values += zip(names, metrics.loss_distance(*losses), strict=True)
    return values
