"""The guard: which prompts are flagged, which of their tokens are corrupted, and how.

It reads plain texts and knows no model, so that one guard serves any; only the strength belongs to
one model, whose embeddings it was searched for.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unlearn_lib import assets
from unlearn_lib.eco.calibration import flagged
from unlearn_lib.eco.classifier import PromptClassifier
from unlearn_lib.eco.tokens import SELECTORS, NerModel, Span
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import CorruptionSettings

VERSION = 1
DESCRIPTION, STRENGTH = "eco.json", "strength.safetensors"


@dataclass(frozen=True, eq=False)
class Guard:
    """What stands in front of a model.

    Attributes:
        task: what it was trained for; it is refused for another.
        classifier: says how likely a prompt belongs to what is to be forgotten.
        threshold: a prompt is flagged above it; 0 to 1.
        corruption: what happens to a flagged prompt, and to which of its tokens.
        strength: of the corruption, or one for each component of an embedding.
        seed: of the corruption's noise, together with the prompt's text.
    """

    task: str
    classifier: PromptClassifier
    threshold: float
    corruption: CorruptionSettings
    strength: float | np.ndarray
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise CompanionError(
                f"The guard's threshold is {self.threshold}; give one from 0 to 1, or calibrate it."
            )

    @functools.cached_property
    def selector(self) -> Callable[[str], list[Span]]:
        """What finds the spans of a prompt that are corrupted."""
        if self.corruption.ner is not None:
            return NerModel.load(assets.find_model(self.corruption.ner).folder)
        return SELECTORS[self.corruption.tokens]

    def flags(self, prompts: Sequence[str]) -> np.ndarray:
        """Which prompts are to be corrupted, bool [n].

        Raises:
            CompanionError: a prompt that cannot be judged: it is refused, and with it the batch.
        """
        if not len(prompts):
            return np.zeros(0, dtype=bool)
        return flagged(self.classifier.probability(prompts), self.threshold)

    def save(self, folder: Path, **more: Any) -> None:
        """Write the guard: safetensors and JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (DESCRIPTION, STRENGTH):
            (folder / name).unlink(missing_ok=True)
        self.classifier.save(folder / "classifier")
        vector = isinstance(self.strength, np.ndarray)
        if vector:
            save_file({"strength": np.asarray(self.strength, np.float64)}, folder / STRENGTH)
        described = {
            "version": VERSION,
            "task": self.task,
            "threshold": self.threshold,
            "corruption": self.corruption.model_dump(mode="json"),
            "strength": None if vector else float(self.strength),
            "seed": self.seed,
            **more,
        }
        text = json.dumps(described, indent=1, sort_keys=True) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, task: str | None = None) -> "Guard":
        """What `save` wrote.

        Args:
            task: what the guard is wanted for; None: whatever it was trained for.

        Raises:
            CompanionError: no guard there, a damaged one, or one of another task.
        """
        described = read_description(folder)
        found = described["task"]
        if task is not None and found != task:
            raise CompanionError(
                f"The guard in {folder} was trained for the task '{found}', not for '{task}'; "
                "load the right one, or train one."
            )
        try:
            strength = described["strength"]
            if strength is None:
                strength = load_file(folder / STRENGTH)["strength"]
            return cls(
                found,
                PromptClassifier.load(folder / "classifier"),
                float(described["threshold"]),
                CorruptionSettings.model_validate(described["corruption"]),
                strength if isinstance(strength, np.ndarray) else float(strength),
                int(described["seed"]),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _broken(folder, error) from error


def judged(classifier: PromptClassifier, prompts: Sequence[str]) -> np.ndarray:
    """The classifier's probability for each prompt, 1 for one that it cannot read: float64 [n]."""
    scores = np.ones(len(prompts))
    readable = []
    for place, prompt in enumerate(prompts):
        with contextlib.suppress(CompanionError):
            classifier.check(prompt)
            readable.append(place)
    if readable:
        scores[readable] = classifier.probability([prompts[place] for place in readable])
    return scores


def read_description(folder: Path) -> dict[str, Any]:
    """A saved guard's JSON, or one sentence on why it cannot be had."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = described["version"]
        missing = {"task", "threshold", "corruption", "strength", "seed"} - set(described)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(folder, error) from error
    if version != VERSION or missing:
        raise CompanionError(
            f"The guard in {folder} is of version {version} and lacks {sorted(missing)}; this "
            f"library reads version {VERSION}: train it again."
        )
    return described


def _broken(folder: Path, error: Exception) -> CompanionError:
    reason = " ".join(str(error).split())
    return CompanionError(
        f"There is no whole guard in {folder} ({type(error).__name__}: {reason}); train it again."
    )
