"""What notebook 02 displays: from an experiment that ran in seconds, and from numbers by hand."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from unlearn_lib import profiles
from unlearn_lib.datasets.book import PARTS
from unlearn_lib.display import facts
from unlearn_lib.experiments import book_show
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.metrics import Estimate
from unlearn_lib.profiles import load_profile

CHOSEN = ("arora", "npo_keep", "released")
MARK = f"<span style='{book_show.MARK}'>"
Values = dict[tuple[str, str, str], Estimate]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BookExperiment]:
    """Profile smoke with three methods, each of two steps, and few passages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "ROOT", tmp_path_factory.mktemp("show"))
        profile = load_profile("smoke")
        block = profile.book
        methods = tuple(m for m in block.methods if m.name in CHOSEN)
        changed: dict[str, Any] = {
            "data": block.data.model_copy(update={"evaluation_passages": 4, "normal_prompts": 4}),
            "pretrain": block.pretrain.model_copy(update={"epochs": 1}) if block.pretrain else None,
            "implant": block.implant.model_copy(
                update={"epochs": 2, "probe_every": 1, "chunk_tokens": 128}
            ),
            "methods": tuple(m.model_copy(update={"steps": 2}) for m in methods),
        }
        small = profile.model_copy(update={"book": block.model_copy(update=changed)})
        yield BookExperiment(small, None, 1)


def test_settings_and_data_are_told(experiment: BookExperiment) -> None:
    told = book_show.settings(experiment)["value"]
    assert told["model"] == "embedded/tiny-opt" and told["seed"] == 1
    assert told["trained"].startswith("LoRA rank 16, α 32")
    assert "8bit" in told["precision"] and told["book"] == "Wet Rent (txt, 24 chapters)"
    assert told["methods"] == ", ".join(experiment.labels[name] for name in CHOSEN)
    parts = book_show.data(experiment)["value"]
    for part in PARTS:
        assert " words: Chapter" in parts[f"{part} (1)"]
    assert parts["prose held out"] == "4 texts" and parts["prose to retain"].startswith("44 texts")
    assert parts["normal prompts"] == "4 questions"
    assert parts["prose that shares a run of 13 words with the book"] == "0 of 48"


def test_the_implant_has_a_curve(experiment: BookExperiment) -> None:
    assert isinstance(book_show.implant(experiment), Figure)
    assert list(experiment.curve()["epoch"]) == [1, 2]


def test_memory_shows_each_part_of_each_model(experiment: BookExperiment) -> None:
    shown = book_show.memory(experiment)
    assert list(shown.index) == [(m, part) for m in ("base", "implanted") for part in PARTS]
    assert tuple(shown.columns) == book_show.SHOWN
    assert shown.map(lambda cell: "[" in cell and "]" in cell).all(axis=None)
    one = book_show.memory(experiment, "arora")
    assert set(one.index.get_level_values("model")) == {experiment.labels["arora"]}


def test_training_has_a_row_for_the_implant_and_each_method(experiment: BookExperiment) -> None:
    shown = book_show.training(experiment)
    labels = [experiment.labels[name] for name in CHOSEN]
    assert sorted(shown.index) == sorted(["implanted", *labels])
    assert set(shown.loc[labels, "steps"]) == {2} and set(shown["stopped early"]) == {"no"}
    assert shown.loc["implanted", "steps"] > 2 and (shown["peak memory (GiB)"] > 0).all()
    empty = shown["steps with a forget loss of zero"].str.rstrip("%").astype(int)
    assert empty[experiment.labels["released"]] > 0
    assert not empty.drop(experiment.labels["released"]).any()


def test_table_and_figures_are_drawn(experiment: BookExperiment) -> None:
    table = book_show.table(experiment)
    assert isinstance(table, pd.DataFrame) and not table.empty
    methods = table.columns.get_level_values("Method")
    assert {experiment.labels[name] for name in CHOSEN} <= set(methods)
    assert isinstance(book_show.tradeoff(experiment), Figure)
    assert isinstance(book_show.methods(experiment), Figure)


def test_distance_is_of_every_trained_model(experiment: BookExperiment) -> None:
    shown = book_show.distance(experiment)
    assert len(shown) == (1 + len(CHOSEN)) * len(PARTS)
    assert ((shown["p"].astype(float) >= 0) & (shown["p"].astype(float) <= 1)).all()
    assert "base" not in shown.index.get_level_values("model")


def test_faults_put_published_beside_released(experiment: BookExperiment) -> None:
    shown = book_show.faults(experiment)
    assert list(shown.index) == [experiment.labels["arora"], experiment.labels["released"]]
    assert (
        shown["no forget loss (steps)"].iloc[0] == "0%" != shown["no forget loss (steps)"].iloc[1]
    )
    assert shown["KL, last step"].map(float).notna().all()


def test_without_a_released_variant_faults_say_so(experiment: BookExperiment) -> None:
    methods = tuple(m for m in experiment.settings.methods if m.variant == "published")
    block = experiment.settings.model_copy(update={"methods": methods})
    profile = experiment.profile.model_copy(update={"book": block})
    shown = book_show.faults(BookExperiment(profile, None, 1))
    pd.testing.assert_frame_equal(shown, facts([("released variant", "none")]))


def test_excerpts_of_the_experiment(experiment: BookExperiment) -> None:
    shown = book_show.excerpts(experiment)
    assert isinstance(shown, HTML)
    text = shown.data
    assert text.count("<table>") == 4 and text.count("true text") == 4
    assert text.count(MARK) == 4 * (2 + len(CHOSEN))
    assert text.count("<p><i>forget: ") == text.count("<p><i>kept: ") == 2
    one = book_show.excerpts(experiment, "implanted", most=1).data
    assert one.count("<table>") == 2 and one.count(MARK) == 2 and "base" not in one


def test_verdict_of_the_experiment(experiment: BookExperiment) -> None:
    shown = book_show.verdict(experiment)
    assert isinstance(shown, Markdown)
    for name in CHOSEN:
        assert f"- {experiment.labels[name]}: " in shown.data


def exactly(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value, value - spread, value + spread, 10)


def values(forget: float, kept: float, normal: float | None = None, spread: float = 0.0) -> Values:
    """The shares that the bars look at; None: the base model, compared with nothing."""
    found = {
        ("text", "forget", "verbatim_share"): exactly(forget, spread),
        ("text", "kept", "verbatim_share"): exactly(kept, spread),
    }
    if normal is not None:
        found[("text", "normal", "similarity_original")] = exactly(normal)
    return found


BASE, IMPLANTED = values(0.0, 0.0, spread=0.1), values(0.9, 1.0, 0.9)


@pytest.mark.parametrize(
    "now, missed",
    [
        (values(0.0, 1.0, 1.0), {}),
        (values(0.1, 0.8, 0.8), {}),  # each on its bar
        (values(0.3, 1.0, 1.0), {"not forgotten": 0.2}),
        (values(0.0, 0.6, 1.0), {"kept chapters damaged": 0.25}),
        (values(0.0, 0.0, 1.0), {"kept chapters damaged": 1.0}),
        (values(0.0, 1.0, 0.6), {"normal answers changed": 0.25}),
        (
            values(0.9, 0.4, 0.2),
            {
                "not forgotten": 0.8,
                "kept chapters damaged": 0.5,
                "normal answers changed": 0.75,
            },
        ),
    ],
)
def test_shortfalls_by_hand(now: Values, missed: dict[str, float]) -> None:
    found = book_show.shortfalls(now, BASE, IMPLANTED)
    assert [name.split(" (")[0] for name in found] == list(missed)
    assert list(found.values()) == pytest.approx(list(missed.values()))


def test_nothing_that_was_kept_cannot_be_damaged() -> None:
    found = book_show.shortfalls(values(0.0, 0.0, 1.0), BASE, values(0.9, 0.0, 1.0))
    assert found == {}


def stub(methods: dict[str, Values], folder: Path | None = None) -> Any:
    """An experiment that has measured these; `folder` holds each model's continuations."""
    measured = {"none": BASE, "implanted": IMPLANTED, **methods}
    rows = {
        name: SimpleNamespace(
            result={"metrics": [[*place, asdict(value)] for place, value in found.items()]}
        )
        for name, found in measured.items()
    }
    return SimpleNamespace(
        methods=list(methods),
        labels={name: f"label of {name}" for name in methods},
        measured=lambda name="none": rows[name],
        continued=lambda name="none": SimpleNamespace(folder=(folder or Path()) / name),
    )


def test_verdict_names_the_method_that_meets_all_three_bars() -> None:
    found = {"good": values(0.0, 0.9, 0.9), "bad": values(0.9, 1.0, 0.9)}
    text = book_show.verdict(stub(found)).data
    assert "- label of good: **all three bars are met**." in text
    assert "- label of bad: not forgotten (0.90 [0.90, 0.90])." in text
    assert "- Implanted: 0.90 [0.90, 0.90] of the forget passages" in text
    assert "0.00 [-0.10, 0.10] by the base model" in text
    assert "nearest" not in text


def test_verdict_names_the_nearest_method_when_none_meets_the_bars() -> None:
    found = {
        "two": values(0.3, 0.7, 0.9),  # .2 + .125
        "one": values(0.0, 0.6, 0.9),  # .25
        "far": values(0.9, 1.0, 0.9),  # .8
    }
    text = book_show.verdict(stub(found)).data
    assert "No method meets all three; the nearest is **label of one**." in text
    assert "**all three bars are met**" not in text
    assert "- label of two: not forgotten (0.30 [0.30, 0.30]); kept chapters damaged" in text


EVIL = "<script>alert('x')</script> & <b>"


def continuations(run: str) -> dict[str, Any]:
    excerpt = {"prompt": f"prompt {EVIL}", "truth": f"truth {EVIL}"}
    excerpt_of = [{**excerpt, "continuation": ["<i>before", run, "after</i>"]}] * 3
    return {part: {"excerpts": excerpt_of} for part in PARTS}


def test_excerpts_escape_html_and_highlight_the_run(tmp_path: Path) -> None:
    for name in ("none", "implanted", "m"):
        (tmp_path / name).mkdir()
        record = json.dumps(continuations(f"the <run> of {name}"))
        (tmp_path / name / "continuations.json").write_text(record)
    experiment = stub({"m": values(0.0, 1.0, 1.0)}, tmp_path)
    experiment.labels["m"] = "a <label>"
    text = book_show.excerpts(experiment, most=2).data
    for tag in ("<script>", "<i>before", "<run>", "<label>", "</i> &"):
        assert tag not in text
    escaped = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &lt;b&gt;"
    assert text.count(escaped) == 2 * 2 * 2  # prompt and truth, two excerpts of two parts
    for name in ("none", "implanted", "m"):
        marked = f"&lt;i&gt;before{MARK}the &lt;run&gt; of {name}</span>after&lt;/i&gt;"
        assert text.count(marked) == 4
    assert "<b>base</b>" in text and "<b>implanted</b>" in text and "a &lt;label&gt;" in text
    assert text.count("<table>") == text.count("</table>") == 4


def test_excerpts_are_as_many_as_there_are(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none/continuations.json").write_text(json.dumps(continuations("")))
    text = book_show.excerpts(stub({}, tmp_path), "none", most=9).data
    assert text.count("<table>") == 6
    assert book_show.excerpts(stub({}, tmp_path), "none", most=0).data == ""


def test_a_measure_that_is_missing_is_an_empty_cell() -> None:
    shown = book_show.memory(stub({"m": values(0.25, 1.0, 1.0)}), "m")
    assert shown.loc[("label of m", "forget"), "verbatim_share"] == "0.25 [0.25, 0.25]"
    assert shown.loc[("label of m", "control")].tolist() == [""] * len(book_show.SHOWN)
