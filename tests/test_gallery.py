"""Notebook 05's verbs: stored results shown, judged and followed back; nothing is computed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from IPython.display import Image

from unlearn_lib import costs, profiles, results
from unlearn_lib.errors import CompanionError
from unlearn_lib.experiments import gallery
from unlearn_lib.experiments.gallery import Gallery
from unlearn_lib.figures import Picture
from unlearn_lib.profiles import ROOT


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with the reference results and the committed figures, and no other results."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    for module in (profiles, results, gallery, costs):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is displayed while a test runs."""
    kept: list[Any] = []
    monkeypatch.setattr(gallery, "display", kept.append)
    return kept


@pytest.fixture
def laptop(fresh: Path) -> Gallery:
    return gallery.open_gallery("laptop")


def drawn_in(folder: Path, found: Gallery, *names: str) -> Gallery:
    """Return a gallery whose folder holds figures and tables of its results, of some names."""
    for name in names:
        for ending in (".json", ".table.json"):
            (folder / f"{name}{ending}").write_text(json.dumps({**found.origin, "name": name}))
        (folder / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / f"{name}.html").write_text(f"<table>{name}</table>")
    return dataclasses.replace(found, folder=folder)


def test_without_results_those_of_laptop_stand_in_and_it_is_said(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gallery.open_gallery("smoke")
    assert (found.profile.name, found.where) == ("laptop", "reference results")
    assert capsys.readouterr().out == (
        "Profile smoke has no results here; `make reproduce PROFILE=smoke` makes them. "
        "Until then this notebook shows those of profile laptop.\n"
    )


def test_results_that_are_not_whole_are_no_reason_to_show_others(fresh: Path) -> None:
    (fresh / "results" / "smoke").mkdir()
    (fresh / "results" / "smoke" / "metrics.csv").write_text("not,whole\n")
    with pytest.raises(CompanionError, match="are not whole"):
        gallery.open_gallery("smoke")


def test_the_source_tells_whose_results_these_are(laptop: Gallery) -> None:
    told = gallery.source(laptop)["value"]
    assert told["results of"] == "reference results"
    assert told["rows"] == len(laptop.frame)
    assert told["commit"].startswith(laptop.origin["git"]["commit"])
    assert told["seeds"].split(", ") == sorted(map(str, laptop.frame["seed"].unique()))


def test_verdicts_come_first_and_every_claim_is_there(laptop: Gallery) -> None:
    table = gallery.verdicts(laptop)
    assert table.index.name == "Claim" and {"Reported", "Measured", "Verdict"} <= set(table)
    page = gallery.every_verdict(laptop).data
    assert f"All {len(laptop.judged)} claims" in page and "<details>" in page


def test_figures_of_these_results_are_shown_as_they_are(
    laptop: Gallery, shown: list[Any], tmp_path: Path
) -> None:
    found = drawn_in(tmp_path, laptop, "harmful_rate")
    gallery.show_figures(found, "harmful")
    (image,) = shown
    assert isinstance(image, Image) and "harmful_rate" in image.alt


def test_figures_of_other_results_are_drawn_anew(
    laptop: Gallery, shown: list[Any], tmp_path: Path
) -> None:
    found = drawn_in(tmp_path, laptop, "harmful_rate")
    found = dataclasses.replace(found, origin={**found.origin, "runs": ["another"]})
    gallery.show_figures(found, "harmful")
    (picture,) = shown
    assert isinstance(picture, Picture)


def test_tables_are_folded_and_those_not_made_name_the_command(
    laptop: Gallery, shown: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = drawn_in(tmp_path, laptop, "table3_closer_look")
    gallery.show_tables(found, "tofu")
    (table,) = shown
    assert table.data.startswith("<details><summary><b>table3_closer_look</b></summary><table>")
    assert capsys.readouterr().out == (
        "closer_look_orderings is not made from these results yet: run `make figures`.\n"
    )


def test_an_experiment_without_results_is_named(
    laptop: Gallery, shown: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = laptop.frame[laptop.frame["experiment"].eq("book")]
    found = dataclasses.replace(laptop, frame=rows)
    gallery.show_figures(found, "eco")
    gallery.show_tables(found, "eco")
    sentence = "Experiment eco is not among the results of laptop.\n"
    assert capsys.readouterr().out == 2 * sentence and not shown


def test_a_number_is_followed_to_its_run(fresh: Path) -> None:
    key, other = "a" * 64, "b" * 64
    source = ROOT / "results" / "reference" / "laptop"
    folder = fresh / "results" / "laptop"
    (folder / "runs" / key).mkdir(parents=True)
    run = {"key": key, "stage": "measure", "settings": {"seed": 1}}
    origin = {"wall_seconds": 2.5, "peak_memory_bytes": 7, "seed": 1, "data": {}}
    origin |= {"git": {"commit": "abc", "dirty": False}}
    (folder / "runs" / key / "run.json").write_text(json.dumps(run))
    (folder / "runs" / key / "provenance.json").write_text(json.dumps(origin))
    (folder / "metrics.json").write_text(json.dumps({"runs": [key, other]}))
    lines = (source / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text(
        "\n".join([lines[0], *(line.rsplit(",", 1)[0] + f",{key}" for line in lines[1:])]) + "\n"
    )
    found = gallery.open_gallery("laptop")
    told = gallery.follow(found, "harmful", "harmful_rate")["value"]
    assert (told["experiment"], told["metric"], told["run"]) == ("harmful", "harmful_rate", key)
    assert (told["run: name"], told["run: seconds"]) == ("measure", 2.5)
    with pytest.raises(CompanionError, match="No row of experiment 'harmful' has metric 'mu'"):
        gallery.follow(found, "harmful", "mu")


def test_a_run_that_is_not_here_is_said_not_to_be(
    laptop: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = costs.stored_costs(laptop.profile, laptop.where).iloc[:0]
    monkeypatch.setattr(gallery, "stored_costs", lambda *_: empty)
    told = gallery.follow(laptop)["value"]
    assert told["run"] in laptop.origin["runs"]
    assert told["run: "] == "not kept here"


def test_the_notebook_starts_fast() -> None:
    heavy = "torch transformers datasets sklearn nltk sacrebleu".split()
    code = (
        "import sys; import unlearn_lib.experiments.gallery; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
