"""The rows of the benches: real ones, tokenised once and read by every measured process."""

import json
from pathlib import Path
from typing import Any

from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MethodSettings
from unlearn_lib.unlearn.steps import Pools

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPTS = 64
SEED = 0
STEP = MethodSettings(
    uses="ga_mismatch_kl",
    steps=6,
    batch_size=2,
    learning_rate=2e-4,
    schedule="constant",
    forget_weight=0.5,
    mismatch_answers=5,
)


def prepare(path: Path) -> Path:
    """Tokenise profile laptop's training rows and held-out prompts into a JSON file.

    Returns:
        the folder of the model's weights.
    """
    from transformers import AutoTokenizer

    from unlearn_lib.assets import find_model
    from unlearn_lib.data import harm
    from unlearn_lib.model.tokens import TextEncoder
    from unlearn_lib.settings import HarmData

    chosen = HarmData(forget="human_scored", retain="truthful_qa", template="chat")
    folder = find_model(MODEL).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = TextEncoder(
        tokenizer, chosen.template, chosen.prompt_tokens, chosen.answer_tokens, context=2048
    )
    data = harm.load(chosen, encoder.fits)
    examples = {
        "forget": [encoder.example(row.question, row.answer) for row in data.forget],
        "retain": [encoder.example(row.question, *row.answers) for row in data.retain],
    }
    content: dict[str, Any] = {
        name: [[e.prompt, e.answers] for e in found] for name, found in examples.items()
    }
    questions = data.evaluation[:PROMPTS]
    content["prompts"] = [encoder.prompt(question) for question in questions]
    path.write_text(json.dumps(content))
    return folder


def read_pools(path: Path) -> Pools:
    """Read the rows that steps draw from; substitutes are any answers to normal questions."""
    content = json.loads(path.read_text())
    forget, retain = (
        [Example(tuple(prompt), tuple(map(tuple, answers))) for prompt, answers in content[name]]
        for name in ("forget", "retain")
    )
    substitutes = [answer for example in retain for answer in example.answers]
    return Pools(forget, [substitutes] * len(forget), retain)


def read_prompts(path: Path) -> list[list[int]]:
    """Read the held-out prompts."""
    return json.loads(path.read_text())["prompts"]
