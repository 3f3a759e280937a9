"""Every data set that a profile can name, or that the code fetches, has a card with a licence."""

import ast
import hashlib
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from unlearn_lib import settings
from unlearn_lib.util import EMBEDDED, ROOT

TEXTS = {path.stem: path.read_text("utf-8") for path in (ROOT / "data_cards").glob("*.md")}
CARDS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load(text.split("---\n")[1]) for name, text in TEXTS.items()
}
FILES = {
    Path(file["path"]).name: (name, file["sha256"])
    for name, card in CARDS.items()
    for file in card["companion"]["files"]
}
HUB_IDS = {card["companion"].get("hub_id") for card in CARDS.values()} | {"pyrit/harm"}
CARD_OF = {"human_scored": "pyrit_harm", "jigsaw": "jigsaw_toxic_comments", "locuslab/TOFU": "tofu"}
"""Choices in a profile whose card has another name."""
CHOICES = (
    *((settings.HarmData, name) for name in ("forget", "retain")),
    *((settings.BookData, name) for name in ("retain", "questions")),
    (settings.AuthorsData, "source"),
    (settings.ScienceData, "source"),
    (settings.JudgeSettings, "data"),
    (settings.GuardSettings, "general"),
)


def names_in(annotation: Any) -> set[str]:
    """The names that a type allows: those of its Literals."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {name for part in get_args(annotation) for name in names_in(part)}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_a_licence(name: str) -> None:
    assert CARDS[name]["license"]
    assert re.search(r"^## Licence\n\S", TEXTS[name], re.M)


@pytest.mark.parametrize("path", sorted(EMBEDDED.iterdir()), ids=lambda path: path.name)
def test_an_embedded_file_is_on_a_card_that_says_cc0(path: Path) -> None:
    card, sha256 = FILES[path.name]
    assert CARDS[card]["license"] == "cc0-1.0" and "\n## Licence\nCC0" in TEXTS[card]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("block, field", CHOICES)
def test_what_a_profile_can_choose_has_a_card(block: type[settings.Settings], field: str) -> None:
    names = names_in(block.model_fields[field].annotation) - {"embedded", "files"}
    assert names and {CARD_OF.get(name, name) for name in names} <= set(CARDS)


def test_what_the_code_fetches_has_a_card() -> None:
    sources = [path.read_text("utf-8") for path in EMBEDDED.parent.glob("*.py")]
    trees = [ast.parse(text) for text in sources if "find_dataset" in text]
    values = {n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    ids = {v for v in values if isinstance(v, str) and re.fullmatch(r"[\w-]+/[\w.-]+", v)}
    assert ids and ids <= HUB_IDS
