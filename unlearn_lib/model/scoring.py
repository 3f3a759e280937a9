"""Log-probabilities of known answers, with prompts shared and nothing padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import by_length, pack, packed_logits
from unlearn_lib.model.tokens import Example


@dataclass
class Scores:
    """What a model says of R answers, in the order of the examples.

    Attributes:
        nll: float64 [R], summed over each answer's tokens, in nats.
        counts: int64 [R], tokens per answer.
        matches: for each answer, bool [its tokens]: where the most likely token is the true one,
            the tokens before it being the true ones.
        first: float64 [R], the logit of each answer's first scored token.
        tokens: for each answer whose statistics were asked for, float64 [its tokens, 3]: the
            token's log-probability, and mean and standard deviation of the log-probability of
            the next token under the model's own distribution (Min-K++); else [0, 3].
    """

    nll: np.ndarray
    counts: np.ndarray
    matches: list[np.ndarray]
    first: np.ndarray
    tokens: list[np.ndarray]

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
        first_statistics: fill `tokens` of each example's first answer.
    """
    model, total = language_model.model, sum(len(example.answers) for example in examples)
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    nll, counts, first = np.zeros(total), np.zeros(total, np.int64), np.zeros(total)
    matches, tokens = [np.zeros(0, bool)] * total, [np.zeros((0, 3))] * total
    share = not getattr(model, "guarded", False)
    for places in tqdm(by_length(examples, most_tokens), desc="scoring", leave=False, disable=None):
        packed = pack([examples[place] for place in places], share)
        logits = packed_logits(model, packed)
        labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
        answers = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in places])
        lengths = torch.bincount(packed.rows).tolist()
        costs = []
        for answer, part, true in zip(answers, logits.split(lengths), labels.split(lengths)):
            log_p = part.float().log_softmax(-1)
            own = log_p.gather(1, true[:, None])[:, 0]
            costs.append(-own)
            first[answer] = part[0, true[0]]
            matches[answer] = (part.argmax(-1) == true).cpu().numpy()
            if first_statistics and answer in starts:
                tokens[answer] = _statistics(log_p, own)
        sums = torch.zeros(len(answers), device=logits.device).index_add(0, rows, torch.cat(costs))
        nll[answers], counts[answers] = sums.double().cpu().numpy(), lengths
    return Scores(nll, counts, matches, first, tokens)


def _statistics(log_p: torch.Tensor, own: torch.Tensor) -> np.ndarray:
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    return torch.stack((own, mean, variance.sqrt()), 1).double().cpu().numpy()
