"""Settings of experiment 4: what differs between scenarios, and what is refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib import profiles
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import find_method
from unlearn_lib.profiles import load_profile
from unlearn_lib.settings import SCENARIOS, Scenario, TofuMethodSettings, TofuSettings


def method(**changed: Any) -> TofuMethodSettings:
    given = {"name": "m", "uses": "me_gd", "label": "M", "steps": 6, "learning_rate": 1e-5}
    return TofuMethodSettings.model_validate(given | changed)


def block() -> dict[str, Any]:
    return yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())["tofu"]


def refusal(tmp_path: Path, changed: dict[str, Any]) -> str:
    """What is said of profile smoke with some keys of its block changed."""
    tree = yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())
    tree["tofu"] |= changed
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(CompanionError) as told:
        load_profile(path)
    message = str(told.value)
    assert message.startswith("smoke.yaml: ") and message.endswith(".") and "\n" not in message
    return message


def refused_scenarios(tmp_path: Path, scenarios: Any) -> str:
    first, *others = block()["methods"]
    return refusal(tmp_path, {"methods": [first | {"scenarios": scenarios}, *others]})


# --- scenarios of a method -------------------------------------------------------------------


def test_a_method_runs_in_the_fictitious_scenario_unless_told() -> None:
    assert method().scenarios == {"fictitious": {}}


def test_scenarios_are_names_or_what_differs_in_them() -> None:
    names = method(scenarios=["fictitious", "continual"])
    assert names == method(scenarios={"fictitious": {}, "continual": {}})


def test_within_a_scenario_only_what_differs_differs() -> None:
    """The paper's weights of ME + GD: 0.1, 1 and 0.5."""
    changes = {"fictitious": {}, "continual": {"forget_weight": 1.0},
               "real_world": {"forget_weight": 0.5, "learning_rate": 5e-6, "steps": 62}}  # fmt: skip
    given = method(forget_weight=0.1, scenarios=changes)
    assert given.within("fictitious") == given
    found = given.within("real_world")
    assert (found.forget_weight, found.learning_rate, found.steps) == (0.5, 5e-6, 62)
    assert given.within("continual") == given.model_copy(update={"forget_weight": 1.0})
    for scenario in SCENARIOS:
        there = given.within(scenario)
        assert (there.name, there.uses, there.label) == ("m", "me_gd", "M")
        assert isinstance(there, TofuMethodSettings)


def test_what_holds_within_a_scenario_is_checked_and_typed() -> None:
    found = method(scenarios={"continual": {"steps": "12", "beta": 1}}).within("continual")
    assert found.steps == 12 and isinstance(found.beta, float)


@pytest.mark.parametrize("fixed", ["name", "uses", "label", "scenarios"])
def test_what_cannot_differ_is_named(fixed: str, tmp_path: Path) -> None:
    message = refused_scenarios(tmp_path, {"continual": {fixed: "other"}})
    assert f"'{fixed}' cannot differ in scenario 'continual'" in message
    assert "tofu.methods.0.scenarios" in message


@pytest.mark.parametrize("key, right", [("stepps", "steps"), ("learning_rte", "learning_rate")])
def test_a_misspelt_key_in_a_scenario_gives_the_nearest_name(
    key: str, right: str, tmp_path: Path
) -> None:
    message = refused_scenarios(tmp_path, {"fictitious": {}, "real_world": {key: 1}})
    assert f"scenario 'real_world', unknown key '{key}' (did you mean '{right}'?)" in message


@pytest.mark.parametrize("key, value", [("steps", 0), ("beta", "much"), ("forget_weight", -1)])
def test_a_wrong_value_in_a_scenario_gives_its_place(key: str, value: Any, tmp_path: Path) -> None:
    message = refused_scenarios(tmp_path, {"continual": {key: value}})
    assert f"scenario 'continual', '{key}': " in message


@pytest.mark.parametrize(
    "scenarios",
    [["continal"], {"continal": {}}, [], {}, "continual", [["continual"]], {"continual": None}],
)
def test_what_is_no_scenario_is_refused(scenarios: Any, tmp_path: Path) -> None:
    assert "tofu.methods.0.scenarios" in refused_scenarios(tmp_path, scenarios)


# --- the whole block -------------------------------------------------------------------------


def test_the_real_world_needs_its_people(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"people": None})
    assert "methods run in real_world, but there is no 'people'; add that block" in message
    assert TofuSettings.model_validate(block() | {"people": {}}).people is not None


def test_without_the_real_world_nobody_is_needed() -> None:
    methods = [{**each, "scenarios": ["fictitious"]} for each in block()["methods"]]
    assert TofuSettings.model_validate(block() | {"people": None, "methods": methods})


@pytest.mark.parametrize("quantization", ["8bit", "nf4"])
def test_a_quantised_model_is_refused(quantization: str, tmp_path: Path) -> None:
    models = [each | {"quantization": quantization} for each in block()["models"]]
    assert "a quantised model does not allow" in refusal(tmp_path, {"models": models})


@pytest.mark.parametrize(
    "key, value",
    [("references", {"embedded/tiny-op": "x"}), ("real_world_models", ["embedded/tiny-op"])],
)
def test_a_model_that_is_named_and_not_there_gives_the_nearest_name(
    key: str, value: Any, tmp_path: Path
) -> None:
    message = refusal(tmp_path, {key: value})
    assert f"'{key}' names 'embedded/tiny-op', no model here (did you mean 'embedded/tiny-opt'?)" in message  # fmt: skip


def names(settings: TofuSettings, scenario: Scenario, model: str) -> list[str]:
    return settings.methods_of(scenario, model)


def test_every_model_runs_all_scenarios_unless_told() -> None:
    settings = load_profile("smoke").tofu
    for scenario in SCENARIOS:
        expected = [each.name for each in settings.methods if scenario in each.scenarios]
        assert names(settings, scenario, "embedded/tiny-opt") == expected != []


def test_models_of_the_real_world_run_that_alone_and_the_others_all_but_it() -> None:
    models = [{"id": "one"}, {"id": "two"}]
    changed = {"models": models, "real_world_models": ["two"]}
    settings = TofuSettings.model_validate(block() | changed)
    for scenario in SCENARIOS:
        expected = [each.name for each in settings.methods if scenario in each.scenarios]
        who, other = ("two", "one") if scenario == "real_world" else ("one", "two")
        assert names(settings, scenario, who) == expected
        assert names(settings, scenario, other) == []


@pytest.mark.parametrize("name", ["smoke", "laptop", "paper"])
def test_methods_of_every_profile_are_known_in_every_scenario(name: str) -> None:
    settings = load_profile(name).tofu
    for each in settings.methods:
        for scenario in each.scenarios:
            find_method(each.within(scenario).uses)
            assert settings.method(each.name).within(scenario) == each.within(scenario)


def test_the_paper_s_weights_of_me() -> None:
    me = load_profile("paper").tofu.method("me_gd")
    weights = [me.within(scenario).forget_weight for scenario in SCENARIOS]
    assert dict(zip(SCENARIOS, weights, strict=True)) == {
        "fictitious": 0.1, "continual": 1.0, "real_world": 0.5,
    }  # fmt: skip
    assert me.within("real_world").learning_rate == 5e-6
