"""Experiment 3 on a cut-down profile smoke: what is run, what is shared, what is shown."""

import gc
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from test_closer_look import Asked, is_shown, shown
from test_closer_look_paper import write_encoder
from test_paper_profile import write_bert

from unlearn_lib import generation, profiles, scoring
from unlearn_lib.datasets import authors
from unlearn_lib.datasets.attacks import ATTACKS
from unlearn_lib.datasets.questions import Question
from unlearn_lib.eco.guard import judged
from unlearn_lib.eco.model import EcoModel
from unlearn_lib.experiments import eco as experiments
from unlearn_lib.experiments import eco_show as show
from unlearn_lib.experiments.eco import Eco
from unlearn_lib.experiments.eco_tasks import UNSEEN_SEED
from unlearn_lib.profiles import Profile, load_profile
from unlearn_lib.runs import RunStore
from unlearn_lib.tables import TABLES

NOTEBOOK = Path(__file__).parents[1] / "notebooks/03_eco_comparison.ipynb"
BERT, ENCODER = "tiny/bert", "tiny/encoder"
SMALLER = """
name: smaller
extends: smoke
only: [eco]
book:
  data: {evaluation_passages: 4, normal_prompts: 4}
  pretrain: {epochs: 1}
  implant: {epochs: 1}
  evaluation: {new_tokens: 12, encoder: tiny/encoder}
tofu:
  data: {questions_per_author: 4, evaluation_rows: 4, tasks: 1}
  implant: {epochs: 20}
  evaluation: {judge_authors: 4, new_tokens: 12, encoder: tiny/encoder}
eco:
  classifier: {most: 25}
  guards:
    entities: {search: {start: 2}}
    book: {threshold: 0, classifier: &tiny {base: tiny/bert, epochs: 1, maximum_length: 64, most: 25}}
    science: {classifier: *tiny}
  beside: {entities: [idk_ap], book: [arora]}
  science: {rows: 12, general_rows: 8}
  implant: {epochs: 2}
  evaluation: {encoder: tiny/encoder, unrelated_prompts: 8, scaling: [64]}
"""
SAID = {
    "bleu", "rougeL_recall", "meteor", "cosine_similarity", "perplexity", "unique_token_ratio",
    "degenerate_share",
}  # fmt: skip
OWN_TASK = {
    ("entities", "forget"): SAID
    | {"forget_quality", "ks_distance", "refusal_share", "leak_share", "asg"},
    ("entities", "retain"): {"rougeL_recall", "refusal_share"},
    ("entities", "all"): {"model_utility"},
    ("book", "forget"): SAID | {"verbatim_share", "asg"},
    ("book", "kept"): SAID | {"verbatim_share"},
    ("science", "forget"): {"choice_accuracy", "probe_accuracy"},
    ("science", "retain"): {"choice_accuracy"},
    ("science", "general"): {"choice_accuracy"},
}
KEPT = ("retain", "real_authors", "world_facts")
TASKS = ("entities", "book", "science")
COSTS = {"seconds", "parameters_changed", "bytes_stored"}
TIMES = {"milliseconds_per_prompt", "milliseconds_per_token"}
GUARD = {"false_positive_rate", "false_negative_rate", "guard_threshold"}
PLACE = ["scenario", "split", "stage", "method", "metric"]
EVIL = "<script>alert('x')</script>"
Place = tuple[str, str, str, str, str]


@dataclass
class Done:
    """An experiment that has run, and its tidy rows."""

    profile: Profile
    experiment: Eco
    rows: pd.DataFrame

    def row(self, *place: str) -> pd.Series:
        return self.rows.set_index(PLACE).loc[place]

    def value(self, *place: str) -> float:
        return float(self.row(*place)["value"])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder: Path = tmp_path_factory.mktemp("eco")
    write_bert(folder / "mirror/models" / BERT, None)
    write_encoder(folder / "mirror/models" / ENCODER, folder / "mirror/models" / BERT)
    (folder / "smaller.yaml").write_text(SMALLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_MIRROR", str(folder / "mirror"))
        patch.setattr(profiles, "ROOT", folder)
        profile = load_profile(folder / "smaller.yaml")
        gc.freeze()  # each training collects garbage, which is slow with all of torch to look at
        experiment = Eco(profile, None, 1)
        yield Done(profile, experiment, experiment.rows())
        gc.unfreeze()


def asking(profile: Profile, seed: int = 1) -> Eco:
    """An experiment that computes nothing."""
    experiment = Eco(profile, None, seed)
    experiment.store = Asked(profile.results)
    return experiment


def computed(experiment: Eco) -> list[str]:
    """The stages that an experiment has computed, not found."""
    return sorted(run.record["stage"] for run in experiment.store.visited if not run.cached)


def changed(profile: Profile, **blocks: Any) -> Profile:
    """The profile with other values in its block of experiment 3."""
    return profile.model_copy(update={"eco": profile.eco.model_copy(update=blocks)})


def changed_guard(profile: Profile, task: str, **values: Any) -> Profile:
    """The profile with another guard of one task."""
    guards: dict[Any, Any] = dict(profile.eco.guards)
    guards[task] = guards[task].model_copy(update=values)
    return changed(profile, guards=guards)


def without_authors(profile: Profile) -> Profile:
    """The profile with a model that runs the book alone."""
    models = (profile.tofu.models[0].model_copy(update={"id": "another"}),)
    others = profile.model_copy(update={"tofu": profile.tofu.model_copy(update={"models": models})})
    return changed(others, science_models=("another",))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what comes out --------------------------------------------------------------------------


def test_rows_are_tidy(done: Done) -> None:
    rows = done.rows
    assert set(rows["experiment"]) == {"eco"} and set(rows["seed"]) == {1}
    assert set(rows["model"]) == {"embedded/tiny-opt"}
    assert not rows.duplicated(PLACE).any()
    assert rows["value"].map(np.isfinite).all()
    between = rows[rows["low"].notna()]
    assert (between["low"] <= between["value"] + 1e-9).all()
    assert (between["value"] <= between["high"] + 1e-9).all()
    stored = {run.name for run in (done.profile.results / "runs").iterdir()}
    assert set(rows["run"]) <= stored
    assert not [left for left in done.profile.results.glob("partial/*") if left.is_dir()]


def test_every_model_of_every_task_has_every_measure(done: Done) -> None:
    before = {("base", "none"), ("implanted", "none")}
    guarded = {("guarded", "eco"), ("guarded", "prompting")}
    models = {
        "entities": before | guarded | {("reference", "none"), ("unlearned", "idk_ap")},
        "book": before | guarded | {("unlearned", "arora")},
        "science": before | guarded | {("unlearned", "ga_gd")},
    }
    for (task, split), metrics in OWN_TASK.items():
        rows = done.rows[(done.rows["scenario"] == task) & (done.rows["split"] == split)]
        found = rows.groupby("metric")[["stage", "method"]].agg(list)
        assert set(found.index) == metrics, (task, split)
        for metric, row in found.iterrows():
            assert set(zip(row["stage"], row["method"])) == models[task], (task, split, metric)
    splits = done.rows[done.rows["scenario"].isin(TASKS)].groupby("scenario")["split"].agg(set)
    assert {(task, split) for task in TASKS for split in splits[task]} == set(OWN_TASK)


def metrics_at(done: Done, scenario: str, stage: str, method: str) -> dict[str, set[str]]:
    rows = done.rows
    chosen = rows["scenario"].eq(scenario) & rows["stage"].eq(stage) & rows["method"].eq(method)
    return rows[chosen].groupby("split")["metric"].agg(set).to_dict()


def test_what_is_no_model_s_measure_has_rows_too(done: Done) -> None:
    assert metrics_at(done, "guard", "guarded", "eco") == dict.fromkeys(TASKS, GUARD)
    steps = [f"entities {step:02d}" for step in range(3)] + ["science 00", "science 01"]
    search = {"search_strength", "search_objective", "model_calls"}
    assert metrics_at(done, "search", "guarded", "eco") == dict.fromkeys(steps, search)
    assert metrics_at(done, "costs", "guarded", "eco") == {
        "entities": COSTS | TIMES, "book": COSTS, "science": COSTS,
    }  # fmt: skip
    assert metrics_at(done, "costs", "unlearned", "arora") == {"book": COSTS}
    side = {"unchanged_share", "rougeL_original"}
    for who in (("guarded", "eco"), ("guarded", "prompting")):
        assert metrics_at(done, "unrelated", *who) == {"unrelated": side | {"time_ratio"}}
    for who in (("reference", "none"), ("unlearned", "idk_ap")):
        assert metrics_at(done, "unrelated", *who) == {"unrelated": side}
    asked = {"leak_share", "rougeL_recall"}
    assert metrics_at(done, "robustness", "implanted", "none") == dict.fromkeys(ATTACKS, asked)
    asked = asked | {"false_negative_rate"}
    assert metrics_at(done, "robustness", "guarded", "eco") == dict.fromkeys(ATTACKS, asked)
    sizes = metrics_at(done, "scaling", "guarded", "eco")
    assert sizes == metrics_at(done, "scaling", "base", "none")
    assert len(sizes) == 1 and all(int(size) > 0 for size in sizes)
    scenarios = {*TASKS, "guard", "search", "costs", "unrelated", "robustness", "scaling"}
    assert set(done.rows["scenario"]) == scenarios


def test_rows_equal_what_is_stored_by_hand(done: Done) -> None:
    experiment = done.experiment
    mine, exact = (
        json.loads((experiment.said(who).folder / "said.json").read_text())
        for who in ("idk_ap", "reference")
    )
    at = ("entities", "forget", "unlearned", "idk_ap")
    assert done.value(*at, "meteor") == pytest.approx(np.mean(mine["meteor"]), abs=1e-9)
    nats = np.sum(mine["nll"]) / np.sum(mine["counts"])
    assert done.value(*at, "perplexity") == pytest.approx(np.exp(nats))
    names = ("bleu", "rougeL_recall", "meteor", "cosine_similarity")
    gaps = [abs(np.mean(mine[name]) - np.mean(exact[name])) for name in names]
    assert done.value(*at, "asg") == pytest.approx(np.mean(gaps), abs=1e-9)
    chosen = json.loads((experiment.chosen("ga_gd").folder / "choices.json").read_text())
    right = [min(row) == row[0] for row in chosen["retain"]["losses"]]
    at = ("science", "retain", "unlearned", "ga_gd")
    assert done.value(*at, "choice_accuracy") == np.mean(right)


def test_the_retained_models_are_their_own_equals(done: Done) -> None:
    at = ("entities", "forget", "reference", "none")
    assert [done.value(*at, name) for name in ("forget_quality", "ks_distance", "asg")] == [1, 0, 0]
    assert done.value("book", "forget", "base", "none", "asg") == 0
    recall = [
        done.value("entities", "forget", stage, "none", "rougeL_recall")
        for stage in ("base", "reference", "implanted")
    ]
    assert recall == sorted(recall) and recall[0] < recall[2]


def test_a_threshold_of_none_flags_everything(done: Done) -> None:
    at = ("guard", "book", "guarded", "eco")
    rates = [done.value(*at, f"false_{kind}_rate") for kind in ("positive", "negative")]
    assert rates == [1, 0] and done.value(*at, "guard_threshold") == 0


def test_the_search_counts_its_calls(done: Done) -> None:
    calls = [
        done.value("search", f"entities {step:02d}", "guarded", "eco", "model_calls")
        for step in range(3)
    ]
    assert calls == [1, 4, 7]
    assert done.value("search", "entities 00", "guarded", "eco", "search_strength") == 100
    result = done.experiment.searched("entities").result
    best = min(result["steps"], key=lambda step: step["objective"])
    assert done.experiment.guarded("entities").model.guard.strength == best["strength"]
    assert done.experiment.searched("book").result["steps"] == []
    assert done.experiment.guarded("book").model.guard.strength == 1
    model = done.experiment.guarded("science").model
    assert model.guard.strength.shape == model.embeddings.weight.shape[1:]


# --- costs and side effects ------------------------------------------------------------------


def test_guard_and_prompt_change_no_parameter(done: Done) -> None:
    for task in TASKS:
        for who in ("eco", "prompting"):
            assert done.value("costs", task, "guarded", who, "parameters_changed") == 0
    guard = done.experiment.searched("entities").folder / "guard"
    stored = done.value("costs", "entities", "guarded", "eco", "bytes_stored")
    assert stored == sum(path.stat().st_size for path in guard.rglob("*.safetensors")) > 0
    prefix = done.experiment.prefix("entities")
    stored = done.value("costs", "entities", "guarded", "prompting", "bytes_stored")
    assert stored == len(prefix.encode())
    assert done.experiment.tofu.forgotten("fictitious")[0].subject in prefix


@pytest.mark.parametrize(
    "task, method", [("entities", "idk_ap"), ("book", "arora"), ("science", "ga_gd")]
)
def test_a_method_costs_its_adapter(task: Any, method: str, done: Done) -> None:
    run = done.experiment.tasks[task].trained(method)[-1]
    adapter = load_file(run.folder / "model/adapter_model.safetensors")
    at = ("costs", task, "unlearned", method)
    assert done.value(*at, "parameters_changed") == sum(map(np.size, adapter.values()))
    stored = (run.folder / "model/adapter_model.safetensors").stat().st_size
    assert done.value(*at, "bytes_stored") == stored
    assert done.value(*at, "seconds") == run.result["seconds"]


def test_answers_to_unrelated_prompts_are_the_plain_model_s(done: Done) -> None:
    found = done.experiment.side_effects("eco")
    flags = judged_as(done, done.experiment.unrelated_prompts("eco"))
    assert found["flagged"] == flags and len(flags) == 8
    passed = [same for same, flag in zip(found["same"], flags, strict=True) if not flag]
    assert len(passed) > 4 and all(passed)
    row = done.row("unrelated", "unrelated", "guarded", "eco", "unchanged_share")
    assert (row["value"], row["n"]) == (1, len(passed))
    assert len(done.experiment.side_effects("idk_ap")["same"]) == 1, "few prompts for the others"


def judged_as(done: Done, prompts: Sequence[str]) -> list[bool]:
    """Which prompts the guard of the entities flags."""
    guard = done.experiment.guarded("entities").model.guard
    return (judged(guard.classifier, prompts) > guard.threshold).tolist()


def test_what_is_not_flagged_is_answered_and_scored_as_by_the_plain_model(done: Done) -> None:
    behind, plain = (done.experiment.record(who) for who in ("eco", "implanted"))
    sets = done.experiment.tofu.sets("fictitious")
    flags = {name: judged_as(done, [row.question for row in rows]) for name, rows in sets.items()}
    for name, part in flags.items():
        kept = np.flatnonzero(~np.array(part))
        assert behind[name].keys() == plain[name].keys() >= {"answer_loss"}
        for field in {"answer_loss", "paraphrase_loss", "perturbed_loss"} & plain[name].keys():
            mine, theirs = (np.array(record[name][field])[kept] for record in (behind, plain))
            np.testing.assert_allclose(mine, theirs, rtol=1e-4)
        if name != "holdout":
            said = [[each[name]["texts"][i] for i in kept] for each in (behind, plain)]
            assert said[0] == said[1], name
    assert all(flags["forget"]) and not any(map(any, (flags[name] for name in KEPT)))
    assert not np.allclose(behind["forget"]["answer_loss"], plain["forget"]["answer_loss"])
    utility = ("entities", "all")
    guarded = done.row(*utility, "guarded", "eco", "model_utility")
    implanted = done.row(*utility, "implanted", "none", "model_utility")
    assert guarded[["value", "low", "high", "n"]].equals(implanted[["value", "low", "high", "n"]])


def test_a_saved_guard_answers_as_stored(done: Done) -> None:
    experiment = done.experiment
    found = experiment.tofu.loaded("implanted")
    saved = experiment.searched("entities").folder / "guard"
    found.model = EcoModel.from_pretrained(saved, found.model, found.tokenizer, "entities")
    for name in ("forget", "retain"):
        rows = experiment.tofu.sets("fictitious")[name]
        prompts = [experiment.tofu.encoder.prompt(row.question) for row in rows]
        said = generation.answers(found, prompts, 12, 1)
        assert said == experiment.record("eco")[name]["texts"]


def test_where_everything_is_flagged_nothing_is_said_of_the_others(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = done.experiment.side_effects("eco")
    flagged = found | {"flagged": [True] * len(found["same"])}
    monkeypatch.setattr(Eco, "side_effects", lambda self, who: flagged)
    metrics = {row.metric for row in done.experiment._unrelated_rows("eco")}
    assert metrics == {"rougeL_original", "time_ratio"} | TIMES


def test_every_way_of_asking_is_recorded(done: Done) -> None:
    rows = done.experiment.tofu.forgotten("fictitious")
    for who, keys in (("implanted", set()), ("eco", {"missed"})):
        attacks = done.experiment.attacks(who)
        assert list(attacks) == list(ATTACKS)
        for part in attacks.values():
            assert set(part) == {"asked", "said", "rouge", "leaked"} | keys
            assert all(len(values) == len(rows) for values in part.values())
        assert attacks["as asked"]["asked"] == [row.question for row in rows]
    asked, missed = (done.experiment.attacks("eco")["keywords"][key] for key in ("asked", "missed"))
    assert missed == [not flag for flag in judged_as(done, asked)]
    assert done.experiment.attacked_models() == ["implanted", "eco"]


# --- the search asks training data alone -----------------------------------------------------


def test_the_search_asks_what_is_forgotten_and_authors_whom_nobody_taught(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    tofu, task = done.experiment.tofu, done.experiment.tasks["entities"]
    asked: dict[bool, set[str]] = {True: set(), False: set()}
    seeds: set[int] = set()
    unseen: set[Question] = set()
    score, write = scoring.score, authors.write_authors

    def spy(found: Any, examples: Any) -> Any:
        read = {tofu.tokenizer.decode(row.prompt) for row in examples}
        asked[getattr(found.model, "guarded", False)] |= read
        return score(found, examples)

    def written(count: int, seed: int, questions: int) -> Any:
        seeds.add(seed)
        found = write(count, seed, questions)
        unseen.update(row for author in found for row in author.questions)
        return found

    monkeypatch.setattr(scoring, "score", spy)
    monkeypatch.setattr(authors, "write_authors", written)
    found = tofu.loaded("implanted")
    guard = done.experiment.guarded("entities").model.guard
    gap = task.objective(found, guard)
    assert 0 <= gap(1.0) <= 1
    assert seeds == {UNSEEN_SEED}

    def prompts(rows: Any) -> set[str]:
        return {tofu.tokenizer.decode(tofu.encoder.prompt(row.question)) for row in rows}

    assert asked[False] and asked[False] <= prompts(unseen)
    assert asked[True] and asked[True] <= prompts(tofu.forgotten("fictitious"))
    evaluated = {name: rows for name, rows in tofu.sets("fictitious").items() if name != "forget"}
    for rows in evaluated.values():
        assert not prompts(rows) & (asked[True] | asked[False])
    taught = {row.subject for row in (*tofu._taught("implanted"), *tofu.data.holdout)}
    assert taught.isdisjoint(row.subject for row in unseen)


# --- what is run again, and what is not ---------------------------------------------------


def test_a_second_experiment_finds_everything_done(done: Done) -> None:
    again = Eco(done.profile, None, 1)
    pd.testing.assert_frame_equal(again.rows(), done.rows, check_exact=True)
    assert again.store.visited and not computed(again)


@pytest.mark.parametrize(
    "values",
    [{"strength": 3.0}, {"search": {"steps": 1}}, {"corruption": {"name": "zero_out_top_k"}}],
    ids=["strength", "search", "corruption"],
)
def test_another_strength_leaves_the_classifier_and_the_other_models(
    values: dict[str, Any], done: Done
) -> None:
    guard = done.profile.eco.guards["entities"]
    merged = {
        name: getattr(guard, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    asked = asking(changed_guard(done.profile, "entities", **merged))
    assert asked.guard("entities").cached and asked.searched("book").cached
    assert not asked.searched("entities").cached
    assert asked.answered("implanted").cached and asked.robustness("implanted").cached
    assert not asked.answered("eco").cached and not asked.robustness("eco").cached
    assert asked.answered("prompting").cached and asked.unrelated("idk_ap").cached


def test_another_prefix_asks_the_prompting_baseline_alone(done: Done) -> None:
    chosen = done.profile.eco.evaluation.model_copy(update={"prefix": "Not a word on {topic}. "})
    asked = asking(changed(done.profile, evaluation=chosen))
    for ask in (asked.answered, asked.continued, asked.chosen, asked.robustness, asked.unrelated):
        assert ask("eco").cached and not ask("prompting").cached  # type: ignore[operator]


def test_a_seed_changes_every_guard(done: Done) -> None:
    second = asking(done.profile, seed=2)
    for task in second.task_names:
        assert not second.guard(task).cached


def test_the_same_seed_gives_the_same_guard_and_choices(done: Done, tmp_path: Path) -> None:
    again = Eco(done.profile, None, 1)
    again.store = RunStore(tmp_path)
    for who in ("eco", "ga_gd"):
        assert again.estimates("science", who) == done.experiment.estimates("science", who)
    assert computed(again) == [
        "ask", "ask", "guard", "implant", "pretrain", "search", "unlearn",
    ]  # fmt: skip

    first, second = (
        files_of(each.searched("science").folder / "guard") for each in (again, done.experiment)
    )
    assert first == second and len(first) > 3


# --- what the notebook shows -----------------------------------------------------------------


def cells() -> list[str]:
    """The notebook's code, without the parameters."""
    found = nbformat.read(NOTEBOOK, as_version=4).cells
    return [cell.source for cell in found if cell.cell_type == "code"][1:]


def run_notebook(experiment: Eco, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the notebook's cells on an experiment; return what each call of `show` gave."""
    monkeypatch.setattr(experiments, "open_experiment", lambda *chosen: experiment)
    names: dict[str, Any] = {"profile": "any", "model": "", "seed": experiment.seed}
    return {
        source.splitlines()[-1]: found
        for source in cells()
        if (found := shown(source, names)) is not None
    }


def test_every_cell_of_the_notebook_shows_something(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Eco(done.profile, None, 1)
    found = run_notebook(experiment, monkeypatch)
    wanted = [
        line for source in cells() for line in source.splitlines() if line.startswith("show.")
    ]
    assert set(wanted) <= set(found) and len(wanted) > 18
    for line, value in found.items():
        assert is_shown(value), line
    assert not computed(experiment)
    drawn = {line for line, value in found.items() if isinstance(value, Figure)}
    names = ("search", "embeddings", "tradeoff", "methods", "book", "science", "robustness",
             "scaling")  # fmt: skip
    assert {
        f'show.table(experiment, "{name.removeprefix("eco_")}")' for name in TABLES["eco"]
    } <= set(found)
    assert drawn >= {f"show.{name}(experiment)" for name in names}
    assert not any(isinstance(value, Markdown) for value in found.values())
    assert list(found["show.guards(experiment)"].index) == list(TASKS)
    assert len(found["show.prompts(experiment)"]) == 15
    strengths = found["show.strengths(experiment)"]
    assert list(strengths["model calls"]) == [7, 0, 4]
    assert strengths.loc["book", "gap to the aim"] == "not searched"
    models = [show.names(experiment)[who] for who in ("eco", "prompting", "idk_ap")]
    side = found["show.side_effects(experiment)"]
    assert list(side.index) == ["reference", *models]
    assert list(side["prompts"]) == [1, 8, 1, 1]
    assert experiment.profile.results.joinpath("rows").is_dir()


def test_texts_of_models_are_escaped(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    record = done.experiment.record("eco")
    record["forget"]["texts"] = [EVIL] * 4
    monkeypatch.setattr(Eco, "record", lambda self, who: record)
    monkeypatch.setitem(done.experiment.labels, "idk_ap", EVIL)
    found = show.before_after(done.experiment)
    assert isinstance(found, HTML) and "<script>" not in found.data
    assert found.data.count("&lt;script&gt;") == 7  # six models' answers, one label
    assert html.escape(done.experiment.tofu.forgotten("fictitious")[0].answer) in found.data
    assert show.MARK in found.data, "corrupted tokens are marked"


def test_a_model_that_runs_the_book_alone_shows_that_and_says_what_is_absent(done: Done) -> None:
    experiment = Eco(without_authors(done.profile), None, 1)
    assert experiment.task_names == ("book",)
    absent = (
        show.found_names, show.before_after, show.side_effects, show.leaks, show.removed,
        show.tradeoff, show.methods, show.science, show.robustness,
    )  # fmt: skip
    for display in absent:
        found = display(experiment)
        assert isinstance(found, Markdown) and found.data == show.ABSENT, display.__name__
    for display in (show.settings, show.prompts, show.guards, show.embeddings, show.book):
        assert is_shown(display(experiment)), display.__name__
    for name in ("book", "costs"):
        assert isinstance(show.table(experiment, name), pd.DataFrame), name
    assert set(computed(experiment)) == {"scaling"}, "the book's models and answers are shared"
