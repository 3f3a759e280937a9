"""Experiment 4 of profile paper on its whole path: a mirror with taught models, references, TOFU."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CHAT_TEMPLATE
from huggingface_hub import constants
from IPython.display import Markdown
from matplotlib.figure import Figure
from test_closer_look import is_shown, run_notebook
from test_paper_profile import texts, write_bert
from test_tofu_data import Folder, plain, rows
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from unlearn_lib import assets, generation, profiles
from unlearn_lib.classifiers import NliJudge
from unlearn_lib.datasets import people, tofu
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.metrics import tidy
from unlearn_lib.profiles import Profile, load_profile, rows_path
from unlearn_lib.settings import TofuSettings

TAUGHT = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
REFERENCE = "open-unlearning/tofu_Llama-3.2-1B-Instruct_retain99"
REAL_WORLD = "meta-llama/Meta-Llama-3-8B-Instruct"
ENCODER = "sentence-transformers/paraphrase-MiniLM-L6-v2"
NLI = "sileod/deberta-v3-base-tasksource-nli"
STEPS = 2
GRID = {
    f"{forget}_{kept}": f"{forget}_{kept}"
    for forget in ("ga", "npo", "me", "dpo", "idk")
    for kept in ("gd", "kl", "ap")
}
FIELD = {name: name for name in ("simnpo_gd", "wga_gd", "undial_gd", "rmu")}
METHODS = GRID | FIELD | {"ga": "ga", "llmu": "ga_mismatch_kl"}
EVERYWHERE = {"ga_gd", "npo_gd", "me_gd", "dpo_gd", "idk_gd", "idk_ap"}


def write_llama(folder: Path, seed: int) -> None:
    """A tiny random Llama with a chat template; eight blocks, for RMU steers the one numbered 7."""
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>"]
    trained.train_from_iterator(texts(), 400, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_encoder(folder: Path, words: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    modules = [Transformer(str(words)), Pooling(32)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))


def write_nli(folder: Path) -> None:
    write_bert(folder, 3)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
    model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    model.save_pretrained(folder)


def write_mirror(mirror: Path) -> None:
    for seed, name in enumerate((TAUGHT, REFERENCE, REAL_WORLD)):
        write_llama(mirror / "models" / name, seed)
    write_bert(mirror / "words", None)
    write_encoder(mirror / "models" / ENCODER, mirror / "words")
    write_nli(mirror / "models" / NLI)
    folder = Folder(mirror / "datasets" / tofu.TOFU)
    folder.write("holdout01", plain(rows("the unheard", 4)))


def shrunk(profile: Profile) -> Profile:
    """The profile with two models, methods of few steps and two tasks, on any device."""
    block = profile.tofu
    fewer = {"real_world": {"steps": STEPS, "warmup_steps": 1}}
    small = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3}
    changed: dict[str, Any] = {
        "models": tuple(each for each in block.models if each.id in (TAUGHT, REAL_WORLD)),
        "references": {TAUGHT: block.references[TAUGHT]},
        "data": block.data.model_copy(update={"tasks": 2}),
        "people": block.people.model_copy(  # type: ignore[union-attr]
            update={"rows": 60, "forget_people": 2, "neighbours": 2, "evaluation_neighbours": 2}
        ),
        "methods": tuple(
            method.model_copy(
                update={
                    **small,
                    "scenarios": {
                        name: changes | fewer.get(name, {})
                        for name, changes in method.scenarios.items()
                    },
                }
            )
            for method in block.methods
        ),
        "evaluation": block.evaluation.model_copy(update={"new_tokens": 8}),
    }
    return profile.model_copy(update={"device": "auto", "tofu": block.model_copy(update=changed)})


def knowing(found: Any, prompts: Any, new_tokens: int, batch_size: int) -> list[str]:
    """What a model answers that knows everybody of the embedded people."""
    return [f"{row.short}. That is all." for row in people.load_people()[0][: len(prompts)]]


@dataclass
class Done:
    """Both models of the profile, and their tidy rows."""

    profile: Profile
    taught: CloserLook
    real_world: CloserLook
    rows: dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder: Path = tmp_path_factory.mktemp("paper")
    write_mirror(folder / "mirror")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(profiles, "ROOT", folder)
        patch.setattr(generation, "answers", knowing)
        patch.setenv("UNLEARN_MIRROR", str(folder / "mirror"))
        profile = shrunk(load_profile("paper"))
        taught, real_world = (
            CloserLook(profile, model, profile.seeds[0]) for model in (TAUGHT, REAL_WORLD)
        )
        paths = {each.model_id: each.save_rows() for each in (taught, real_world)}
        found = {name: tidy.read(path) for name, path in paths.items()}
        yield Done(profile, taught, real_world, found)


def published() -> TofuSettings:
    return load_profile("paper").tofu


def test_models_and_references_are_the_published_ones() -> None:
    block = published()
    assert [model.id for model in block.models if model.id in block.references] == [
        TAUGHT,
        "open-unlearning/tofu_Llama-2-7b-chat-hf_full",
    ]
    for name, reference in block.references.items():
        assert reference == name.replace("_full", "_retain99")
    assert block.implant is None and block.real_world_models == (REAL_WORLD,)
    assert all(model.lora is None for model in block.models)
    assert all(model.precision == "bfloat16" for model in block.models)


def test_methods_have_the_published_settings() -> None:
    block = published()
    found = {method.name: method.uses for method in block.methods}
    assert found == METHODS
    for method in block.methods:
        assert (method.batch_size, method.weight_decay) == (32, 0.01), method.name
        assert method.warmup_steps == 1 and method.retain_weight == 1
        if method.name not in FIELD:
            weight = 0.1 if method.name.startswith("me_") else 1.0
            assert (method.forget_weight, method.learning_rate, method.steps) == (weight, 1e-5, 6)
            assert method.beta == 0.1
    entropy = block.method("me_gd")
    assert entropy.within("continual").forget_weight == 1.0
    real = entropy.within("real_world")
    assert (real.forget_weight, real.learning_rate, real.steps) == (0.5, 5e-6, 62)
    assert block.method("idk_ap").within("real_world").learning_rate == 1e-5
    simple, distilled, steered = (block.method(name) for name in ("simnpo_gd", "undial_gd", "rmu"))
    assert (simple.beta, simple.forget_weight) == (4.5, 0.125)
    assert (distilled.beta, distilled.learning_rate) == (10, 1e-4)
    assert (steered.layer, steered.steering) == (7, 2)


def test_data_and_measures_are_the_published_ones() -> None:
    block = published()
    assert (block.data.source, block.data.forget_split, block.data.tasks) == (
        tofu.TOFU,
        "forget01",
        10,
    )
    assert block.data.evaluation_rows is None and block.data.retain_rows is None
    assert block.data.prompt_tokens + block.data.answer_tokens == 500
    chosen = block.evaluation
    assert (chosen.new_tokens, chosen.encoder, chosen.entailment) == (200, ENCODER, NLI)
    assert chosen.min_k == 0.4


def test_there_are_enough_known_people_for_a_model_that_knows_them() -> None:
    settings = published().people
    assert settings is not None and settings.rows is None
    found = people.load_people()[0]
    dealt = people.deal_people(found, [True] * len(found), settings)
    parts = [
        {row.subject for row in part} for part in (dealt.forget, dealt.neighbours, dealt.evaluation)
    ]
    assert [len(part) for part in parts] == [20, 20, 20]


def test_a_taught_model_is_measured_without_implanting(done: Done) -> None:
    found = done.rows[TAUGHT]
    measured = found[found["metric"] == "fe"]
    assert measured.groupby("scenario")["method"].agg(set).to_dict() == {
        "fictitious": {"none", *METHODS},
        "continual 1": EVERYWHERE,
        "continual 2": EVERYWHERE,
    }
    assert set(measured.loc[measured["method"] == "none", "stage"]) == {"implanted", "reference"}
    numbers = found[~found["metric"].isin(["forget_quality"])]
    assert np.isfinite(numbers[["value", "low", "high"]].to_numpy()).all()
    at = ["stage", "scenario", "split", "metric"]
    exact = found[found["stage"] == "reference"].set_index(at)["value"]
    assert exact["reference", "fictitious", "forget", "forget_quality"] == 1
    assert exact["reference", "fictitious", "forget", "privleak"] == 0
    assert rows_path(done.profile, "tofu", TAUGHT, done.profile.seeds[0]).is_file()
    stages = {run.record["stage"] for run in done.taught.store.visited}
    assert stages == {"score", "compare", "unlearn"}
    assert not [left for left in done.profile.results.glob("partial/*") if left.is_dir()]


def test_the_reference_is_the_given_counterpart(done: Done) -> None:
    run = done.taught.scored("reference")
    assert run.provenance["data"]["weights"] == assets.find_model(REFERENCE).sha256
    assert run.record["parents"] == []
    implanted = done.taught.scored("implanted").provenance["data"]
    assert implanted["weights"] == assets.find_model(TAUGHT).sha256
    used = done.taught.unlearned("ga_gd")
    assert used.record["parents"] == [] and used.result["steps"] == STEPS
    assert used.result["hardware"]["precision_asked"] == "bfloat16"


def test_whole_weights_are_trained_and_the_next_task_goes_on_from_them(done: Done) -> None:
    first, second = (done.taught.unlearned("me_gd", None, "continual", task) for task in (1, 2))
    assert second.record["parents"] == [first.key]
    for run in (first, second):
        assert (run.folder / "model/model.safetensors").is_file()
        assert not (run.folder / "model/adapter_model.safetensors").exists()
    fictitious = done.taught.unlearned("me_gd")
    assert fictitious.key != first.key, "the continual forget weight differs"
    weights = [run.record["settings"]["method"]["forget_weight"] for run in (fictitious, first)]
    assert weights == [0.1, 1.0]


def test_entailment_is_the_named_model_s(done: Done) -> None:
    record = done.taught.record("implanted")["forget"]
    judge = NliJudge.load(assets.find_model(NLI).folder)
    truths = [row.answer for row in done.taught.data.tasks[0]]
    entailed = judge.entails(record["texts"], truths)
    expected = [float(a and b >= 0.1) for a, b in zip(entailed, record["rouge"], strict=True)]
    assert record["entailment"] == expected
    used = done.taught.scored("implanted").provenance["data"]
    assert used["entailment"] == assets.find_model(NLI).sha256
    assert used["encoder"] == assets.find_model(ENCODER).sha256
    assert not done.rows[TAUGHT]["scenario"].eq("judge").any()


def test_the_real_world_model_runs_that_scenario_alone(done: Done) -> None:
    found = done.rows[REAL_WORLD]
    assert set(found["scenario"]) == {"real_world", "training"}
    measured = found[found["metric"] == "fe"]
    assert set(measured["method"]) == {"none", *EVERYWHERE}
    assert set(found.loc[found["method"] == "none", "stage"]) == {"base"}
    assert set(found["metric"]).isdisjoint({"forget_quality", "privleak", "model_utility"})
    differences = found[found["metric"] == "mu_difference"]
    pairs = set(zip(differences["method"], differences["split"]))
    wanted = {"me_gd": ("ga_gd", "npo_gd"), "idk_ap": ("idk_gd", "dpo_gd")}
    assert pairs == {(better, other) for better, others in wanted.items() for other in others}
    dealt = done.real_world.people
    assert all(row.answer == f"{row.short}." for row in dealt.forget)
    run = done.real_world.unlearned("me_gd", None, "real_world")
    settings = run.record["settings"]["method"]
    assert (settings["forget_weight"], settings["learning_rate"]) == (0.5, 5e-6)
    stages = {each.record["stage"] for each in done.real_world.store.visited}
    assert stages == {"known", "score", "compare", "unlearn"}


def test_a_second_experiment_finds_everything_done(done: Done) -> None:
    for model, found in done.rows.items():
        again = CloserLook(done.profile, model, done.profile.seeds[0])
        path = again.save_rows()
        pd.testing.assert_frame_equal(tidy.read(path), found, check_exact=True)
        assert again.store.visited and all(run.cached for run in again.store.visited)
        origin = json.loads(path.with_suffix(".json").read_text())
        assert set(found["run"]) <= set(origin["runs"])


@pytest.mark.parametrize("model", [TAUGHT, REAL_WORLD])
def test_the_notebook_runs_on_either_kind_of_model(
    model: str, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = CloserLook(done.profile, model, done.profile.seeds[0])
    found = run_notebook(experiment, monkeypatch)
    assert len(found) > 20
    for line, value in found.items():
        assert is_shown(value), line
    assert all(run.cached for run in experiment.store.visited)
    assert isinstance(found["show.grid(experiment)"], Figure)
    continual = found["show.continual(experiment)"]
    assert isinstance(continual, Figure if model == TAUGHT else Markdown)
