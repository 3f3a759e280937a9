"""The book's figures: the same bytes twice, nothing covered, and one-sentence errors."""

import json
from pathlib import Path

import matplotlib as mpl
import numpy
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_figures import PROVENANCE
from test_tables import tidy
from test_tables_book import FATES, LABELS, tidy_book

from unlearn_lib import figures
from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.placing import listed


def zeros(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with nothing recited by anyone, and no interval around that."""
    frame = frame.copy()
    frame.loc[frame["metric"].eq("verbatim_share"), ["value", "low", "high"]] = 0.0
    return frame


def panels(figure: Figure) -> list[Axes]:
    """Return the panels of the trade-off, without the list of names."""
    return [axes for axes in figure.axes if axes.get_xlabel()]


def numbers(axes: Axes) -> list[mpl.text.Annotation]:
    """Return the numbers that stand beside the points of a panel."""
    return [text for text in axes.texts if text.get_text()]


def assert_nothing_overlaps(figure: Figure) -> None:
    """Check that no number touches another or leaves its panel."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [mpl.text.Text.get_window_extent(text) for text in numbers(axes)]
        for place, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:place])
            assert axes.bbox.padded(2).containsx(box.x0) and axes.bbox.padded(2).containsx(box.x1)


def test_a_redraw_gives_the_same_bytes(tmp_path: Path) -> None:
    drawn = [
        figures.draw_all(tidy_book(2, 2), tmp_path / name, "laptop", PROVENANCE, {"book": LABELS})
        for name in ("first", "second")
    ]
    assert {path.stem for path in drawn[0]} == {"book_tradeoff", "book_methods"}
    for first, second in zip(*drawn, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    details = json.loads((tmp_path / "first" / "book_tradeoff.json").read_text())
    assert details["figure"] == "book_tradeoff" and details["profile"] == "laptop"


def test_every_experiment_present_is_drawn(tmp_path: Path) -> None:
    both = pd.concat([tidy(), tidy_book()])
    drawn = figures.draw_all(both, tmp_path, "laptop", PROVENANCE)
    assert {path.stem for path in drawn} == {"harmful_rate", "book_tradeoff", "book_methods"}
    with pytest.raises(CompanionError, match="No rows of harmful or book.*PROFILE=laptop"):
        figures.draw_all(both.assign(experiment="other"), tmp_path, "laptop", PROVENANCE)


def test_every_method_has_its_number_in_both_panels() -> None:
    figure = figures.book_tradeoff_figure(tidy_book(), "laptop", PROVENANCE, LABELS)
    names, kept, normal = figure.axes
    assert sorted(text.get_text() for text in numbers(kept)) == [
        *("1", "2, 4", "3", "5", "6", "7", "8", "9")
    ]
    assert len(numbers(normal)) == 9
    shown = [text.get_text() for text in names.get_legend().get_texts()]
    assert shown == [f"{n}  {label}" for n, label in enumerate(LABELS.values(), 1)]
    assert figure.get_supxlabel() == (
        "n: passages or prompts · bars: 95 % intervals · profile laptop · commit abc1234 · 1 seed"
    )


@pytest.mark.parametrize("change", [zeros, lambda frame: frame, lambda f: f[f["split"] != "kept"]])
def test_numbers_overlap_nothing(change) -> None:
    figure = figures.book_tradeoff_figure(change(tidy_book()), "laptop", PROVENANCE, LABELS)
    assert_nothing_overlaps(figure)


def test_coinciding_points_share_a_number() -> None:
    assert listed([1, 2, 3, 4]) == "1–4"
    assert listed([7, 2, 3, 5]) == "2, 3, 5, 7"
    axes = panels(figures.book_tradeoff_figure(zeros(tidy_book()), labels=LABELS))[0]
    assert [text.get_text() for text in numbers(axes)] == ["1–9"]
    assert axes.get_ylim()[1] > 5


def test_many_degenerate_answers_are_a_cross_in_both_figures() -> None:
    frame = tidy_book()
    expected = {"released", "ga", "ga_kl"}
    assert {who for who, fate in FATES.items() if fate[5] > 0.1} == expected
    tradeoff = panels(figures.book_tradeoff_figure(frame, labels=LABELS))[0]
    assert sum(line.get_marker() == "X" for line in tradeoff.lines) == len(expected)
    methods = figures.book_methods_figure(frame, labels=LABELS).axes[0]
    crosses = [line.get_ydata()[0] for line in methods.lines if line.get_marker() == "X"]
    assert crosses == [-3, -5, -7]


def test_the_goal_begins_at_the_bases_interval_and_what_the_implant_keeps() -> None:
    figure = figures.book_tradeoff_figure(tidy_book(), labels=LABELS)
    kept, normal = (axes.patches[-1] for axes in panels(figure))
    assert kept.get_x() == pytest.approx(0.8 * 90)
    assert normal.get_x() == 0.8
    base = tidy_book().query("stage == 'base' and metric == 'verbatim_share' and split == 'forget'")
    assert kept.get_y() + kept.get_height() == pytest.approx(100 * base["high"].iloc[0])


def test_panels_of_what_is_absent_are_left_out() -> None:
    frame = tidy_book()
    no_kept = frame[frame["split"] != "kept"]
    assert len(panels(figures.book_tradeoff_figure(no_kept, labels=LABELS))) == 1
    bare = frame[frame["metric"].eq("verbatim_share")]
    assert len(figures.book_methods_figure(bare).axes) == 1
    assert len(panels(figures.book_tradeoff_figure(bare))) == 1
    ours_only = frame[frame["stage"].ne("implanted")]
    assert len(panels(figures.book_tradeoff_figure(ours_only))) == 2


def test_values_without_intervals_are_drawn(tmp_path: Path) -> None:
    frame = tidy_book().assign(low=numpy.nan, high=numpy.nan)
    assert len(figures.draw_all(frame, tmp_path, "laptop", PROVENANCE)) == 8


def test_rows_of_the_overview_and_off_scale_perplexities() -> None:
    figure = figures.book_methods_figure(tidy_book(), "laptop", PROVENANCE, LABELS)
    labels = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["Base: never taught", "Implanted: taught", *LABELS.values()]
    assert len(figure.axes) == 5
    perplexity = figure.axes[2]
    assert perplexity.get_xscale() == "log"
    assert [text.get_text() for text in perplexity.texts] == ["8.1e6", "∞"]


def test_text_is_at_least_eight_points() -> None:
    for make in (figures.book_tradeoff_figure, figures.book_methods_figure):
        texts = make(tidy_book(2), "laptop", PROVENANCE, LABELS).findobj(mpl.text.Text)
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 8


def test_missing_results_name_the_command() -> None:
    frame = tidy_book()
    command = "make reproduce PROFILE=laptop"
    with pytest.raises(CompanionError, match=f"No verbatim_share of the base.*{command}"):
        figures.book_methods_figure(frame[frame["metric"] != "verbatim_share"], "laptop")
    with pytest.raises(CompanionError, match=f"No unlearned model to draw: .*{command}"):
        figures.book_methods_figure(frame[frame["stage"] != "unlearned"], "laptop")
    with pytest.raises(CompanionError, match=f"Nothing to keep was measured: .*{command}"):
        figures.book_tradeoff_figure(frame[frame["split"] == "forget"], "laptop")


def test_the_implants_curve_shows_its_threshold() -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "verbatim_share": [numpy.nan, 0.2, 0.95]}
    )
    loss, share = figures.implant_curve_figure(history, 0.9).axes
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0, 0.5]
    assert share.lines[0].get_xdata().tolist() == [2, 3]
    assert share.lines[1].get_ydata()[0] == pytest.approx(90)
    column = figures.implant_curve_figure(history.assign(stop_at=0.8)).axes[1]
    assert column.lines[1].get_ydata()[0] == pytest.approx(80)
    assert len(figures.implant_curve_figure(history.assign(verbatim_share=numpy.nan)).axes) == 1
    with pytest.raises(CompanionError, match="no column epoch"):
        figures.implant_curve_figure(history.drop(columns="epoch"))
    with pytest.raises(CompanionError, match="no number of loss or verbatim_share"):
        figures.implant_curve_figure(history[["epoch"]])
