"""The registry of unlearning methods: a name, its terms, and where it comes from.

A method is a weighted sum of up to four terms, ε1·forget + ε2·mismatch + ε3·retain, and keep on
rows that were learned with the forget rows and are to stay; the weights come from the profile.
To add one: write its loss in `losses.py`, enter it here, and list it in a profile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from unlearn_lib import losses
from unlearn_lib.errors import CompanionError, nearest

Loss = Callable[..., losses.Tensor]
Mismatch = Literal["retain", "refusal"] | None


@dataclass(frozen=True)
class Method:
    """Which losses a method sums, and on which rows.

    Attributes:
        forget: loss on the answers to be forgotten, or None.
        mismatch: where the K substitute answers to a forget question are drawn from: `retain`
            (random answers to other questions, as published) or `refusal` (short refusals among
            the harmless answers of the training split); None for no mismatch term.
        retain: loss on retain rows, or None.
        keep: loss on rows that were learned with the forget rows and are to stay, or None.
        retain_answers: `given` in the data, or the original model's `own` greedy answers, which
            keep the style of the data out of what is learned.
        forget_prompts, retain_prompts: score the prompts' tokens of forget or retain rows too
            (all real tokens).
        to_itself: compare with the model in training instead of the original one, a fault of
            released code (`released.py`).
        steers: its losses see activations of one block instead of logits.
        source: paper and place, or what it is for.
    """

    forget: Loss | None
    mismatch: Mismatch
    retain: Loss | None
    source: str
    retain_answers: Literal["given", "own"] = "given"
    forget_prompts: bool = False
    retain_prompts: bool = False
    keep: Loss | None = None
    to_itself: bool = False
    steers: bool = False


METHODS: dict[str, Method] = {
    "ga": Method(losses.gradient_ascent, None, None, "gradient ascent; Yao et al. 2023"),
    "ga_mismatch_kl": Method(
        losses.gradient_ascent,
        "retain",
        losses.forward_kl,
        "Arora et al. 2024, update rule of section 3 (from Yao et al. 2023)",
        retain_prompts=True,
    ),
    "retain_only": Method(
        None,
        None,
        losses.gradient_descent,
        "no forgetting at all: shows how much a change of style alone lowers the harmful rate",
    ),
    "npo": Method(losses.npo, None, None, "negative preference optimisation; Zhang et al. 2024"),
    "mismatch_only": Method(
        None, "retain", None, "the random mismatch of Arora et al. 2024 alone: neither GA nor KL"
    ),
    "kl_only": Method(
        None,
        None,
        losses.forward_kl,
        "the KL term of Arora et al. 2024 alone: nothing is forgotten",
        retain_prompts=True,
    ),
    "keep_kl": Method(
        None,
        None,
        losses.forward_kl,
        "CE on rows to keep, KL on the original's own answers: no forget loss (retraining)",
        retain_answers="own",
        keep=losses.gradient_descent,
    ),
    "npo_keep_kl": Method(
        losses.npo,
        None,
        losses.forward_kl,
        "ours: NPO, CE on rows to keep, KL to the original on retain rows",
        retain_answers="own",
        keep=losses.gradient_descent,
    ),
    "npo_refusal_kl": Method(
        losses.npo,
        "refusal",
        losses.forward_kl,
        "ours: NPO, refusals for substitutes, KL on the original model's own answers",
        retain_answers="own",
    ),
    "refusal_kl": Method(
        None,
        "refusal",
        losses.forward_kl,
        "ours: refusals for substitutes, KL on the original model's own answers; no forget loss",
        retain_answers="own",
    ),
}


def _closer_look() -> dict[str, Method]:
    """The grid of Yuan et al. 2025: forget losses × retain losses."""
    forget: dict[str, tuple[Loss | None, Mismatch, str]] = {
        "ga": (losses.gradient_ascent, None, "gradient ascent"),
        "npo": (losses.npo, None, "negative preference optimisation; Zhang et al. 2024"),
        "dpo": (losses.dpo, None, "preference of a refusal over the answer"),
        "idk": (None, "refusal", "CE on a refusal: the mismatch term with one refusal"),
        "me": (losses.maximum_entropy, None, "ME, maximum entropy over question and answer"),
    }
    retain: dict[str, tuple[Loss, str]] = {
        "gd": (losses.gradient_descent, "CE on retain rows"),
        "kl": (losses.forward_kl, "KL to the model before on retain rows"),
        "ap": (losses.answer_preservation, "AP, the answer over a refusal on retain rows"),
    }
    return {
        f"{name}_{other}": Method(
            loss,
            mismatch,
            kept,
            f"Yuan et al. 2025: {what} + {whereby}",
            forget_prompts=loss is losses.maximum_entropy,
            retain_prompts=kept is losses.forward_kl,
        )
        for name, (loss, mismatch, what) in forget.items()
        for other, (kept, whereby) in retain.items()
    }


METHODS |= _closer_look() | {
    "simnpo_gd": Method(
        losses.simnpo, None, losses.gradient_descent, "SimNPO + CE; Fan et al. 2024"
    ),
    "wga_gd": Method(
        losses.wga, None, losses.gradient_descent, "weighted gradient ascent + CE; Wang et al. 2025"
    ),
    "undial_gd": Method(
        losses.undial,
        None,
        losses.gradient_descent,
        "UNDIAL, self-distillation with lowered logits, + CE; Dong et al. 2024",
    ),
    "rmu": Method(
        losses.activation_distance,
        None,
        losses.activation_distance,
        "RMU: activations steered to a random vector, kept on retain rows; Li et al. 2024",
        steers=True,
    ),
}

NEEDS_REFERENCE = (
    losses.npo,
    losses.dpo,
    losses.undial,
    losses.forward_kl,
    losses.activation_distance,
)
PAIRED = (losses.dpo, losses.answer_preservation)
"""Losses of an answer and a refusal behind the same question."""


def find_method(name: str) -> Method:
    """Return a registered method.

    Raises:
        CompanionError: unknown; names the nearest.
    """
    if name not in METHODS:
        raise CompanionError(f"There is no method '{name}'{nearest(name, METHODS)}.")
    return METHODS[name]
