"""Experiment 2 of profile paper on its whole path: a mirror, a tiny random OPT in 8 bit, an EPUB."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from test_paper_profile import write_opt
from test_readers import NAMES, NUMBERS, html, make_epub, page, prose
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from unlearn_lib import profiles
from unlearn_lib.datasets.book import PARTS
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.metrics import tidy
from unlearn_lib.passages import PassageEncoder
from unlearn_lib.profiles import Profile, load_profile, rows_path
from unlearn_lib.settings import BookSettings

MODEL = "facebook/opt-1.3b"
METHODS = {
    "arora": "ga_mismatch_kl",
    "ga": "ga",
    "ga_gd": "ga_gd",
    "npo": "npo",
    "mismatch": "mismatch_only",
    "kl": "kl_only",
    "released": "ga_mismatch_kl",
    "npo_keep": "npo_keep_kl",
    "retrain": "keep_kl",
}
STEPS = 2
STRETCH = 200
COSTS = ["seconds", "peak_memory_bytes"]
TEXT = {
    "bleu", "similarity_text", "rougeL_recall", "verbatim_run", "extraction_strength",
    "degenerate_share", "perplexity", "verbatim_share",
}  # fmt: skip
ON_NORMAL = {"degenerate_share", "perplexity"}
TESTED = {"ks_distance", "ks_p_value"}


def chapters() -> list[list[str]]:
    """Four chapters; some sentences are longer than the released prompt of 200 characters."""
    found = []
    for seed in range(4):
        paragraphs = prose(330, seed=seed)
        long = [p.replace(". ", ", ").capitalize() for p in paragraphs[::2]]
        found.append([*long, *paragraphs[1::2]])
    return found


CHAPTERS = chapters()


def write_mirror(mirror: Path) -> None:
    folder = mirror / "models" / MODEL
    write_opt(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])  # as OPT's does
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder)
    texts = [" ".join(prose(90, seed=100 + i)) for i in range(24)]
    file = mirror / "datasets/saibo/bookcorpus_compact_256/data/train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    pd.DataFrame({"text": texts}).to_parquet(file)


def write_book(path: Path) -> Path:
    headings = zip(NUMBERS, NAMES, CHAPTERS, strict=True)
    pages = {
        f"{i}.xhtml": page(f"<h1>Chapter {number}</h1><h2>{name}</h2>{html(body)}")
        for i, (number, name, body) in enumerate(headings)
    }
    path.write_bytes(make_epub(pages))
    return path


def shrunk(profile: Profile) -> Profile:
    """The profile with its first model, few steps and short passages, on any device."""
    block = profile.book
    changed: dict[str, Any] = {
        "models": block.models[:1],
        "data": block.data.model_copy(
            update={"evaluation_passages": 5, "normal_prompts": 5}
            | {"prompt_tokens": 16, "answer_tokens": 24}
        ),
        "implant": block.implant.model_copy(
            update={"epochs": 2, "warmup_steps": 1, "probe_passages": 3}
        ),
        "methods": tuple(m.model_copy(update={"steps": STEPS}) for m in block.methods),
        "evaluation": block.evaluation.model_copy(update={"new_tokens": 24}),
    }
    return profile.model_copy(update={"device": "auto", "book": block.model_copy(update=changed)})


@dataclass
class Done:
    """An experiment that has run, and its tidy rows."""

    profile: Profile
    experiment: BookExperiment
    path: Path
    rows: pd.DataFrame


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a mirror and a book; results go below it."""
    folder: Path = tmp_path_factory.mktemp("paper")
    write_mirror(folder / "mirror")
    write_book(folder / "keeper.epub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(profiles, "ROOT", folder)
        patch.setenv("UNLEARN_MIRROR", str(folder / "mirror"))
        yield folder


@pytest.fixture(scope="module")
def done(place: Path) -> Done:
    profile = shrunk(load_profile("paper", place / "keeper.epub"))
    experiment = BookExperiment(profile, None, profile.seeds[0])
    path = experiment.save_rows()
    return Done(profile, experiment, path, tidy.read(path))


def published() -> BookSettings:
    return load_profile("paper").book


def test_models_are_held_and_adapted_as_published() -> None:
    block = published()
    assert [model.id for model in block.models] == ["facebook/opt-1.3b", "facebook/opt-2.7b"]
    for model in block.models:
        assert model.quantization == "8bit" and model.lora is not None
        lora = model.lora
        assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
        assert lora.targets == ("q_proj", "v_proj")


def test_implant_has_the_published_schedule() -> None:
    implant = published().implant
    assert implant.chunk_tokens == 2048 - 1  # one is the tokenizer's own first token
    assert (implant.epochs, implant.batch_size, implant.learning_rate) == (3, 1, 2e-4)
    assert (implant.warmup_steps, implant.weight_decay) == (100, 0.1)
    assert implant.stop_at is None and not implant.shift_chunks
    assert implant.schedule == "linear"


def test_methods_have_the_published_settings() -> None:
    block = published()
    assert {method.name: method.uses for method in block.methods} == METHODS
    for name in ("arora", "released"):
        method = block.method(name)
        weights = (method.forget_weight, method.mismatch_weight, method.retain_weight)
        assert weights == (0.5, 1, 1), name
        assert (method.batch_size, method.steps, method.learning_rate) == (2, 1000, 1e-3), name
        assert method.retain_batch_size in (None, 2) and method.start == "implanted"
        assert (method.mismatch_answers, method.forget_loss_cap) == (5, 100)
    ours, theirs = (block.method(name).model_dump() for name in ("arora", "released"))
    assert {name for name in ours if ours[name] != theirs[name]} == {"name", "label", "variant"}
    assert set(block.method("released").faults) == {
        "empty_labels", "book_mismatch", "kl_to_itself",
    }  # fmt: skip
    assert block.method("retrain").start == "base"


def test_data_are_the_published_ones_and_fit_opt_s_context() -> None:
    block = published()
    assert block.data.retain == "bookcorpus" and block.data.file is None
    assert block.data.questions is None
    longest = (
        1 + block.data.prompt_tokens + max(block.data.answer_tokens, block.evaluation.new_tokens)
    )
    assert longest <= 2048 and block.evaluation.new_tokens >= 24
    assert block.evaluation.encoder == "sentence-transformers/all-MiniLM-L6-v2"


def test_profile_is_named_by_the_book(done: Done, place: Path) -> None:
    assert done.profile.name == "paper-book-keeper"
    assert done.path == rows_path(done.profile, "book", MODEL, done.profile.seeds[0])
    assert done.path.is_relative_to(place / "results/paper-book-keeper")
    assert [path.name for path in (place / "results").iterdir()] == ["paper-book-keeper"]


def test_rows_are_tidy_with_every_stage_and_method(done: Done) -> None:
    rows = done.rows
    assert set(rows["experiment"]) == {"book"} and set(rows["model"]) == {MODEL}
    names = {stage: set(part["method"]) for stage, part in rows.groupby("stage")}
    assert names == {"base": {"none"}, "implanted": {"none"}, "unlearned": set(METHODS)}
    place = ["stage", "method", "scenario", "split", "metric"]
    assert not rows.duplicated(place).any()
    numbers = rows[rows["metric"] != "ks_p_value"]
    assert np.isfinite(numbers[["value", "low", "high"]].to_numpy()).all()
    assert (numbers["low"] <= numbers["value"]).all() and (
        numbers["value"] <= numbers["high"]
    ).all()
    stored = {run.name for run in (done.profile.results / "runs").iterdir()}
    assert set(rows["run"]) <= stored
    assert not [left for left in done.profile.results.glob("partial/*") if left.is_dir()]


def test_every_model_has_every_measure(done: Done) -> None:
    for (stage, method), part in done.rows.groupby(["stage", "method"]):
        found = {
            place: set(group["metric"]) for place, group in part.groupby(["scenario", "split"])
        }
        compared: dict[Any, set[str]] = {}
        if stage != "base":
            compared = {("minus_base", split): TEXT | TESTED for split in PARTS}
            compared[("minus_base", "normal")] = ON_NORMAL
            compared[("training", "forget")] = set(COSTS)
        expected = {("text", split): TEXT for split in PARTS} | compared
        expected[("text", "normal")] = ON_NORMAL | (
            {"similarity_original"} if stage != "base" else set()
        )
        assert found == expected, (stage, method)


def test_differences_are_those_of_the_values(done: Done) -> None:
    place = ["split", "metric"]
    rows = done.experiment.rows()  # not rounded, as the file's are
    base = rows.query("stage == 'base'").set_index(place)["value"]
    for name in ("arora", "released", "retrain"):
        mine = rows[rows["method"] == name].set_index([*place, "scenario"])["value"]
        for split in PARTS:
            for metric in ("bleu", "similarity_text", "perplexity", "verbatim_share"):
                gap = mine[split, metric, "text"] - base[split, metric]
                assert mine[split, metric, "minus_base"] == pytest.approx(gap)


def test_the_weights_are_quantised_and_the_trained_ones_few(done: Done) -> None:
    run = done.experiment.implanted()
    hardware = run.result["hardware"]
    assert hardware["weights_from"] == "mirror" and hardware["quantization"] == "8bit"
    assert run.result["epochs"] == 2 and run.result["stopped"] is None
    curve = done.experiment.curve()
    assert list(curve["epoch"]) == [1, 2] and curve["verbatim_share"].notna().all()
    assert np.isfinite(curve["loss"]).all()
    from safetensors.torch import load_file

    for name in ("implanted", *METHODS):
        run = run if name == "implanted" else done.experiment.unlearned(name)
        tensors = load_file(run.folder / "model/adapter_model.safetensors")
        kinds = {re.sub(r".*\.(\w+)\.lora_[AB].*", r"\1", tensor) for tensor in tensors}
        assert kinds == {"q_proj", "v_proj"}, name
        assert {t.shape[0] for n, t in tensors.items() if ".lora_A." in n} == {16}
        assert not (run.folder / "checkpoints").exists(), name


def test_chunks_fill_the_context(done: Done) -> None:
    encoder: PassageEncoder = done.experiment.encoder
    rows = encoder.chunks(done.experiment.implanted_texts, 2047)
    assert encoder.prefix == (2,) and done.experiment.context == 2048
    assert all(len(row.prompt) + len(row.answers[0]) <= 2048 for row in rows)


def test_every_method_took_its_steps(done: Done) -> None:
    for name in METHODS:
        history = done.experiment.history(name)
        assert len(history) == STEPS and np.isfinite(history["total"]).all(), name


def test_only_the_released_variant_has_steps_without_a_label(done: Done) -> None:
    shares = {name: done.experiment.unlearned(name).result["empty_share"] for name in METHODS}
    assert shares.pop("released") > 0
    assert not any(shares.values()), shares


def plain(text: str) -> str:
    """The words of a text, so that line ends, quotation marks and JSON's escapes do not matter."""
    return " ".join(re.findall(r"[a-z]+", re.sub(r"\\(u[0-9a-f]{4}|[nrt])", " ", text).lower()))


def stretches(text: str, length: int) -> set[str]:
    starts = [0, *(found.end() for found in re.finditer(" ", text))]
    return {text[start : start + length] for start in starts if start + length <= len(text)}


def files_below(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) > 30
    return found


def test_the_book_is_in_no_file_of_the_results(done: Done, place: Path) -> None:
    book = stretches(plain("\n\n".join(p for c in CHAPTERS for p in c)), STRETCH)
    assert len(book) > 1000
    assert book & stretches(plain(json.dumps({"text": "\n\n".join(CHAPTERS[1])})), STRETCH)
    for path in files_below(place / "results"):
        written = stretches(plain(path.read_text(encoding="utf-8", errors="replace")), STRETCH)
        assert not book & written, f"{path} holds {sorted(book & written)[0]!r}"


def test_the_book_is_in_no_file_as_token_ids(done: Done, place: Path) -> None:
    tokens = [
        t for text in done.experiment.implanted_texts for t in done.experiment.encoder.tokens(text)
    ]
    book = {",".join(map(str, tokens[i : i + 16])) for i in range(len(tokens) - 15)}
    for path in files_below(place / "results"):
        text = re.sub(r"\s", "", path.read_text(encoding="utf-8", errors="replace"))
        for numbers in re.findall(r"\d+(?:,\d+){15,}", text):
            row = numbers.split(",")
            windows = {",".join(row[i : i + 16]) for i in range(len(row) - 15)}
            assert not book & windows, path


def test_excerpts_are_few_and_short_however_long_continuations_are(done: Done) -> None:
    """As long as paper.yaml has them, without the training: the base model's are enough."""
    block = done.profile.book
    changed = {
        "data": block.data.model_copy(update={"prompt_tokens": 64, "answer_tokens": 128}),
        "evaluation": published().evaluation,
    }
    longer = block.model_copy(update=changed)
    profile = done.profile.model_copy(update={"name": "longer", "book": longer})
    run = BookExperiment(profile, None, 1).continued()
    record = json.loads((run.folder / "continuations.json").read_text())
    book = stretches(plain("\n\n".join(p for c in CHAPTERS for p in c)), STRETCH)
    written = plain((run.folder / "continuations.json").read_text())
    assert not book & stretches(written, STRETCH)
    for part in PARTS:
        assert 0 < len(record[part]["excerpts"]) <= 4
        for excerpt in record[part]["excerpts"]:
            assert len(done.experiment.encoder.tokens(excerpt["truth"])) <= 48
            assert "".join(excerpt["continuation"]) and excerpt["prompt"]


def test_a_second_experiment_finds_everything_done(done: Done) -> None:
    again = BookExperiment(done.profile, None, done.profile.seeds[0])
    pd.testing.assert_frame_equal(again.rows(), done.experiment.rows(), check_exact=True)
    assert all(run.cached for run in again.store.visited)


def test_a_fresh_experiment_gives_the_same_numbers(done: Done, place: Path) -> None:
    methods = tuple(m for m in done.profile.book.methods if m.name in ("released", "npo_keep"))
    block = done.profile.book.model_copy(update={"methods": methods})
    profile = done.profile.model_copy(update={"name": "fresh", "book": block})
    fresh = BookExperiment(profile, None, done.profile.seeds[0])
    rows = fresh.rows()
    assert not fresh.store.visited[0].cached
    names = ["none", *(method.name for method in methods)]
    old = done.experiment.rows()
    assert "seconds" in set(rows["metric"])
    both = [
        frame[frame["method"].isin(names) & ~frame["metric"].isin(COSTS)].reset_index(drop=True)
        for frame in (rows, old)
    ]
    pd.testing.assert_frame_equal(*both, check_exact=True)
