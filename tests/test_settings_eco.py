"""Settings of experiment 3: whose models are guarded, and what is refused in a sentence."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib import profiles
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import Profile, load_profile
from unlearn_lib.settings import TASKS, EcoSettings, GuardSettings, SearchSettings, Task

TINY = "embedded/tiny-opt"
SCIENCE = {"source": "embedded"}


@functools.cache
def smoke() -> str:
    return json.dumps(yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text()))


def tree() -> dict[str, Any]:
    """Profile smoke as it is read, anew."""
    return json.loads(smoke())


def refusal(tmp_path: Path, **changed: Any) -> str:
    """What is said of profile smoke with some keys of its block changed."""
    content = tree()
    content["eco"] |= changed
    path = tmp_path / "smoke.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(CompanionError) as told:
        load_profile(path)
    message = str(told.value)
    assert message.startswith("smoke.yaml: ") and message.endswith(".") and "\n" not in message
    return message


def profile(**changed: Any) -> Profile:
    """Profile smoke with some keys of blocks changed: `eco={...}`."""
    content = tree()
    for block, values in changed.items():
        content[block] |= values
    return Profile.model_validate(content)


# --- a guard -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guard, said",
    [
        ({"strenght": 1}, "unknown key 'eco.guards.entities.strenght' (did you mean 'strength'?)"),
        ({"search": {"step": 3}}, "'eco.guards.entities.search.step' (did you mean 'steps'?)"),
        ({"corruption": {"name": "reverse"}}, "'eco.guards.entities.corruption.name'"),
        ({"corruption": {"dims": 0}}, "'eco.guards.entities.corruption.dims'"),
        ({"corruption": {"tokens": "every", "ner": "a/b"}}, "'ner' finds names, but 'tokens' is"),
        ({"corruption": {"ner": "a/b"}}, "'ner' finds names, but 'tokens' is 'every'"),
        ({"strength": 0}, "'eco.guards.entities.strength'"),
        ({"threshold": -0.1}, "'eco.guards.entities.threshold'"),
        ({"threshold": 1}, "'eco.guards.entities.threshold'"),
        ({"false_positive_rate": 0}, "'eco.guards.entities.false_positive_rate'"),
        ({"false_positive_rate": 1}, "'eco.guards.entities.false_positive_rate'"),
        ({"search": {"start": 0.05}}, "'start' 0.05 and 'smallest' 0.1: every search starts"),
        ({"search": {"smallest": 0, "start": 1}}, "'start' 1 and 'smallest' 0"),
        ({"search": {"logarithmic": True, "start": -3, "smallest": -2}}, "'start' -3 and"),
        ({"search": {"questions": 1}}, "'eco.guards.entities.search.questions'"),
        ({"classifier": {"epochs": 1}}, "the key 'eco.guards.entities.classifier.base' is missing"),
        ({"classifier": {"base": "a", "most": 3}}, "'eco.guards.entities.classifier.most'"),
    ],
)
def test_a_guard_that_cannot_be_is_refused(guard: Any, said: str, tmp_path: Path) -> None:
    guards = tree()["eco"]["guards"] | {"entities": guard}
    assert said in refusal(tmp_path, guards=guards)


@pytest.mark.parametrize("threshold", [0, 0.5, 0.999])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    assert GuardSettings(threshold=threshold).threshold == threshold


def test_a_logarithmic_search_may_start_below_nothing() -> None:
    chosen = SearchSettings(logarithmic=True, start=-2, smallest=-2, perturbation=0.5)
    assert (chosen.start, chosen.smallest) == (-2, -2)


def test_the_search_s_defaults_are_the_released_ones() -> None:
    chosen = SearchSettings()
    assert (chosen.steps, chosen.learning_rate) == (10, 100)
    assert (chosen.start, chosen.smallest, chosen.perturbation) == (0.1, 0.1, 0.0999)


# --- the whole block ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guards, said", [({}, "eco.guards"), ({"entity": {}}, "eco.guards.entity")]
)
def test_tasks_are_named(guards: Any, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, guards=guards)


def test_the_science_needs_its_guard_and_its_guard_needs_it(tmp_path: Path) -> None:
    said = "'guards.science' and 'science' go together; give both, or neither"
    assert said in refusal(tmp_path, science=None)
    assert said in refusal(tmp_path, guards={"entities": {}})
    neither = profile(eco={"guards": {"entities": {}}, "science": None})
    assert neither.eco.science is None and neither.guarded_tasks(TINY) == ("entities",)


@pytest.mark.parametrize(
    "science, said",
    [
        ({"source": "wmpd"}, "eco.science.source"),
        ({"source": "wmdp", "subjects": []}, "eco.science.subjects"),
        ({"source": "wmdp", "subjects": ["physics"]}, "eco.science.subjects.0"),
        ({"rows": 3}, "eco.science.rows"),
        ({"row": 8}, "unknown key 'eco.science.row' (did you mean 'rows'?)"),
    ],
)
def test_questions_that_cannot_be_are_refused(science: Any, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, science=science)


@pytest.mark.parametrize(
    "beside, said",
    [
        ({"entities": ["ga_dg"]}, "'eco.beside.entities' names the method 'ga_dg', none of that"),
        ({"entities": ["arora"]}, "'eco.beside.entities' names the method 'arora'"),
        ({"book": ["me_gd"]}, "'eco.beside.book' names the method 'me_gd'"),
        ({"science": ["ga_gd"]}, "'eco.beside.science"),
    ],
)
def test_methods_beside_are_those_of_the_other_experiment(
    beside: Any, said: str, tmp_path: Path
) -> None:
    assert said in refusal(tmp_path, beside=beside)


def test_the_nearest_method_is_named(tmp_path: Path) -> None:
    assert "(did you mean 'ga_gd'?)" in refusal(tmp_path, beside={"entities": ["ga_dg"]})


def test_a_model_needs_a_task(tmp_path: Path) -> None:
    models = [*tree()["eco"]["models"], {"id": "facebook/opt-1.3b"}]
    said = refusal(tmp_path, models=models, science_models=[TINY])
    assert "'eco.models' lists 'facebook/opt-1.3b', which has no task: add it to the models" in said


def test_a_block_that_does_not_run_is_not_checked_against_the_others() -> None:
    content = tree() | {"only": ["tofu"]}
    content["eco"]["beside"] = {"entities": ["another"]}
    assert Profile.model_validate(content).eco.beside["entities"] == ("another",)


def test_methods_of_the_science_may_be_none() -> None:
    assert EcoSettings.model_validate(tree()["eco"] | {"methods": []}).methods == ()


# --- a profile ---------------------------------------------------------------------------------


def test_labels_are_the_guard_s_the_prompt_s_and_every_method_s() -> None:
    found = profile().labels("eco")
    assert found == {
        "eco": "ECO (guard)", "prompting": "prompting", "ga_gd": "GA + GD",
        "idk_ap": "IDK + AP", "arora": "GA + mismatch + KL (published)",
    }  # fmt: skip
    assert list(found)[:2] == ["eco", "prompting"]
    assert set(profile().labels("tofu")) == {method.name for method in profile().tofu.methods}


@pytest.mark.parametrize("name", ["smoke", "laptop", "paper"])
def test_one_name_has_one_label_in_all_tasks(name: str) -> None:
    """Tables of three tasks stand side by side."""
    found = load_profile(name)
    for own in found.eco.methods:
        for other in (found.tofu, found.book):
            same = [method.label for method in other.methods if method.name == own.name]
            assert not same or same == [own.label], own.name
    assert set(found.eco.evaluation.robustness_models) <= {
        "implanted", "reference", *found.labels("eco"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, expected",
    [
        ("smoke", {TINY: TASKS}),
        ("laptop", {"HuggingFaceTB/SmolLM2-135M-Instruct": TASKS}),
        (
            "paper",
            {
                "open-unlearning/tofu_Llama-3.2-1B-Instruct_full": ("entities",),
                "open-unlearning/tofu_Llama-2-7b-chat-hf_full": ("entities",),
                "facebook/opt-1.3b": ("book",),
                "facebook/opt-2.7b": ("book",),
                "HuggingFaceH4/zephyr-7b-beta": ("science",),
            },
        ),
    ],
)
def test_models_run_the_tasks_of_the_experiments_that_list_them(
    name: str, expected: dict[str, tuple[Task, ...]]
) -> None:
    found = load_profile(name)
    assert {model.id: found.guarded_tasks(model.id) for model in found.eco.models} == expected


def test_a_profile_of_experiment_4_alone_has_its_tasks_and_no_job_of_experiment_3() -> None:
    found = load_profile("tofu01")
    assert found.guarded_tasks(found.eco.models[0].id) == TASKS
    assert set(found.experiments()) == {"tofu"}


def test_a_model_of_the_real_world_alone_has_no_authors() -> None:
    models = [{"id": TINY}, {"id": "known"}]
    tofu = {"models": models, "real_world_models": ["known"]}
    found = profile(tofu=tofu, eco={"models": models, "science_models": ["known"]})
    assert found.guarded_tasks(TINY) == ("entities", "book")
    assert found.guarded_tasks("known") == ("science",)


def test_tasks_without_a_guard_are_left_out() -> None:
    guards: dict[str, Any] = {"science": {}, "book": {}}
    assert profile(eco={"guards": guards}).guarded_tasks(TINY) == ("book", "science")


def test_the_paper_s_guards_are_the_released_ones() -> None:
    block = load_profile("paper").eco
    assert (block.classifier.base, block.classifier.epochs) == ("roberta-base", 30)
    assert (block.classifier.learning_rate, block.classifier.weight_decay) == (2e-5, 0.1)
    thresholds = {task: guard.threshold for task, guard in block.guards.items()}
    assert thresholds == {"entities": 0.99, "book": 0.99, "science": 0.999}
    for guard in block.guards.values():
        assert (guard.corruption.name, guard.corruption.dims) == ("rand_noise_first_n", 1)
    assert block.guards["entities"].corruption.ner == "dslim/bert-base-NER"
    assert block.guards["science"].strength == 1e6
    assert block.guards["entities"].search == SearchSettings(questions=40)
