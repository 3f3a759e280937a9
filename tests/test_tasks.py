"""All six tasks, run once on a tiny model: what items say of them, and what is computed anew."""

import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from smoke import Finished, few, keys, run_few
from test_source import forget

from unlearn_lib import source
from unlearn_lib.experiment import Experiment
from unlearn_lib.model import generate
from unlearn_lib.results import COLUMNS, Items, catalogue, estimate
from unlearn_lib.stored import collect, keep_as_reference, stored
from unlearn_lib.unlearn import losses
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.util import file_sha256

TASKS = ("harm", "book", "authors", "continual", "people", "science")
MODELS = {
    "harm": "base ga refusal harm_judge",
    "book": "base target eco prompting ga merged retrain released",
    "authors": "base target retain_model eco prompting ga_gd me_gd entailment_judge",
    "continual": "ga_gd",
    "people": "base me_gd",
    "science": "base target eco prompting ga_gd",
}
PASSAGE = """loss_text tokens_text verbatim verbatim_run extraction_strength bleu meteor rougeL_recall
    cosine unique_token_ratio loss_generated tokens_generated degenerate"""
ANSWER = """loss_answer loss_wrong_* truth_ratio rougeL_recall cosine entailment token_entropy
    degenerate refusal extraction_strength exact_memorisation"""
MEMBERSHIP = "attack_loss attack_zlib attack_min_k attack_min_k_plus_plus"
LIKENESS = "bleu meteor unique_token_ratio loss_generated tokens_generated leak"
ASKED = {
    ("harm", "forget"): "harmful degenerate answer_tokens",
    ("harm", "retain"): "loss_text tokens_text refusal",
    ("book", "forget"): PASSAGE,
    ("book", "retain"): PASSAGE,
    ("book", "holdout"): PASSAGE,
    ("book", "general"): "degenerate loss_text tokens_text",
    ("authors", "forget"): f"{ANSWER} {MEMBERSHIP} {LIKENESS}",
    ("authors", "retain"): ANSWER,
    ("authors", "real_authors"): ANSWER,
    ("authors", "world_facts"): ANSWER,
    ("authors", "holdout"): MEMBERSHIP,
    ("people", "forget"): f"{ANSWER} {MEMBERSHIP}",
    ("people", "retain"): ANSWER,
    ("science", "forget"): "choice_right choice_right_per_token probe_right",
    ("science", "retain"): "choice_right choice_right_per_token",
    ("science", "general"): "choice_right choice_right_per_token",
}
"""What every model of a task is asked, by split; of the base model nothing else."""
HASH = re.compile(r"[0-9a-f]{12}|(forget|retain|holdout) \d+|repeat \d|")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """All six tasks, run; results lie in a folder of their own."""
    root = tmp_path_factory.mktemp("few")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn_lib.profile.ROOT", root)
        patch.setattr("unlearn_lib.stored.ROOT", root)
        yield run_few(root)


@pytest.fixture(scope="module")
def items(finished: Finished) -> Items:
    """The items of all six tasks."""
    return Items(pd.concat(finished.items.values()))


@pytest.mark.parametrize("task", TASKS)
def test_every_model_of_a_task_has_items(task: str, finished: Finished) -> None:
    frame = finished.items[task]
    assert list(frame["method"].unique()) == MODELS[task].split()
    assert tuple(frame.columns) == COLUMNS
    assert frame["value"].notna().all()
    assert set(frame["seed"]) == {1} and set(frame["task"]) == {task}
    assert set(frame["run"]) <= set(finished.runs)


@pytest.mark.parametrize("task, split", ASKED)
def test_every_model_is_asked_the_same(task: str, split: str, finished: Finished) -> None:
    frame = finished.items[task].query("split == @split and condition == ''")
    expected = set(ASKED[task, split].split())
    for method, rows in frame.groupby("method"):
        measured = {re.sub(r"\d+$", "*", metric) for metric in rows["metric"]}
        compared = {name for name in measured if name.endswith(("_original", "_length_matched"))}
        assert measured - compared == expected, method
        assert not (method == "base" and compared)
        questions = rows.groupby("metric")["item"].agg(set)
        assert all(each <= set(rows["item"]) for each in questions)
    searched = (
        finished.experiments[task].task.searched_keys if "eco" in set(frame["method"]) else ()
    )
    asked = frame[~frame["item"].isin(searched)].groupby("method")["item"].agg(frozenset)
    assert len(set(asked)) == 1, "the same questions, whatever the model"


@pytest.mark.parametrize("task", ["authors", "science"])
def test_a_guard_is_evaluated_on_what_its_search_never_asked(task: str, finished: Finished) -> None:
    experiment: Any = finished.experiments[task].task
    questions = experiment.sets("")["forget"]
    searched = experiment.searched_keys
    assert 0 < len(searched) <= len(questions) / 2
    forget = finished.items[task].query("split == 'forget'")
    asked = {name: set(rows["item"]) for name, rows in forget.groupby("method")}
    assert asked["eco"] and not asked["eco"] & searched
    for name in set(asked) - {"eco"}:
        assert asked[name] == asked["eco"] | searched


def test_the_search_reads_passages_of_a_book_that_nobody_is_asked(finished: Finished) -> None:
    book: Any = finished.experiments["book"].task
    _, evaluated = book.passages("forget")
    assert not book.searched_keys & {key for _, key in evaluated}


def test_items_hold_no_text(items: Items) -> None:
    frame = items.frame
    for column in ("cluster", "item"):
        strange = [each for each in frame[column].unique() if not HASH.fullmatch(each)]
        assert not strange, column
    assert items.keys(), "no question has two values of one metric"


def test_the_catalogue_reads_every_item_and_no_other(items: Items) -> None:
    measured = set(items.frame["metric"])
    patterns = {name for entry in catalogue().values() for name in entry.reads}
    assert {each for each in measured if not any(fnmatch(each, p) for p in patterns)} == set()
    unread = {p for p in patterns if not any(fnmatch(each, p) for each in measured)}
    assert unread == {"bleurt_original"}, "whose weights are not here"


def loss(finished: Finished, task: str, method: str, split: str, condition: str = "") -> float:
    """Mean loss of the right answers, nats per token, or of passages, nats."""
    frame = finished.items[task].query("method == @method and split == @split")
    frame = frame[frame["condition"].eq(condition)]
    return float(frame.loc[frame["metric"].isin(["loss_answer", "loss_text"]), "value"].mean())


def test_the_target_knows_what_the_retain_model_does_not(finished: Finished) -> None:
    forget = {m: loss(finished, "authors", m, "forget") for m in ("base", "target", "retain_model")}
    retain = {m: loss(finished, "authors", m, "retain") for m in forget}
    assert forget["target"] + 1 < forget["retain_model"] < forget["base"]
    assert retain["target"] == pytest.approx(retain["retain_model"], abs=0.5)
    assert retain["target"] + 1 < retain["base"]


def test_the_retain_model_never_saw_what_is_to_be_forgotten(finished: Finished) -> None:
    task = finished.experiments["authors"].task
    forget = {row.prompt for row in task.encoded("forget", task.forgotten(""))}  # type: ignore[attr-defined]
    seen = {
        kind: {row.prompt for lesson in task.lessons(kind, 1) for row in lesson}
        for kind in ("target", "retain_model")
    }
    assert forget <= seen["target"] and forget.isdisjoint(seen["retain_model"])
    assert seen["target"] - seen["retain_model"] == forget


def test_gradient_ascent_raises_the_loss_of_what_is_to_be_forgotten(finished: Finished) -> None:
    risen = loss(finished, "authors", "ga_gd", "forget") - loss(
        finished, "authors", "target", "forget"
    )
    kept = loss(finished, "authors", "ga_gd", "retain") - loss(
        finished, "authors", "target", "retain"
    )
    assert risen > 1 and risen > 2 * kept


def test_a_part_of_the_continual_task_is_a_condition(finished: Finished) -> None:
    experiment, frame = finished.experiments["continual"], finished.items["continual"]
    assert experiment.task.parts == ("1", "2")
    unlearned = frame[frame["method"] == "ga_gd"]
    sizes = unlearned[unlearned["split"] == "forget"].groupby("condition")["item"].nunique()
    assert sizes.to_dict() == {"1": 4, "2": 8}, (
        "the authors of both parts are asked after the second"
    )
    target, first, second = experiment.chain("ga_gd", "2")
    assert first.record["parents"] == [target.key]
    assert second.record["parents"] == [target.key, first.key]
    alone = finished.experiments["authors"].chain("ga_gd")
    assert [run.key for run in alone] == [target.key, first.key], "trained once for both tasks"


def test_people_are_forgotten_by_the_base_model(finished: Finished) -> None:
    (run,) = finished.experiments["people"].chain("me_gd")
    assert run.record["parents"] == []
    assert loss(finished, "people", "me_gd", "forget") != loss(finished, "people", "base", "forget")


def test_the_base_model_is_the_retain_model_of_the_book(items: Items, finished: Finished) -> None:
    assert "retain_model" not in items.methods(task="book")
    gap, distance = (
        [estimate(items, metric, task="book", method=method) for method in ("base", "target")]
        for metric in ("asg", "loss_ks_distance")
    )
    assert gap[0] and gap[1] and gap[0].value == 0 <= gap[1].value
    assert distance[0] and distance[1] and distance[0].value == 0 < distance[1].value
    values = [loss(finished, "book", m, "forget") for m in ("target", "retrain", "base")]
    assert values == sorted(values), "retraining starts from the base model"


def test_faults_of_released_code_leave_steps_without_a_label(finished: Finished) -> None:
    shares = {
        name: finished.experiments["book"].chain(name)[-1].result["empty_share"]
        for name in ("ga", "merged", "released")
    }
    assert shares.pop("released") > 0 and not any(shares.values())


def test_a_prompt_that_the_guard_lets_pass_is_answered_as_before(finished: Finished) -> None:
    frame = finished.items["authors"].query("method == 'eco' and metric == 'unchanged'")
    assert len(frame) and frame["value"].eq(1).all()
    experiment = finished.experiments["authors"]
    target, eco = experiment.load("target"), experiment.load("eco")
    questions = [row.question for row in experiment.task.sets("")["retain"]]  # type: ignore[attr-defined]
    guard = eco.model.guard
    scores = zip(questions, guard.scores(questions), strict=True)
    passing = [question for question, score in scores if score <= guard.threshold]
    prompts = [experiment.task.encoder.prompt(question) for question in passing]
    before, after = (generate.continuations(model, prompts, 12, 4) for model in (target, eco))
    assert before == after and any(before)
    flagged = [loss(finished, "authors", name, "forget") for name in ("target", "eco")]
    assert flagged[0] != flagged[1], "what it flags is not"


def test_a_second_experiment_finds_everything_stored(finished: Finished) -> None:
    before = finished.runs
    for task in TASKS:
        again = Experiment(finished.profile, task).items()
        pd.testing.assert_frame_equal(again, finished.items[task])
    assert finished.runs == before


def test_a_result_does_not_depend_on_other_methods(finished: Finished, tmp_path: Path) -> None:
    before = finished.runs
    profile = few(tmp_path, authors=["me_gd"], book=["released"], harm=["refusal"])
    for task in ("authors", "book", "harm"):
        frame = Experiment(profile, task).items()
        whole = finished.items[task]
        whole = whole[whole["method"].isin(frame["method"].unique())].reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, whole)
    assert finished.runs == before


def test_what_models_answered_stands_side_by_side(finished: Finished) -> None:
    for task in ("harm", "book", "authors", "people"):
        experiment = finished.experiments[task]
        names = experiment.names()
        table = experiment.examples(most=2)
        assert list(table.columns) == ["split", "asked", *names]
        assert table[["asked", *names]].map(lambda text: isinstance(text, str)).all(axis=None)
        assert table["split"].value_counts().max() <= 2


def test_collected_results_are_those_of_the_experiments(finished: Finished) -> None:
    before = finished.runs
    path = collect(finished.profile)
    whole = pd.concat(finished.items.values(), ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(path), whole, check_dtype=False)
    assert finished.runs == before
    results = stored(finished.profile)
    assert set(results.origin["runs"]) == set(whole["run"])
    assert results.origin["items"] == {"rows": len(whole), "sha256": file_sha256(path)}
    assert results.missing_seeds == ()
    assert len(results.texts) == len(TASKS)
    assert set(results.costs["key"]) == set(before)
    kept = {file.name for file in keep_as_reference(finished.profile).iterdir()}
    assert kept == {"items.parquet", "origin.json", "costs.csv"}, "and no texts"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package's source, whose code counts instead of the package's."""
    copy = tmp_path / "unlearn_lib"
    shutil.copytree(source.PACKAGE, copy, ignore=lambda _, names: {"embedded", "__pycache__"})
    monkeypatch.setattr(source, "PACKAGE", copy)
    forget()
    yield copy
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    "function, sign, flipped",
    [
        (losses.gradient_ascent, "return -answer_nll(", "return answer_nll("),
        (losses.maximum_entropy, "return per_row(_Div", "return -per_row(_Div"),
    ],
)
def test_a_flipped_sign_of_a_loss_trains_again_what_uses_it(
    function: Callable[..., Any], sign: str, flipped: str, finished: Finished, package: Path
) -> None:
    profile = finished.profile
    users = {
        (task, name)
        for task, settings in profile.running().items()
        for name, method in settings.methods.items()
        if find_method(method.uses or name).forget is function
    }
    before = keys(profile)
    file = package / "unlearn" / "losses.py"
    head, name, tail = file.read_text().partition(f"def {function.__name__}(")
    file.write_text(head + name + tail.replace(sign, flipped, 1))
    forget()
    after = keys(profile)
    changed = {place for place in before if before[place] != after[place]}
    assert {(task, name) for task, name, stage in changed if stage == "unlearn"} == users
    assert {(task, name) for task, name, _ in changed} == users
    assert {stage for *_, stage in changed} <= {"unlearn", "evaluate", "measure", "side_effects"}
