"""The registry of unlearning methods: a name, its terms, and where it comes from.

A method is a weighted sum of up to four terms, ε1·forget + ε2·mismatch + ε3·retain, and keep on
rows that were learned with the forget rows and are to stay; the weights come from the profile.
To add one: write its loss in `losses.py`, enter it here, and list it in a profile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_lib.unlearn import losses
from unlearn_lib.util import entry_of

Loss = Callable[..., losses.Tensor]


@dataclass(frozen=True)
class Method:
    """Which losses a method sums, and on which rows.

    Attributes:
        name: its key in `METHODS`.
        source: paper and place, or what it is for.
        forget: loss on the answers to be forgotten, or None.
        mismatch: where the K substitute answers to a forget question are drawn from: `retain`
            (random answers to other questions, as published) or `refusal` (short refusals among
            the harmless answers of the training split); None for no mismatch term.
        retain: loss on retain rows, or None.
        keep: loss on rows that were learned with the forget rows and are to stay, or None.
        retain_answers: those of the `data`, or the original model's `own` greedy answers, which
            keep the style of the data out of what is learned.
        forget_prompts, retain_prompts: score the prompts' tokens of forget or retain rows too
            (all real tokens).
        to_itself: compare with the model in training instead of the original one, a fault of
            released code (`released.py`).
        steers: its losses see activations of one block instead of logits.
    """

    name: str
    source: str
    forget: Loss | None = None
    mismatch: Literal["retain", "refusal"] | None = None
    retain: Loss | None = None
    keep: Loss | None = None
    retain_answers: Literal["data", "own"] = "data"
    forget_prompts: bool = False
    retain_prompts: bool = False
    to_itself: bool = False
    steers: bool = False


Terms = dict[str, Any]
GA: Terms = {"forget": losses.gradient_ascent}
NPO: Terms = {"forget": losses.npo}
GD: Terms = {"retain": losses.gradient_descent}
KL: Terms = {"retain": losses.forward_kl, "retain_prompts": True}
OWN_KL: Terms = {"retain": losses.forward_kl, "retain_answers": "own"}
KEEP: Terms = {"keep": losses.gradient_descent}
ME: Terms = {"forget": losses.maximum_entropy, "forget_prompts": True}
STEER = losses.activation_distance

SINGLE = [
    Method("ga", "gradient ascent; Yao et al. 2023", **GA),
    Method("ga_mismatch_kl", "Arora et al. 2024, section 3", mismatch="retain", **GA, **KL),
    Method("retain_only", "nothing is forgotten: what a change of style does alone", **GD),
    Method("npo", "negative preference optimisation; Zhang et al. 2024", **NPO),
    Method("mismatch_only", "the mismatch of Arora et al. 2024 alone", mismatch="retain"),
    Method("kl_only", "the KL term of Arora et al. 2024 alone: nothing is forgotten", **KL),
    Method("keep_kl", "CE on rows to keep, KL: no forget loss (retraining)", **OWN_KL, **KEEP),
    Method("npo_keep_kl", "ours: NPO, CE on rows to keep, KL", **NPO, **OWN_KL, **KEEP),
    Method("npo_refusal_kl", "ours: NPO, refusals, KL", mismatch="refusal", **NPO, **OWN_KL),
    Method("refusal_kl", "ours: refusals, KL; no forget loss", mismatch="refusal", **OWN_KL),
    Method("simnpo_gd", "SimNPO + CE; Fan et al. 2024", losses.simnpo, **GD),
    Method("wga_gd", "weighted gradient ascent + CE; Wang et al. 2025", losses.wga, **GD),
    Method("undial_gd", "UNDIAL, self-distillation, + CE; Dong et al. 2024", losses.undial, **GD),
    Method("rmu", "steered activations; Li et al. 2024", STEER, retain=STEER, steers=True),
]

FORGET_TERMS: dict[str, tuple[str, Terms]] = {
    "ga": ("gradient ascent", GA),
    "npo": ("negative preference optimisation; Zhang et al. 2024", NPO),
    "dpo": ("preference of a refusal over the answer", {"forget": losses.dpo}),
    "idk": ("CE on a refusal: the mismatch term with one refusal", {"mismatch": "refusal"}),
    "me": ("ME over question and answer", ME),
}
RETAIN_TERMS: dict[str, tuple[str, Terms]] = {
    "gd": ("CE on retain rows", GD),
    "kl": ("KL to the model before on retain rows", KL),
    "ap": ("AP, the answer over a refusal on retain rows", {"retain": losses.answer_preservation}),
}
GRID = [
    Method(f"{forget}_{retain}", f"Yuan et al. 2025: {first} + {second}", **terms, **others)
    for forget, (first, terms) in FORGET_TERMS.items()
    for retain, (second, others) in RETAIN_TERMS.items()
]
METHODS = {method.name: method for method in (*SINGLE, *GRID)}

NEEDS_REFERENCE = {losses.npo, losses.dpo, losses.undial, losses.forward_kl, STEER}
PAIRED = {losses.dpo, losses.answer_preservation}
"""Losses of an answer and a refusal behind the same question."""


def find_method(name: str) -> Method:
    """Return a registered method.

    Raises:
        CompanionError: unknown; names the nearest.
    """
    return entry_of(METHODS, name, "There is no method")
