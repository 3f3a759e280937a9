"""Figures: every spec draws, broken models are marked, pictures look as they did.

`pytest tests/test_figures.py --mpl-generate-path=tests/baseline` draws those pictures anew.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import MODEL, synthetic_items

from unlearn_lib import figures
from unlearn_lib.figures.style import rendered
from unlearn_lib.results import Items
from unlearn_lib.stored import missing_pictures
from unlearn_lib.util import ROOT, CompanionError

LABELS = {"arora": "GA + mismatch + KL (published)", "ga_gd": "GA + GD", "me_gd": "ME + GD"}
SMALLEST = 7


def markers(figure: Figure) -> set[object]:
    return {line.get_marker() for axes in figure.axes for line in axes.lines}


KINDS = {
    "dots": lambda: figures.draw("harmful_rate", synthetic_items(["harm"]), LABELS),
    "tradeoff": lambda: figures.draw("book_tradeoff", synthetic_items(["book"]), LABELS),
    "curves": lambda: figures.draw("closer_look_continual", synthetic_items(["continual"]), LABELS),
}


@pytest.fixture(scope="module")
def items() -> Items:
    return synthetic_items()


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_draws_and_is_legible(name: str, items: Items) -> None:
    figure = figures.draw(name, items, LABELS, "profile test")
    assert all(axes.lines for axes in figure.axes)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= SMALLEST
    footer = figure.get_supxlabel()
    assert "1 seed" in footer and "profile test" in footer and "model-135m" in footer


def test_only_what_the_items_suffice_for_is_drawn() -> None:
    assert figures.figures_of(synthetic_items(["harm"])) == ["harmful_rate"]
    assert set(figures.figures_of(synthetic_items())) == set(figures.FIGURES)


@pytest.mark.parametrize(
    ("name", "words"), [("eco_boko", "eco_book"), ("eco_book", "tasks 'book'")]
)
def test_what_cannot_be_drawn_is_named(name: str, words: str) -> None:
    with pytest.raises(CompanionError, match=words):
        figures.draw(name, synthetic_items(["harm"]), LABELS)


def test_a_model_with_broken_answers_is_a_cross() -> None:
    harm, science = synthetic_items(["harm"]), synthetic_items(["science"])
    assert "X" in markers(figures.draw("harmful_rate", harm, LABELS))
    assert "X" not in markers(figures.draw("eco_science", science, LABELS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.mpl_image_compare(tolerance=5, style="default", savefig_kwargs={"dpi": 60})
def test_pictures_look_as_they_did(kind: str) -> Figure:
    return KINDS[kind]()


def test_files_and_one_provenance_are_written_for_each_language_model(tmp_path: Path) -> None:
    frame = synthetic_items(["harm"]).frame
    two = Items(pd.concat([frame, frame.assign(model="family/larger")]))
    figures.write_all(two, tmp_path, LABELS, {"profile": "test", "git": {"commit": "abc"}})
    stems = {path.stem for path in tmp_path.glob("*.svg")}
    assert stems == {"harmful_rate", "harmful_rate_larger"}
    assert json.loads((tmp_path / "provenance.json").read_text())["figures"] == ["harmful_rate"]
    assert missing_pictures(tmp_path) == []
    for name in ("harmful_rate.pdf", "harmful_rate_larger.png"):
        (tmp_path / name).unlink()
    assert missing_pictures(tmp_path) == ["harmful_rate.pdf", "harmful_rate_larger.png"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"figures": []}'])
def test_a_folder_that_names_no_pictures_lacks_its_provenance(
    content: str | None, tmp_path: Path
) -> None:
    if content:
        (tmp_path / "provenance.json").write_text(content)
    assert missing_pictures(tmp_path) == ["provenance.json"]


def test_every_committed_picture_is_there() -> None:
    assert [missing_pictures(folder) for folder in (ROOT / "figures").iterdir()] == [[]]


def test_a_footer_says_where_weights_are_not_those_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, drawn = list[str](), figures.specs.draw

    def draw(name: str, items: Items, labels: Any, note: str, model: str) -> Figure:
        figure = drawn(name, items, labels, note, model)
        notes.append(figure.get_supxlabel())
        return figure

    monkeypatch.setattr(figures.specs, "draw", draw)
    for source in ("wheel small 1.0, 4-bit weights", "hub"):
        origin = {"profile": "test", "weights": {MODEL: source}}
        figures.write_all(synthetic_items(["harm"]), tmp_path, LABELS, origin)
    assert "· 4-bit weights · profile test" in notes[0]
    assert "seed · profile test" in notes[1] and "hub" not in notes[1]


def test_curves_of_a_training_have_a_panel_for_each_loss_term() -> None:
    step = pd.DataFrame({"step": [0, 1], "forget": [1.0, 2.0], "total": [1.0, 0.5]})
    epoch = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "verbatim_share": [0.5, None]})
    drawn = figures.curves_of_training({"GA": step, "book": epoch})
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert titles == ["Forget", "Weighted sum", "Loss", "Verbatim share"]
    with pytest.raises(CompanionError, match="no history|columns"):
        figures.curves_of_training({"GA": step[["step"]]})


@pytest.mark.parametrize(
    ("module", "heavy"), [("tables", "{'torch', 'matplotlib'}"), ("figures", "{'torch'}")]
)
def test_nothing_heavy_is_imported(module: str, heavy: str) -> None:
    code = f"import sys, unlearn_lib.{module}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ODD = "_a$x$ 5 % a_b^{2} \\frac{1} # & ~ <b>"


@pytest.mark.parametrize("name", ["harmful_rate", "book_tradeoff", "closer_look_continual"])
def test_a_label_is_plain_text(name: str, items: Items, tmp_path: Path) -> None:
    labels = {method: f"{ODD} {method}" for method in items.methods()}
    figure = figures.draw(name, items, labels)
    rendered(figure, "svg")
    texts = [text for text in figure.findobj(Text) if "5 %" in text.get_text()]
    shown = " ".join(" ".join(text.get_text() for text in texts).split())
    assert f"{ODD} ga_gd" in shown or f"{ODD} arora" in shown
    assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


def test_a_label_of_a_training_is_plain_text() -> None:
    step = pd.DataFrame({"step": [0, 1], "forget": [1.0, 2.0]})
    figure = figures.curves_of_training({ODD: step})
    assert rendered(figure, "png") and figure.legends[0].get_texts()[0].get_text() == ODD
