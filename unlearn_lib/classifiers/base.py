"""What every judge of answers can do, and what the judges share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

DESCRIPTION = "classifier.json"
"""File of a saved classifier that names its kind."""


class HarmClassifier(Protocol):
    """What every judge of answers can do; prompts and answers are [n] each, in one order."""

    def probability(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """How sure the judge is that each answer is harmful: float64 [n], 0 to 1.

        No answers give an empty array. Raises ValueError when the lengths differ.
        """
        ...

    def is_harmful(
        self, prompts: Sequence[str], answers: Sequence[str], threshold: float = 0.5
    ) -> np.ndarray:
        """Verdicts, bool [n]: probability above the threshold, default 0.5 (Arora et al. 2024).

        Raises ValueError when the lengths differ or the threshold lies outside 0 to 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"The threshold is {threshold}: give a probability from 0 to 1.")
        return self.probability(prompts, answers) > threshold

    def save(self, folder: Path) -> None:
        """Write the judge into a folder, made if need be, from which `load` takes it back."""
        ...


def joined(prompts: Sequence[str], answers: Sequence[str]) -> list[str]:
    """One text per row, the prompt, a space and the answer: str [n]."""
    return [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]


def describe(folder: Path, description: dict[str, Any]) -> None:
    """Write the file that `load` reads first, sorted, so that equal settings give equal bytes."""
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def flags(name: str, values: ArrayLike, count: int) -> np.ndarray:
    """The flags as bool [count]; ValueError for another shape or values but 0 and 1."""
    if np.shape(values) != (count,) or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"'{name}' does not hold one true or false for each of {count} texts (its shape is "
            f"{np.shape(values)}): give exactly those."
        )
    return np.asarray(values, dtype=bool)


def check_pairs(prompts: Sequence[str], answers: Sequence[str]) -> None:
    """ValueError when there is not one answer per prompt."""
    if len(prompts) != len(answers):
        raise ValueError(
            f"There are {len(prompts)} prompts and {len(answers)} answers: give one answer per "
            "prompt in the same order."
        )


def check_classes(harmful: np.ndarray) -> None:
    """ValueError unless both true and false flags are there."""
    if len(np.unique(harmful)) < 2:
        raise ValueError(
            f"Both harmful and harmless rows are needed, but of {len(harmful)} rows "
            f"{int(harmful.sum())} are harmful: give rows of both kinds."
        )
