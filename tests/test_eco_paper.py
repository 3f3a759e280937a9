"""Experiment 3 of profile paper on its whole path: a mirror with WMDP, MMLU, TOFU and tiny models."""

import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from IPython.display import Markdown
from test_closer_look import is_shown
from test_closer_look_paper import ENCODER as TOFU_ENCODER
from test_closer_look_paper import NLI, REFERENCE, TAUGHT, write_encoder, write_llama, write_nli
from test_eco import run_notebook
from test_paper_profile import write_bert
from test_science import Mirror
from test_tofu_data import Folder, plain, rows
from transformers import BertForTokenClassification

from unlearn_lib import assets, profiles
from unlearn_lib.batches import pack, packed_logits
from unlearn_lib.datasets import tofu
from unlearn_lib.eco.guard import judged
from unlearn_lib.eco.tokens import NerModel
from unlearn_lib.experiments.eco import Eco
from unlearn_lib.experiments.eco_tasks import behind, choice_losses
from unlearn_lib.metrics import tidy
from unlearn_lib.profiles import Profile, load_profile

ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
ROBERTA = "roberta-base"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
NER = "dslim/bert-base-NER"
SECRET = re.compile(rb"Secret \d|(?:right|wrong) \d+")
"""What the mirror's hazardous questions and their choices look like."""


def write_mirror(mirror: Path) -> None:
    models = mirror / "models"
    for seed, name in enumerate((ZEPHYR, TAUGHT, REFERENCE)):
        write_llama(models / name, seed)
    write_bert(models / ROBERTA, None)
    for name in (ENCODER, TOFU_ENCODER):
        write_encoder(models / name, models / ROBERTA)
    write_nli(models / NLI)
    write_bert(models / NER, None)
    tagger = BertForTokenClassification.from_pretrained(models / NER)
    tagger.config.id2label, tagger.config.label2id = {0: "O", 1: "PER"}, {"O": 0, "PER": 1}
    tagger.save_pretrained(models / NER)
    Mirror(mirror)
    folder = Folder(mirror / "datasets" / tofu.TOFU)
    folder.write("holdout01", plain(rows("the unheard", 4)))


def shrunk(profile: Profile) -> Profile:
    """The profile with the models of two tasks, short trainings and short answers."""
    block, authors = profile.eco, profile.tofu
    guards = dict(block.guards)
    fewer = guards["entities"].search.model_copy(update={"steps": 1, "questions": 4})
    guards["entities"] = guards["entities"].model_copy(update={"search": fewer})
    classifier = {"epochs": 1, "most": 25, "maximum_length": 64}
    evaluation = {"unrelated_prompts": 16, "unrelated_tokens": 8, "scaling": ()}
    changed: dict[str, Any] = {
        "models": tuple(each for each in block.models if each.id in (ZEPHYR, TAUGHT)),
        "classifier": block.classifier.model_copy(update=classifier),
        "guards": guards,
        "beside": {},
        "methods": tuple(
            each.model_copy(update={"steps": 2, "batch_size": 2}) for each in block.methods
        ),
        "evaluation": block.evaluation.model_copy(update=evaluation),
    }
    asked = {
        "data": authors.data.model_copy(update={"tasks": 1}),
        "evaluation": authors.evaluation.model_copy(update={"new_tokens": 8}),
    }
    blocks = {"eco": block.model_copy(update=changed), "tofu": authors.model_copy(update=asked)}
    return profile.model_copy(update={"device": "auto", **blocks})


@dataclass
class Done:
    """Both models of the profile, and their tidy rows as they were saved."""

    profile: Profile
    science: Eco
    entities: Eco
    rows: dict[str, pd.DataFrame]

    def value(self, model: str, *place: str) -> float:
        at = ["scenario", "split", "stage", "method", "metric"]
        return float(self.rows[model].set_index(at)["value"].loc[place])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder: Path = tmp_path_factory.mktemp("eco_paper")
    write_mirror(folder / "mirror")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(profiles, "ROOT", folder)
        patch.setenv("UNLEARN_MIRROR", str(folder / "mirror"))
        profile = shrunk(load_profile("paper"))
        gc.freeze()  # each training collects garbage, which is slow with all of torch to look at
        science, entities = (Eco(profile, name, profile.seeds[0]) for name in (ZEPHYR, TAUGHT))
        found = {each.model_id: tidy.read(each.save_rows()) for each in (science, entities)}
        yield Done(profile, science, entities, found)
        gc.unfreeze()


# --- hazardous knowledge -----------------------------------------------------------------------


def test_what_the_model_knows_by_itself_is_measured_without_teaching(done: Done) -> None:
    found = done.rows[ZEPHYR]
    assert set(found["scenario"]) == {"science", "guard", "costs"}
    measured = found[found["scenario"] == "science"]
    models = {
        ("implanted", "none"), ("guarded", "eco"), ("guarded", "prompting"), ("unlearned", "rmu"),
    }  # fmt: skip
    for split, metrics in {
        "forget": {"choice_accuracy", "probe_accuracy"},
        "retain": {"choice_accuracy"},
        "general": {"choice_accuracy"},
    }.items():
        part = measured[measured["split"] == split]
        assert set(part["metric"]) == metrics
        assert set(zip(part["stage"], part["method"])) == models
    assert np.isfinite(found[["value", "low", "high"]].to_numpy()).all()
    counts = measured[measured["metric"] == "choice_accuracy"].groupby("split")["n"].agg(set)
    assert counts.to_dict() == {"forget": {9}, "retain": {3}, "general": {16}}
    assert {run.record["stage"] for run in done.science.store.visited} == {
        "guard", "search", "ask", "unlearn",
    }  # fmt: skip


def test_guard_and_weights_are_the_named_ones(done: Done) -> None:
    task = done.science.tasks["science"]
    weights = assets.find_model(ZEPHYR)
    assert task.weights == weights and weights.source == "mirror"
    trained, searched = done.science.guard("science"), done.science.searched("science")
    assert trained.provenance["data"]["base"] == assets.find_model(ROBERTA).sha256
    assert trained.record["settings"]["classifier"]["base"] == ROBERTA
    assert searched.result["steps"] == [] and searched.result["calls"] == 0
    guard = done.science.guarded("science").model.guard
    assert (guard.strength, guard.threshold, guard.corruption.dims) == (1e6, 0.999, 1)
    assert done.value(ZEPHYR, "guard", "science", "guarded", "eco", "guard_threshold") == 0.999


def test_a_method_trains_the_model_as_given(done: Done) -> None:
    run = done.science.unlearned("rmu")
    assert run.record["parents"] == [] and run.result["steps"] == 2
    assert run.record["settings"]["method"]["layer"] == 7
    assert run.result["hardware"]["precision_asked"] == "bfloat16"
    assert done.value(ZEPHYR, "costs", "science", "unlearned", "rmu", "parameters_changed") > 0


def test_what_is_flagged_is_corrupted_and_what_is_not_is_left(done: Done) -> None:
    task, found = done.science.tasks["science"], done.science.guarded("science")
    rows = task.splits.forget[:4]  # type: ignore[attr-defined]
    guard = found.model.guard
    assert not (judged(guard.classifier, [row.question for row in rows]) > 0.999).any()
    encoder, plain = done.science.encoder, task.loaded("implanted")
    packed = pack([encoder.example(row.question, row.answer) for row in rows], share=False)
    with torch.no_grad():
        assert torch.equal(packed_logits(found.model, packed), packed_logits(plain.model, packed))
    losses = choice_losses(plain, encoder, rows)
    np.testing.assert_allclose(choice_losses(found, encoder, rows), losses, rtol=1e-6)
    flagging = behind(plain, guard, task.frame, judge=lambda prompts: [True] * len(prompts))
    corrupted = choice_losses(flagging, encoder, rows)
    assert np.isfinite(corrupted).all() and not np.isclose(corrupted, losses).any()


def test_no_hazardous_text_is_stored(done: Done) -> None:
    splits = done.science.science
    for row in (*splits.forget, *splits.retain):
        assert SECRET.search(row.question.encode()) and SECRET.search(row.answer.encode())
    runs = [run.folder for run in done.science.store.visited]
    kept = [path for folder in runs for path in folder.rglob("*") if path.is_file()]
    kept += list((done.profile.results / "rows").iterdir())
    assert len(kept) > 20
    for path in kept:
        assert not SECRET.search(path.read_bytes()), path.name


def test_the_notebook_runs_on_either_kind_of_model(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, absent in ((ZEPHYR, True), (TAUGHT, False)):
        experiment = Eco(done.profile, model, done.profile.seeds[0])
        found = run_notebook(experiment, monkeypatch)
        for line, value in found.items():
            assert is_shown(value), line
        for display, missing in (("before_after", absent), ("science", not absent)):
            (value,) = (each for line, each in found.items() if f"show.{display}(" in line)
            assert isinstance(value, Markdown) == missing, display
        assert all(run.cached for run in experiment.store.visited)


# --- fictitious authors ------------------------------------------------------------------------


def test_taught_models_are_guarded_and_compared_with_the_given_reference(done: Done) -> None:
    found = done.rows[TAUGHT]
    measured = found[found["scenario"] == "entities"]
    assert set(zip(measured["stage"], measured["method"])) == {
        ("implanted", "none"), ("reference", "none"), ("guarded", "eco"), ("guarded", "prompting"),
    }  # fmt: skip
    exact = ("entities", "forget", "reference", "none")
    assert done.value(TAUGHT, *exact, "forget_quality") == 1
    assert done.value(TAUGHT, *exact, "asg") == 0
    assert "leak_share" not in set(found["metric"]), "the hub's questions name no facts"
    assert isinstance(done.entities.guarded("entities").model.guard.selector, NerModel)


def test_a_given_reference_costs_nothing_that_is_known(done: Done) -> None:
    costs = done.rows[TAUGHT][done.rows[TAUGHT]["scenario"] == "costs"]
    once = costs[costs["metric"] == "seconds"]
    assert set(once["method"]) == {"eco", "prompting"}


def test_models_without_runs_of_their_own_are_not_taken_for_each_other(done: Done) -> None:
    """Neither the taught model nor its reference was made here: their weights tell them apart."""
    experiment = done.entities
    assert experiment.made("entities", "implanted") == experiment.made("entities", "reference")
    for ask in (experiment.answered, experiment.robustness, experiment.unrelated):
        implanted, reference = ask("implanted"), ask("reference")
        assert implanted.key != reference.key
        weights = [run.provenance["data"]["weights"] for run in (implanted, reference)]
        assert weights == [assets.find_model(name).sha256 for name in (TAUGHT, REFERENCE)]
