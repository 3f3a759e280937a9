"""BLEURT (Sellam et al. 2020): how well a text says what a reference says, by a trained BERT.

The scores of a transformers port of its weights, such as Elron/bleurt-base-512. They are no
share: around 0 for unrelated texts, often below it, near 1 for the same text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unlearn_lib.errors import CompanionError


def bleurt_scores(
    folder: Path,
    references: Sequence[str],
    candidates: Sequence[str],
    batch_size: int = 32,
    device: str = "cpu",
) -> np.ndarray:
    """Score each candidate against its reference.

    Args:
        folder: local, with a BERT of one output and its tokenizer; nothing is fetched.
        references, candidates: [n] each; pairs too long for the model are cut, the longer text
            first.
        batch_size: pairs at once. Default 32.
        device: torch's name of a device. Default "cpu".

    Returns:
        float64 [n].

    Raises:
        CompanionError: no such model in the folder.
        ValueError: lengths differ.
    """
    if len(references) != len(candidates):
        raise ValueError(
            f"There are {len(references)} references and {len(candidates)} candidates: give one "
            "of each per row."
        )
    model, tokenizer = _loaded(folder, device)
    longest = model.config.max_position_embeddings
    scores = np.zeros(len(candidates))
    order = np.argsort([len(a) + len(b) for a, b in zip(references, candidates)], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        pairs = [references[row] for row in rows], [candidates[row] for row in rows]
        batch = tokenizer(
            *pairs, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits
        scores[rows] = logits[:, 0].double().cpu().numpy()
    return scores


def _loaded(folder: Path, device: str) -> tuple:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CompanionError(f"{folder} holds no whole BLEURT model: {reason}") from error
    if report["missing_keys"] or model.config.num_labels != 1:
        raise CompanionError(
            f"{folder} holds no BLEURT model: {model.config.num_labels} outputs instead of one "
            f"trained one; name another under 'evaluation.bleurt'."
        )
    return model.eval().to(device), tokenizer
