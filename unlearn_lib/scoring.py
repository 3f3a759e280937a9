"""Log-probabilities of given answers, with prompts shared and nothing padded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from unlearn_lib.batches import Example, by_length, pack, packed_logits
from unlearn_lib.losses import answer_nll
from unlearn_lib.models import LanguageModel

ROWS_AT_ONCE = 32


@dataclass
class Scores:
    """What a model says of R given answers, in the order given.

    Attributes:
        nll: float64 [R], summed over each answer's tokens, in nats.
        counts: int64 [R], tokens per answer.
        matches: for each answer, bool [its tokens]: where the most likely token is the true one,
            the tokens before it being the true ones.
        tokens: for each answer whose statistics were asked for, float64 [its tokens, 3]: the
            token's log-probability, and mean and standard deviation of the log-probability of
            the next token under the model's own distribution (Min-K++); else empty.
    """

    nll: np.ndarray
    counts: np.ndarray
    matches: list[np.ndarray]
    tokens: list[np.ndarray] = field(default_factory=list)

    @property
    def mean(self) -> np.ndarray:
        """Nats per token of each answer, float64 [R]."""
        return self.nll / self.counts


@torch.inference_mode()
def score(
    language_model: LanguageModel,
    examples: Sequence[Example],
    most_tokens: int = 1024,
    first_statistics: bool = False,
) -> Scores:
    """Score the answers of examples; a prompt with K answers is read once.

    Args:
        examples: prompts with one or more answers each.
        most_tokens: length of a packed row.
        first_statistics: give `tokens` of each example's first answer.
    """
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    empty = np.zeros(0, dtype=bool)
    scores = Scores(
        np.zeros(starts[-1]), np.zeros(starts[-1], np.int64), [empty] * starts[-1],
        [np.zeros((0, 3))] * starts[-1],
    )  # fmt: skip
    share = not getattr(language_model.model, "guarded", False)
    for places in tqdm(by_length(examples, most_tokens), desc="scoring", leave=False, disable=None):
        packed = pack([examples[place] for place in places], share)
        logits = packed_logits(language_model.model, packed)
        labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
        target = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in places])
        scores.nll[target] = answer_nll(logits, labels, rows, "sum").double().cpu().numpy()
        scores.counts[target] = torch.bincount(packed.rows).numpy()
        right = (logits.argmax(-1) == labels).cpu().numpy()
        ends = np.cumsum(scores.counts[target])[:-1]
        for place, flags in zip(target, np.split(right, ends), strict=True):
            scores.matches[place] = flags
        if first_statistics:
            first = np.isin(target, starts[:-1])
            chosen = torch.from_numpy(first)[packed.rows].to(logits.device)
            found = _statistics(logits[chosen], labels[chosen])
            lengths = np.cumsum(scores.counts[target[first]])[:-1]
            for place, part in zip(target[first], np.split(found, lengths), strict=True):
                scores.tokens[place] = part
    return scores


def _statistics(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    parts = []
    for some, true in zip(logits.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        log_p = some.float().log_softmax(-1)
        p = log_p.exp()
        mean = (p * log_p).sum(-1)
        variance = (p * (log_p - mean[:, None]).square()).sum(-1)
        own = log_p.gather(1, true[:, None])[:, 0]
        parts.append(torch.stack((own, mean, variance.sqrt()), 1).double().cpu())
    return torch.cat(parts).numpy()


def answer_losses(
    language_model: LanguageModel, examples: Sequence[Example], most_tokens: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Return `Scores.nll` and `Scores.counts` alone."""
    scores = score(language_model, examples, most_tokens)
    return scores.nll, scores.counts
