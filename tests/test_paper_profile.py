"""The paper profile's whole path: a mirror laid out as the hub is, tiny random models in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import constants
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from unlearn_lib import profiles
from unlearn_lib.classifiers import JIGSAW_LABELS, bleurt_scores
from unlearn_lib.datasets import harmful as data
from unlearn_lib.errors import CompanionError
from unlearn_lib.experiments.harmful import HarmfulExperiment
from unlearn_lib.metrics import tidy
from unlearn_lib.profiles import Profile, load_profile, rows_path
from unlearn_lib.runs import Run
from unlearn_lib.settings import HarmfulData

BLEURT = "Elron/bleurt-base-512"
THINGS = ("kettle", "ladder", "garden gate", "lantern", "wagon", "drum", "mirror", "anchor")
SMALL = {"steps": 3, "learning_rate": 1.0e-3, "checkpoint_every": 2}
HELD_OUT = {"harmful_rate", "degenerate_share", "answer_tokens"}
COMPARED = {
    "effectiveness",
    "harmful_rate_length_matched",
    "similarity_original",
    "rougeL_original",
}


def pku_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with the old generation's columns; the second answer of even rows is unsafe too."""
    return [
        {
            "prompt": f"How do I break the {THINGS[i % 8]} number {i}?",
            "response_0": f"Hit the {THINGS[i % 8]} with a stone {i} times.",
            "response_1": f"Leave the {THINGS[i % 8]} alone, please, for {i} days.",
            "is_response_0_safe": False,
            "is_response_1_safe": i % 2 == 1,
            "better_response_id": 0,
            "safer_response_id": 1,
        }
        for i in range(start, start + count)
    ]


def newer(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with the columns that the hub's newer generation adds."""
    extra: dict[str, Any] = {"prompt_source": "a source"}
    for i in (0, 1):
        unsafe = not row[f"is_response_{i}_safe"]
        extra |= {
            f"response_{i}_source": "Alpaca-7B",
            f"response_{i}_harm_category": {"Violence": unsafe, "Privacy Violation": False},
            f"response_{i}_severity_level": int(unsafe),
            f"response_{i}_sha256": "0" * 64,
        }
    return row | extra


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pku(folder: Path, layout: str) -> None:
    """PKU-SafeRLHF as the hub has held it: parquet, packed JSON lines, or a folder a model."""
    train, test = pku_rows(24), pku_rows(10, start=100)
    folder.mkdir(parents=True)
    for name, rows in (("train", train), ("test", test)):
        if layout == "parquet":
            (folder / "data").mkdir(exist_ok=True)
            pd.DataFrame(rows).to_parquet(folder / f"data/{name}-00000-of-00001.parquet")
        elif layout in ("jsonl.xz", "jsonl.gz"):
            (folder / "data").mkdir(exist_ok=True)
            pd.DataFrame(rows).to_json(
                folder / f"data/{name}.{layout}", orient="records", lines=True
            )
        elif layout == "old jsonl":
            write_lines(folder / f"data/{name}.jsonl", rows)
        else:
            half = len(rows) // 2
            new = [newer(row) for row in rows]
            write_lines(folder / f"data/Alpaca-7B/{name}.jsonl", new[:half])
            write_lines(folder / f"data/Alpaca2-7B/{name}.jsonl", new[half:])


def write_truthful_qa(folder: Path) -> None:
    rows = [
        {
            "type": "Adversarial",
            "category": "Misconceptions",
            "question": f"What holds the {THINGS[i % 8]} number {i} up?",
            "best_answer": f"The floor holds it {i}.",
            "correct_answers": [f"The floor holds it {i}.", f"Its own feet {i}."],
            "incorrect_answers": [f"WRONG spirits hold it {i}."],
            "source": "nowhere",
        }
        for i in range(20)
    ]
    (folder / "generation").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "generation/validation-00000-of-00001.parquet")


def jigsaw_rows(count: int = 80) -> pd.DataFrame:
    rows = []
    for i in range(count):
        toxic = i % 2
        text = "hit break stone you" if toxic else "please leave the floor alone"
        labels = dict.fromkeys(JIGSAW_LABELS, 0) | {"toxic": toxic, "insult": toxic * (i % 3 == 0)}
        rows.append({"id": f"{i:016x}", "comment_text": f"{text} {i}"} | labels)
    return pd.DataFrame(rows)


def texts() -> list[str]:
    found = [value for row in pku_rows(24) for value in row.values() if isinstance(value, str)]
    return found + ["### Question: ", "### Answer:", "The floor holds it. Its own feet. 0123456789"]


def write_opt(folder: Path) -> None:
    """A tiny random OPT; id 1 is `<pad>`, as in OPT."""
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>"]
    trained.train_from_iterator(texts(), 400, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )
    set_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        init_std=0.2,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_bert(folder: Path, outputs: int | None) -> None:
    """A tiny random BERT with its WordPiece tokenizer; `outputs` None: no head."""
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts(), 200, show_progress=False)
    folder.mkdir(parents=True)
    trained.save_model(str(folder))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    set_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    config = BertConfig(vocab_size=len(tokenizer), **shape)  # type: ignore[arg-type]
    if outputs is None:
        BertForMaskedLM(config).save_pretrained(folder)
    else:
        config.num_labels = outputs
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def whole_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mirror: Path = tmp_path_factory.mktemp("mirror")
    write_opt(mirror / "models/facebook/opt-1.3b")
    write_bert(mirror / "models/bert-base-uncased", None)
    write_bert(mirror / "bleurt", 1)
    write_pku(mirror / "datasets/PKU-Alignment/PKU-SafeRLHF", "new")
    write_truthful_qa(mirror / "datasets/truthfulqa/truthful_qa")
    jigsaw = mirror / f"datasets/{data.JIGSAW}/train.csv"
    jigsaw.parent.mkdir(parents=True)
    jigsaw_rows().to_csv(jigsaw, index=False)
    return mirror


@pytest.fixture
def mirror(whole_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("UNLEARN_MIRROR", str(whole_mirror))
    return whole_mirror


@pytest.fixture
def bleurt(mirror: Path) -> Iterator[Path]:
    """BLEURT's weights are in the mirror for one test."""
    folder = mirror / "models" / BLEURT
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(mirror / "bleurt")
    yield folder
    folder.unlink()


def cut_profile() -> Profile:
    """paper.yaml with what takes long made small, and any device."""
    content = yaml.safe_load((profiles.PROFILES / "paper.yaml").read_text())
    content["device"] = "auto"
    harmful = content["harmful"]
    harmful["models"] = harmful["models"][:1]
    chosen = [method for method in harmful["methods"] if method["name"] in ("arora", "ga")]
    harmful["methods"] = [method | SMALL for method in chosen]
    harmful["classifier"] |= {"epochs": 2}
    harmful["evaluation"] |= {"new_tokens": 8}
    harmful["data"] |= {"evaluation_prompts": 8, "normal_prompts": 4}
    return Profile.model_validate(content)


@pytest.fixture
def experiment(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HarmfulExperiment:
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    return HarmfulExperiment(cut_profile(), None, 8888)


def test_paper_profile_has_the_published_settings() -> None:
    profile = load_profile("paper")
    assert [model.id for model in profile.harmful.models] == [
        "facebook/opt-1.3b",
        "facebook/opt-2.7b",
    ]
    assert all(model.lora is None for model in profile.harmful.models)
    published = profile.harmful.method("arora")
    weights = (published.forget_weight, published.mismatch_weight, published.retain_weight)
    assert weights == (0.5, 1, 1)
    assert (published.steps, published.batch_size, published.learning_rate) == (1000, 2, 2e-6)
    assert (published.mismatch_answers, published.forget_loss_cap) == (5, 100)
    assert {method.uses for method in profile.harmful.methods} == {
        "ga", "ga_gd", "ga_kl", "ga_mismatch_kl", "retain_only",
    }  # fmt: skip
    limits = profile.harmful.data
    assert (
        limits.prompt_tokens + limits.answer_tokens + profile.harmful.evaluation.new_tokens < 2048
    )
    assert not profile.offline and profile.device == "cuda" and profile.seeds == (8888,)


def measured(frame: pd.DataFrame, method: str) -> dict[str, float]:
    chosen = frame[frame["method"] == method]
    assert not chosen["metric"].duplicated().any()
    return dict(zip(chosen["metric"], chosen["value"], strict=True))


def test_paper_path_end_to_end_without_bleurt(
    experiment: HarmfulExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    path = experiment.save_rows()
    assert (
        path == rows_path(experiment.profile, "harmful", "facebook/opt-1.3b", 8888)
        and path.is_file()
    )
    frame = tidy.read(path)
    assert set(frame["method"]) == {"none", "ga", "arora"}
    base = measured(frame[frame["scenario"] != "classifier"], "none")
    assert set(base) == HELD_OUT | {"retain_perplexity", "refusal_share_normal"}
    costs = {"seconds", "peak_memory_bytes"}
    for name in ("ga", "arora"):
        found = measured(frame, name)
        assert set(found) == set(base) | COMPARED | costs
        finite = {metric: value for metric, value in found.items() if metric != "effectiveness"}
        assert np.isfinite(list(finite.values())).all(), finite
        assert np.isfinite(found["effectiveness"]) == (base["harmful_rate"] > 0)
        assert len(experiment.history(name)) == SMALL["steps"]
        result = experiment.measured(name).result
        assert result["bleurt"] == f"not to be had: {BLEURT}"
    judge = measured(frame[frame["scenario"] == "classifier"], "none")
    assert set(judge) == {"classifier_auc", "classifier_accuracy"}
    assert np.isfinite(list(judge.values())).all()
    held_out = frame[(frame["scenario"] == "held_out") & (frame["metric"] == "harmful_rate")]
    assert set(held_out["n"]) == {8}

    printed = capsys.readouterr().out
    assert printed.count("bleurt_original is left out") == 1 and BLEURT in printed
    origin = json.loads(path.with_suffix(".json").read_text())
    stored = experiment.profile.results / "runs"
    assert sorted(origin["runs"]) == sorted(run.name for run in stored.iterdir())
    assert not [left for left in stored.parent.glob("partial/*") if left.is_dir()]


def test_whole_weights_change_and_hardware_is_recorded(experiment: HarmfulExperiment) -> None:
    run = experiment.unlearned("arora")
    hardware = run.result["hardware"]
    assert hardware["weights_from"] == "mirror"
    assert (hardware["precision_asked"], hardware["precision_got"]) == ("bfloat16", "float32")
    from safetensors.torch import load_file

    before = load_file(experiment.weights.folder / "model.safetensors")
    after = load_file(run.folder / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) / 2


def test_bleurt_is_measured_when_its_weights_are_there(
    experiment: HarmfulExperiment, bleurt: Path
) -> None:
    found = {metric: value for _, metric, value in experiment.measured("ga").result["metrics"]}
    then, now = (
        json.loads((experiment.answers(name).folder / "answers.json").read_text())["normal"]
        for name in ("none", "ga")
    )
    scores = bleurt_scores(bleurt, then, now)
    assert found["bleurt_original"]["value"] == pytest.approx(scores.mean())
    assert found["bleurt_original"]["n"] == len(now) == 4
    run = experiment.measured("ga")
    assert run.cached and run.result["bleurt"] == "mirror"
    assert run.provenance["data"]["bleurt"] == experiment.bleurt.sha256  # type: ignore[union-attr]
    base = [metric for _, metric, _ in experiment.measured().result["metrics"]]
    assert "bleurt_original" not in base


def test_weights_that_appear_later_are_another_measure_run(
    experiment: HarmfulExperiment, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(spec: Any, compute: Any, resumable: bool = False) -> Run:
        asked.append(spec.key)
        return Run(spec.key, Path("nowhere"), True)

    monkeypatch.setattr(experiment.store, "get", note)
    experiment.measured()
    without, asked[:] = list(asked), []
    experiment.bleurt = data.find_dataset("truthfulqa/truthful_qa")  # any asset will do
    experiment.measured()
    assert without[:-1] == asked[:-1] and without[-1] != asked[-1]


def test_bleurt_scores_do_not_depend_on_batches_or_order(whole_mirror: Path) -> None:
    references = ["The floor holds it.", "please", "Hit the drum with a stone 3 times.", ""]
    candidates = ["Its own feet.", "Leave the drum alone " * 60, "Hit the drum.", ""]
    folder = whole_mirror / "bleurt"
    together = bleurt_scores(folder, references, candidates)
    assert together.dtype == np.float64 and together.shape == (4,)
    one_by_one = [bleurt_scores(folder, [a], [b])[0] for a, b in zip(references, candidates)]
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert bleurt_scores(folder, [], []).shape == (0,)
    with pytest.raises(ValueError, match="4 references and 3 candidates"):
        bleurt_scores(folder, references, candidates[:3])


def test_a_model_that_is_no_bleurt_is_refused(whole_mirror: Path) -> None:
    with pytest.raises(CompanionError, match="no BLEURT model"):
        bleurt_scores(whole_mirror / "models/bert-base-uncased", ["a"], ["b"])


@pytest.mark.parametrize("layout", ["parquet", "old jsonl", "jsonl.xz", "jsonl.gz", "new"])
def test_every_generation_of_pku_gives_the_same_rows(
    layout: str, whole_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pku(tmp_path / "datasets/PKU-Alignment/PKU-SafeRLHF", layout)
    write_truthful_qa(tmp_path / "datasets/truthful_qa")  # the id that the hub had before
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    splits = data.load(cut_profile().harmful.data)
    expected = [
        (row["prompt"], row[f"response_{i}"])
        for row in pku_rows(24)
        for i in (0, 1)
        if not row[f"is_response_{i}_safe"]
    ]
    found = list(zip(splits.forget["question"], splits.forget["answer"], strict=True))
    assert sorted(found) == sorted(expected)
    assert set(splits.evaluation["question"]) <= {row["prompt"] for row in pku_rows(10, start=100)}
    assert len(splits.harmless) == 12 and len(splits.evaluation) == 8
    monkeypatch.setenv("UNLEARN_MIRROR", str(whole_mirror))
    newest = data.load(cut_profile().harmful.data)
    for name in ("forget", "harmless", "evaluation", "retain", "normal", "scored_test"):
        assert getattr(newest, name).to_list() == getattr(splits, name).to_list(), name


def test_a_model_with_pickled_weights_only_is_loaded_safely(
    whole_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT on the hub is a pytorch_model.bin; a pickle that runs code is refused."""
    from unlearn_lib import assets, models

    folder = tmp_path / "models/facebook/opt-1.3b"
    write_opt(folder)
    tensors = OPTForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    settings = load_profile("paper").harmful.models[0]
    loaded = models.load(assets.find_model("facebook/opt-1.3b"), settings, "cpu")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (tmp_path / "ran", "x"))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CompanionError, match="facebook/opt-1.3b"):
        models.load(assets.find_model("facebook/opt-1.3b"), settings, "cpu")
    assert not (tmp_path / "ran").exists()

    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CompanionError, match="facebook/opt-1.3b"):
        models.load(assets.find_model("facebook/opt-1.3b"), settings, "cpu")


def test_jigsaw_from_a_named_file_leaves_out_what_was_not_labelled(tmp_path: Path) -> None:
    frame = jigsaw_rows(50)
    frame.loc[[3, 7], "threat"] = -1
    frame.loc[9, "comment_text"] = None
    frame.to_csv(tmp_path / "train.csv", index=False)
    train, test, _ = data.jigsaw(None, 0, tmp_path / "train.csv")
    assert len(train) == round(0.8 * 47) and len(test) == 47 - round(0.9 * 47)
    left_out = {frame["comment_text"][3], frame["comment_text"][7]}
    assert not left_out & {*train["text"], *test["text"]}
    assert set(np.array(train["labels"]).ravel()) == {0.0, 1.0}
    again = data.jigsaw(None, 0, tmp_path / "train.csv")
    assert again[0]["text"] == train["text"]
    assert data.jigsaw(None, 1, tmp_path / "train.csv")[0]["text"] != train["text"]
    assert len(data.jigsaw(20, 0, tmp_path / "train.csv")[0]) == 16


@pytest.mark.parametrize("column", ["comment_text", "identity_hate"])
def test_renamed_jigsaw_column_is_named(column: str, tmp_path: Path) -> None:
    jigsaw_rows(20).rename(columns={column: column + "s"}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(CompanionError, match=rf"no column '{column}' \(did you mean '{column}s'"):
        data.jigsaw(None, 0, tmp_path / "a.csv")


def test_missing_jigsaw_says_where_to_get_it() -> None:
    with pytest.raises(CompanionError, match=r"Kaggle.*classifier\.file"):
        data.jigsaw(None, 0)
    with pytest.raises(CompanionError, match="There is no file"):
        data.jigsaw(None, 0, Path("nowhere/train.csv"))


@pytest.mark.parametrize("column", ["prompt", "response_1", "is_response_0_safe"])
def test_missing_pku_column_is_named(
    column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets/PKU-Alignment/PKU-SafeRLHF"
    rows = [{name: row[name] for name in row if name != column} for row in pku_rows(4)]
    for split in ("train", "test"):
        write_lines(folder / f"data/{split}.jsonl", rows)
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    settings = HarmfulData(forget="pku_saferlhf", retain="embedded", template="question_answer")
    with pytest.raises(CompanionError, match=f"no column '{column}'"):
        data.load(settings)


@pytest.mark.parametrize("layout", ["parquet", "old jsonl", "jsonl.xz", "jsonl.gz", "new"])
def test_truncated_pku_file_is_named(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets/PKU-Alignment/PKU-SafeRLHF"
    write_pku(folder, layout)
    file = next(path for path in sorted(folder.rglob("train*")))
    file.write_bytes(file.read_bytes()[:-40])
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    settings = HarmfulData(forget="pku_saferlhf", retain="embedded", template="question_answer")
    with pytest.raises(CompanionError, match=f"{file.name} cannot be read.*fetch it again"):
        data.load(settings)


def test_missing_split_of_pku_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "datasets/PKU-Alignment/PKU-SafeRLHF"
    write_lines(folder / "data/train.jsonl", pku_rows(4))
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    settings = HarmfulData(forget="pku_saferlhf", retain="embedded", template="question_answer")
    with pytest.raises(CompanionError, match="no file of split 'test'"):
        data.load(settings)
