"""Experiment 4 as a whole on a cut-down profile smoke: what is run, what is shared, what is said."""

import ast
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from scipy import stats

from unlearn_lib import generation, profiles, scoring
from unlearn_lib.batches import TextEncoder
from unlearn_lib.datasets import people, tofu
from unlearn_lib.errors import CompanionError
from unlearn_lib.experiments import closer_look as experiments
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.experiments.closer_look_measures import encoded, measure
from unlearn_lib.experiments.closer_look_stages import question_pools
from unlearn_lib.methods import find_method
from unlearn_lib.metrics import SetLog, TofuLog, forget_quality, model_utility
from unlearn_lib.profiles import Profile, load_profile
from unlearn_lib.results import ORDERINGS
from unlearn_lib.runs import Run, RunStore, Spec
from unlearn_lib.settings import LoraSettings
from unlearn_lib.training import OnStep

METHODS = ("ga_gd", "me_gd", "idk_ap", "dpo_gd", "rmu")
NOTEBOOK = Path(__file__).parents[1] / "notebooks/04_closer_look.ipynb"
OPTIONS = ("real_authors", "world_facts")
KEPT = ("retain", *OPTIONS)
PLACE = ["scenario", "split", "stage", "method", "metric"]


def shrunk(profile: Profile, **changed: Any) -> Profile:
    """Profile smoke with five methods of four larger steps, few questions, taught for longer."""
    block = profile.tofu
    methods = [method for method in block.methods if method.name in METHODS]
    steps = {"steps": 4, "learning_rate": 1e-2}
    assert block.implant is not None
    given: dict[str, Any] = {
        "data": block.data.model_copy(update={"questions_per_author": 4, "evaluation_rows": 4}),
        "implant": block.implant.model_copy(update={"epochs": 40}),
        "methods": tuple(method.model_copy(update=steps) for method in methods),
        "evaluation": block.evaluation.model_copy(update={"judge_authors": 4}),
    }
    return profile.model_copy(update={"tofu": block.model_copy(update=given | changed)})


def changed_method(profile: Profile, name: str, **values: Any) -> Profile:
    """The profile with other settings of one method."""
    methods = tuple(
        method.model_validate(method.model_dump() | (values if method.name == name else {}))
        for method in profile.tofu.methods
    )
    return profile.model_copy(update={"tofu": profile.tofu.model_copy(update={"methods": methods})})


def changed_block(profile: Profile, block: str, **values: Any) -> Profile:
    """The profile with other settings in one block of experiment 4."""
    found = getattr(profile.tofu, block).model_copy(update=values)
    return profile.model_copy(update={"tofu": profile.tofu.model_copy(update={block: found})})


@dataclass
class Done:
    """An experiment that has run, and its tidy rows."""

    profile: Profile
    experiment: CloserLook
    rows: pd.DataFrame

    def value(self, scenario: str, split: str, stage: str, method: str, metric: str) -> float:
        found = self.rows.set_index(PLACE)["value"]
        return float(found[scenario, split, stage, method, metric])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "ROOT", tmp_path_factory.mktemp("closer_look"))
        profile = shrunk(load_profile("smoke"))
        experiment = CloserLook(profile, None, 1)
        yield Done(profile, experiment, experiment.rows())


class Asked(RunStore):
    """A store that computes nothing and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.specs: list[Spec] = []

    def get(self, spec: Spec, compute: Any, resumable: bool = False) -> Run:
        self.specs.append(spec)
        return self.find(spec) or Run(spec.key, Path("nowhere"), False)


def asking(profile: Profile, seed: int = 1) -> CloserLook:
    """An experiment that computes nothing."""
    experiment = CloserLook(profile, None, seed)
    experiment.store = Asked(profile.results)
    return experiment


def computed(experiment: CloserLook) -> list[str]:
    """The stages that an experiment has computed, not found."""
    return sorted(run.record["stage"] for run in experiment.store.visited if not run.cached)


# --- what comes out --------------------------------------------------------------------------


def test_rows_are_tidy_with_every_scenario_and_method(done: Done) -> None:
    rows = done.rows
    assert set(rows["experiment"]) == {"tofu"} and set(rows["seed"]) == {1}
    assert not rows.duplicated(PLACE).any()
    assert rows["value"].map(np.isfinite).all()
    unlearned = rows[(rows["stage"] == "unlearned") & (rows["metric"] == "fe")]
    assert unlearned.groupby("scenario")["method"].agg(set).to_dict() == {
        "fictitious": set(METHODS),
        "continual 1": {"ga_gd", "me_gd", "idk_ap"},
        "continual 2": {"ga_gd", "me_gd", "idk_ap"},
        "real_world": {"me_gd", "idk_ap"},
    }
    before = rows[rows["metric"].eq("fe") & rows["stage"].ne("unlearned")]
    assert before.groupby("scenario")["stage"].agg(set).to_dict() == {
        "fictitious": {"base", "implanted", "reference"},
        "real_world": {"base"},
    }
    stored = {run.name for run in (done.profile.results / "runs").iterdir()}
    assert set(rows["run"]) <= stored
    assert not [left for left in done.profile.results.glob("partial/*") if left.is_dir()]


def test_what_was_taught_is_known_and_what_was_not_is_not(done: Done) -> None:
    rouge = {
        (stage, split): done.value("fictitious", split, stage, "none", "rougeL_recall")
        for stage in ("base", "implanted", "reference")
        for split in ("forget", "retain")
    }
    assert rouge["implanted", "forget"] > 0.6 > 0.4 > rouge["reference", "forget"]
    assert rouge["reference", "retain"] > 0.6 and rouge["base", "forget"] < 0.2
    assert done.value("fictitious", "forget", "implanted", "none", "mia_auc_loss") > 0.9


def test_the_reference_is_its_own_equal(done: Done) -> None:
    at = ("fictitious", "forget", "reference", "none")
    assert done.value(*at, "forget_quality") == 1
    assert done.value(*at, "privleak") == 0
    implanted = ("fictitious", "forget", "implanted", "none")
    assert done.value(*implanted, "forget_quality") < 1
    assert done.value(*implanted, "privleak") < -20


def test_every_method_changed_the_model(done: Done) -> None:
    before = done.experiment.record("implanted")["forget"]["answer_loss"]
    for name in METHODS:
        after = done.experiment.record(name)["forget"]["answer_loss"]
        assert not np.allclose(before, after, atol=1e-3), name


def by_hand(part: dict[str, Any], split: str) -> dict[str, float]:
    """Means of the six measures of one set, from what is stored."""
    right, wrong = np.exp(-np.array(part["answer_loss"])), np.exp(-np.array(part["perturbed_loss"]))
    ratio = np.exp(-np.array(part["paraphrase_loss"])) / stats.gmean(wrong, axis=1)
    found = {
        "rougeL_recall": np.array(part["rouge"]),
        "probability": right / (right + wrong.sum(1)) if split in OPTIONS else right,
        "truth_ratio": np.minimum(ratio, 1 / ratio)
        if split == "forget"
        else np.maximum(0, 1 - 1 / ratio),
        "token_entropy": np.array(part["token_entropy"]),
        "cosine_similarity": np.array(part["cosine_similarity"]),
        "entailment": np.array(part["entailment"]),
    }
    return {name: float(each.mean()) for name, each in found.items()}


@pytest.mark.parametrize(
    "who, scenario, task",
    [
        ("implanted", "fictitious", 1),
        ("me_gd", "fictitious", 1),
        ("idk_ap", "continual", 2),
        ("idk_ap", "real_world", 1),
    ],
)
def test_rows_equal_the_stored_scores_by_hand(
    who: str, scenario: Any, task: int, done: Done
) -> None:
    record = json.loads(
        (done.experiment.scored(who, scenario, task).folder / "scores.json").read_text()
    )
    place = f"continual {task}" if scenario == "continual" else scenario
    at = (who, "none") if who == "implanted" else ("unlearned", who)
    kept = ("neighbours",) if scenario == "real_world" else KEPT
    every = {split: by_hand(record[split], split) for split in ("forget", *kept)}
    for split, means in every.items():
        for metric, value in means.items():
            assert done.value(place, split, *at, metric) == pytest.approx(value, abs=1e-9)
    low = [mean for split in kept for mean in every[split].values()]
    expected = stats.hmean(low) if min(low) > 0 else 0.0
    assert done.value(place, "all", *at, "mu") == pytest.approx(expected, abs=1e-9)
    forget = {**every["forget"], "truth_ratio": 1 - every["forget"]["truth_ratio"]}
    del forget["token_entropy"]
    efficacy = 1 - np.mean(list(forget.values()))
    assert done.value(place, "forget", *at, "fe") == pytest.approx(efficacy, abs=1e-9)
    broken = np.mean(record["forget"]["degenerate"])
    assert done.value(place, "forget", *at, "degenerate_share") == pytest.approx(broken)


def as_log(record: dict[str, Any]) -> TofuLog:
    """What a run stored, written as a log and read back."""
    sets = {
        split: SetLog(
            tuple(record[split]["questions"]),
            *(
                np.array(record[split][field], float)
                for field in ("answer_loss", "paraphrase_loss", "perturbed_loss", "rouge")
            ),
        )
        for split in ("forget", *KEPT)
    }
    return TofuLog.from_json(TofuLog("a run", sets).to_json())


def test_a_log_of_the_scores_gives_the_rows(done: Done) -> None:
    reference = as_log(done.experiment.record("reference"))
    for who, at in (("reference", ("reference", "none")), ("ga_gd", ("unlearned", "ga_gd"))):
        log = as_log(done.experiment.record(who))
        utility, quality = model_utility(log), forget_quality(log, reference)
        assert done.value("fictitious", "all", *at, "model_utility") == utility.value
        assert done.value("fictitious", "forget", *at, "forget_quality") == quality.value


def test_differences_are_of_the_claimed_pairs_that_run(done: Done) -> None:
    block, wanted = done.profile.tofu, set()
    for claim in yaml.safe_load(ORDERINGS.read_text()):
        run = block.methods_of(claim["scenario"], block.models[0].id)
        place = claim["scenario"] if claim["scenario"] != "continual" else "continual 2"
        wanted |= {
            (place, claim["better"], other)
            for other in claim["than"]
            if {claim["better"], other} <= set(run)
        }
    assert wanted == {
        ("fictitious", "me_gd", "ga_gd"),
        ("fictitious", "idk_ap", "dpo_gd"),
        ("continual 2", "me_gd", "ga_gd"),
    }
    for metric, split in (("mu", "all"), ("fe", "forget")):
        rows = done.rows[done.rows["metric"] == f"{metric}_difference"]
        assert set(zip(rows["scenario"], rows["method"], rows["split"])) == wanted
        for row in rows.itertuples():
            both = [
                done.value(row.scenario, split, "unlearned", name, metric)
                for name in (row.method, row.split)
            ]
            assert row.value == pytest.approx(both[0] - both[1], abs=1e-9)
            assert row.low <= row.value <= row.high


# --- what is run again, and what is not ---------------------------------------------------


def test_a_second_experiment_finds_everything_done(done: Done) -> None:
    again = CloserLook(done.profile, None, 1)
    pd.testing.assert_frame_equal(again.rows(), done.rows, check_exact=True)
    assert again.store.visited and not computed(again)


def test_another_setting_of_a_method_reruns_that_method_alone(done: Done) -> None:
    other = CloserLook(changed_method(done.profile, "rmu", steering=9.0), None, 1)
    rows = other.rows()
    assert computed(other) == ["compare", "score", "unlearn"]
    same = [frame[frame["method"] != "rmu"].reset_index(drop=True) for frame in (rows, done.rows)]
    pd.testing.assert_frame_equal(*same, check_exact=True)


def test_a_label_changes_no_run(done: Done) -> None:
    experiment = CloserLook(changed_method(done.profile, "ga_gd", label="ascent"), None, 1)
    experiment.measured("ga_gd")
    assert not computed(experiment)


def test_longer_answers_retrain_nothing(done: Done) -> None:
    other = CloserLook(changed_block(done.profile, "evaluation", new_tokens=8), None, 1)
    other.measured("ga_gd")
    assert computed(other) == ["compare", "score", "score"]  # the method's and the reference's
    asked = asking(other.profile)
    assert asked.unlearned("ga_gd", None, "continual", 2).cached


def test_wrong_answers_are_scored_and_not_taught(done: Done) -> None:
    asked = asking(done.profile)
    first = asked.data.tasks[0][0]
    other = replace(
        first, perturbed_answer=tuple(f"{text} Or not." for text in first.perturbed_answer)
    )
    asked.weights = done.experiment.weights
    asked.data = replace(
        asked.data, tasks=((other, *asked.data.tasks[0][1:]), *asked.data.tasks[1:])
    )
    assert asked.unlearned("ga_gd").cached
    assert not asked.scored("ga_gd").cached


def test_a_seed_changes_what_is_drawn_and_nothing_else(done: Done) -> None:
    second = asking(done.profile, seed=2)
    for run in (
        *second.taught("implanted"),
        *second.taught("reference"),
        second.unlearned("ga_gd"),
    ):
        assert not run.cached
    assert second.scored("none").cached and second.known().cached and second.judge().cached
    assert [spec.settings.get("seed") for spec in second.store.specs[:3]] == [2, 2, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["implant", "unlearn"])
def test_an_interrupted_training_gives_the_same_weights(kind: str, done: Done) -> None:
    profile = changed_block(done.profile, "implant", epochs=5)
    profile = changed_method(profile, "me_gd", steps=6, checkpoint_every=2)

    def train(on_step: OnStep | None = None) -> Run:
        experiment = CloserLook(profile, None, 1)
        if kind == "implant":
            return experiment.taught("implanted", on_step)[0]
        return experiment.unlearned("me_gd", on_step)

    run = train()
    name = "model.safetensors" if kind == "implant" else "adapter_model.safetensors"
    whole = (run.folder / "model" / name).read_bytes()
    history = (run.folder / "history.csv").read_text().splitlines()
    shutil.rmtree(run.folder)
    partial = profile.results / "partial" / run.key

    def stop(report: dict[str, float]) -> None:
        if any(partial.glob("checkpoints/checkpoint-*/trainer_state.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    assert partial.is_dir() and not run.folder.exists()
    seen: list[dict[str, float]] = []
    resumed = train(seen.append)
    assert resumed.key == run.key and 0 < len(seen) < resumed.result["steps"]
    assert (resumed.folder / "model" / name).read_bytes() == whole
    assert len((resumed.folder / "history.csv").read_text().splitlines()) == len(history)
    assert not partial.exists()


# --- scenarios -------------------------------------------------------------------------------


def test_the_first_task_is_shared_unless_something_differs(done: Done) -> None:
    shared = done.experiment.unlearned("me_gd", None, "continual", 1)
    assert shared.key == done.experiment.unlearned("me_gd").key
    scenarios = {"fictitious": {}, "continual": {"forget_weight": 0.9}}
    other = asking(changed_method(done.profile, "me_gd", scenarios=scenarios))
    assert other.unlearned("me_gd").key == shared.key
    differing = other.unlearned("me_gd", None, "continual", 1)
    assert not differing.cached and differing.key != shared.key
    specs = {spec.key: spec for spec in other.store.specs}  # type: ignore[attr-defined]
    weights = [
        specs[key].settings["method"]["forget_weight"] for key in (shared.key, differing.key)
    ]
    assert weights == [0.1, 0.9]


def test_the_second_task_goes_on_from_the_first(done: Done) -> None:
    experiment = done.experiment
    first, second = (experiment.unlearned("ga_gd", None, "continual", task) for task in (1, 2))
    (implant,) = experiment.taught("implanted")
    assert first.record["parents"] == [implant.key]
    assert second.record["parents"] == [implant.key, first.key]
    tasks = experiment.data.tasks
    for task, expected in ((1, tasks[0]), (2, (*tasks[0], *tasks[1]))):
        asked = experiment.record("ga_gd", "continual", task)["forget"]["questions"]
        assert asked == [row.question for row in expected]
    used = second.provenance["data"]
    assert used["forget"] == tofu.digest(*((row.question, row.answer) for row in tasks[1]))
    kept = experiment.data.retain
    assert used["retain"] == tofu.digest(*((row.question, row.answer) for row in kept))


def test_later_tasks_are_kept_and_earlier_ones_are_not(done: Done) -> None:
    experiment = CloserLook(changed_block(done.profile, "data", tasks=3), None, 1)
    tasks = experiment.data.tasks
    assert len(tasks) == 3
    for number in (1, 2, 3):
        kept = set(experiment.kept("continual", number))
        assert set(experiment.data.retain) <= kept
        for place, task in enumerate(tasks, start=1):
            assert kept.isdisjoint(task) if place <= number else kept.issuperset(task)
        assert experiment.forgotten("continual", number) == tasks[number - 1]
    assert experiment.kept("fictitious") == experiment.kept("continual", 1)
    assert not set(experiment.data.holdout) & set(experiment._taught("implanted"))
    taught = {kind: set(experiment._taught(kind)) for kind in ("implanted", "reference")}
    assert taught["implanted"] - taught["reference"] == set(tasks[0])


def test_the_real_world_begins_from_the_unmodified_model(done: Done) -> None:
    experiment = done.experiment
    run = experiment.unlearned("idk_ap", None, "real_world")
    assert run.record["parents"] == []
    assert run.provenance["data"]["weights"] == experiment.weights.sha256
    assert experiment.chain("none", "real_world") == ()
    found = experiment.people
    parts = [
        {row.subject for row in part} for part in (found.forget, found.neighbours, found.evaluation)
    ]
    assert all(len(part) == 1 for part in parts) and len(set.union(*parts)) == 3
    asked = experiment.record("idk_ap", "real_world")
    assert asked.keys() == {"forget", "neighbours"}
    assert asked["neighbours"]["questions"] == [row.question for row in found.evaluation]
    assert run.result["steps"] == 4


def test_people_are_dealt_by_what_the_model_answers_right(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = people.load_people()[0][:40]
    subjects = list(dict.fromkeys(row.subject for row in rows))
    knows = dict.fromkeys(subjects[:4], 99) | {subjects[4]: 1}  # how many answers are right

    def answers(found: Any, prompts: Any, new_tokens: int, batch_size: int) -> list[str]:
        texts, left = [], dict(knows)
        for row in rows[: len(prompts)]:
            known = left.get(row.subject, 0) > 0
            left[row.subject] = left.get(row.subject, 0) - 1
            texts.append(f"It is {row.short}. Ask me more." if known else "Who knows.")
        return texts

    monkeypatch.setattr(generation, "answers", answers)
    profile = changed_block(done.profile, "people", least_right=2, evaluation_neighbours=2)
    experiment = CloserLook(profile.model_copy(update={"name": "knowing"}), None, 1)
    found = experiment.people
    dealt = [
        {row.subject for row in part} for part in (found.forget, found.neighbours, found.evaluation)
    ]
    assert [len(part) for part in dealt] == [1, 1, 2]
    assert set.union(*dealt) == set(subjects[:4]) and found.counts["qualified"] == 4
    for row in (*found.forget, *found.neighbours, *found.evaluation):
        assert row.answer == f"It is {row.short}."
    right = sum(row.subject in subjects[:4] for row in rows) + 1
    assert experiment.known().result["right"] == found.counts["right"] == right


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["all", "adapter"])
def test_an_unlearning_that_changes_nothing_leaves_the_taught_model(
    lora: LoraSettings | None, done: Done
) -> None:
    profile = changed_block(done.profile, "implant", lora=lora, epochs=6)
    profile = changed_method(profile, "ga_gd", learning_rate=1e-12, steps=1)
    experiment = CloserLook(profile, None, 1)
    examples = encoded(experiment.encoder, "forget", experiment.data.tasks[0])
    chains = {
        "none": experiment.chain("none", "fictitious"),
        "implanted": experiment.chain("implanted", "fictitious"),
        "ga_gd": experiment.chain("ga_gd", "continual", 2),
    }
    assert [len(chain) for chain in chains.values()] == [0, 1, 3]
    losses = {
        name: scoring.answer_losses(experiment._stack(chain, experiment.weights), examples)[0]
        for name, chain in chains.items()
    }
    assert losses["ga_gd"] == pytest.approx(losses["implanted"], rel=1e-4)
    assert (losses["none"] - losses["implanted"]).min() > 1
    (adapted,) = experiment.taught("implanted")
    assert (adapted.folder / "model/adapter_model.safetensors").is_file() == (lora is not None)


def test_all_weights_are_trained_end_to_end(done: Done) -> None:
    model = done.profile.tofu.models[0].model_copy(update={"lora": None})
    block = done.profile.tofu.model_copy(update={"models": (model,)})
    profile = done.profile.model_copy(update={"tofu": block})
    experiment = CloserLook(changed_method(profile, "ga_gd", learning_rate=1e-3), None, 1)
    found = experiment.estimates("ga_gd")
    assert all(np.isfinite(each.value) for each in found.values())
    chain = experiment.chain("ga_gd", "fictitious")
    assert chain[0].key == done.experiment.taught("implanted")[0].key, "its weights are all trained"
    before, after = (load_file(run.folder / "model/model.safetensors") for run in chain)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert before.keys() == after.keys() and len(changed) > len(before) / 2
    expected = done.experiment.estimates("implanted")["forget", "probability"].value
    assert found["forget", "probability"].value < expected


# --- bad input ---------------------------------------------------------------------------------


def test_a_row_that_cannot_be_taught_is_named(done: Done) -> None:
    experiment = CloserLook(done.profile, None, 1)
    data = experiment.data
    retain = (data.retain[0], replace(data.retain[1], answer=" \n"), *data.retain[2:])
    experiment.weights = done.experiment.weights
    experiment.data = replace(data, retain=retain)
    number = sum(map(len, data.tasks)) + 2
    with pytest.raises(CompanionError) as told:
        experiment.taught("implanted")
    assert str(told.value).startswith(f"Row {number} of what is taught ('{retain[1].question[:20]}")
    assert str(told.value).endswith("An answer is empty; remove the row or give it a text.")
    pooled = (None, find_method("ga_gd"), experiment.encoder, data.tasks[0], retain, ("No.",))
    with pytest.raises(CompanionError, match=r"^Row 2 of retain \('.*'\): An answer is empty"):
        question_pools(*pooled)  # type: ignore[arg-type]


def test_an_answer_of_which_no_token_is_left_is_named(done: Done) -> None:
    encoder = replace(done.experiment.encoder, answer_tokens=0)
    rows = done.experiment.data.tasks[0]
    with pytest.raises(CompanionError) as told:
        encoded(encoder, "forget", rows)
    assert str(told.value).startswith(f"Row 1 of forget ('{rows[0].question[:20]}")
    assert "no token within answer_tokens 0" in str(told.value)
    assert str(told.value).count(". ") == 0 and "\n" not in str(told.value)
    assert len(encoded(done.experiment.encoder, "forget", rows)) == len(rows)


def test_a_wrong_answer_or_question_that_cannot_be_scored_is_named(done: Done) -> None:
    experiment = CloserLook(done.profile, None, 1)
    facts = experiment.data.world_facts
    wrong = replace(facts[2], perturbed_answer=("", *facts[2].perturbed_answer[1:]))
    experiment.weights = done.experiment.weights
    experiment.data = replace(experiment.data, world_facts=(*facts[:2], wrong, *facts[3:]))
    with pytest.raises(CompanionError, match=r"^Row 3 of world_facts \(.*An answer is empty"):
        experiment.scored("none")
    encoder: TextEncoder = replace(done.experiment.encoder, prompt_tokens=8)
    with pytest.raises(CompanionError, match=r"^Row 1 of forget \('.*more than prompt_tokens 8"):
        encoded(encoder, "forget", experiment.data.tasks[0])


@pytest.mark.parametrize("split, field", [("retain", "answer_loss"), ("forget", "perturbed_loss")])
def test_a_loss_that_is_no_number_is_named(split: str, field: str, done: Done) -> None:
    record = json.loads(json.dumps(done.experiment.record("implanted")))
    if field == "perturbed_loss":
        record[split][field][2][1] = float("nan")
    else:
        record[split][field][2] = float("nan")
    asked = record[split]["questions"][2]
    with pytest.raises(CompanionError) as told:
        measure(record, None, "implanted")
    said = f"Set '{split}' of implanted: {field} of row 2, '{asked}', is nan or infinite"
    assert str(told.value).startswith(said)


# --- the notebook ----------------------------------------------------------------------------


def cells() -> list[str]:
    """The notebook's code, without the parameters."""
    found = nbformat.read(NOTEBOOK, as_version=4).cells
    return [cell.source for cell in found if cell.cell_type == "code"][1:]


def shown(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell; return what it shows last."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def run_notebook(experiment: CloserLook, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the notebook's cells on an experiment; return what each call of `show` gave."""
    monkeypatch.setattr(experiments, "open_experiment", lambda *chosen: experiment)
    names: dict[str, Any] = {"profile": "any", "model": "", "seed": experiment.seed}
    return {
        source.splitlines()[-1]: found
        for source in cells()
        if (found := shown(source, names)) is not None
    }


def is_shown(found: Any) -> bool:
    """Whether a notebook has something to draw of a value."""
    if isinstance(found, pd.DataFrame):
        return len(found) > 0
    if isinstance(found, (HTML, Markdown)):
        return bool(found.data)
    return isinstance(found, Figure)


def test_every_cell_of_the_notebook_shows_something(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = CloserLook(done.profile, None, 1)
    found = run_notebook(experiment, monkeypatch)
    wanted = [
        line for source in cells() for line in source.splitlines() if line.startswith("show.")
    ]
    assert set(wanted) <= set(found) and len(wanted) > 20
    for line, value in found.items():
        assert is_shown(value), line
    assert not computed(experiment)
    drawn = {line for line, value in found.items() if isinstance(value, Figure)}
    names = ("entropy", "continual", "grid", "methods")
    assert drawn == {f"show.{name}(experiment)" for name in names}
    labels = list(experiment.labels.values())
    assert list(found["show.training(experiment)"].index) == labels
    assert (found["show.training(experiment)"]["steps"] == 4).all()
    untargeted = found["show.untargeted(experiment)"]
    assert list(untargeted.index) == ["base", "implanted", "reference (retain only)", *labels]
    assert "forget quality 1." in found["show.verdict(experiment)"].data
    rows = found["show.orderings(experiment)"]
    assert set(rows["Verdict"]) <= {"upheld", "not upheld", "undecided"}
    told = found["show.people(experiment)"]["value"]
    assert told["questions answered right"] == "0 of 40"
    real = found['show.answers(experiment, "real_world")'].data
    assert all(experiment.labels[name] in real for name in ("me_gd", "idk_ap"))
    assert experiment.labels["rmu"] not in real
    assert done.profile.results.joinpath("rows").is_dir()
