"""The figures of A Closer Look: the same bytes twice, nothing covered, one-sentence errors."""

import json
from pathlib import Path

import matplotlib as mpl
import numpy
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_figures import PROVENANCE
from test_tables_closer_look import ELSEWHERE, LABELS, tidy_closer_look

from unlearn_lib import figures
from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.closer_look import Look, short

NAMES = {"closer_look_grid", "closer_look_continual", "closer_look_methods"}
MAKERS = [
    figures.closer_look_grid_figure,
    figures.closer_look_continual_figure,
    figures.closer_look_methods_figure,
]


def real_world_alone() -> pd.DataFrame:
    """Return the table of a profile that runs no other scenario."""
    frame = tidy_closer_look()
    return frame[frame["scenario"].isin(["real_world", "judge"])]


def collapsed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with nothing kept by any method, and no interval around that."""
    frame = frame.copy()
    chosen = frame["metric"].eq("mu") & frame["stage"].eq("unlearned")
    frame.loc[chosen, ["value", "low", "high"]] = 0.0
    return frame


def panels(figure: Figure) -> list[Axes]:
    """Return the panels of the grid, without the list of names."""
    return [axes for axes in figure.axes if axes.get_xlabel()]


def numbers(axes: Axes) -> list[mpl.text.Text]:
    """Return the numbers that stand beside the points of a panel."""
    return [text for text in axes.texts if text.get_text()]


def test_a_redraw_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = tidy_closer_look(1, 2)
    drawn = [
        figures.draw_all(frame, tmp_path / name, "laptop", PROVENANCE, {"tofu": LABELS})
        for name in ("first", "second")
    ]
    assert {path.stem for path in drawn[0]} == NAMES
    for first, second in zip(*drawn, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    details = json.loads((tmp_path / "first" / "closer_look_grid.json").read_text())
    assert details["figure"] == "closer_look_grid" and details["profile"] == "laptop"


def test_figures_of_scenarios_that_were_not_run_are_left_out(tmp_path: Path) -> None:
    drawn = figures.draw_all(real_world_alone(), tmp_path, "paper", PROVENANCE)
    assert {path.stem for path in drawn} == {"closer_look_grid"}


def test_a_panel_per_scenario_and_a_number_per_method() -> None:
    figure = figures.closer_look_grid_figure(tidy_closer_look(), "laptop", PROVENANCE, LABELS)
    titles = [axes.get_title(loc="left") for axes in panels(figure)]
    assert titles == ["Fictitious authors", "Continual, after 3 tasks", "Real world"]
    large, continual, real = panels(figure)
    assert large.get_title(loc="right") == "SmolLM2-135M-Instruct"
    assert large.get_xlabel() == "Model utility MU →  n = 48"
    expected = sorted(str(list(LABELS).index(name) + 1) for name in ELSEWHERE)
    assert sorted(text.get_text() for text in numbers(continual)) == expected
    assert sorted(text.get_text() for text in numbers(real)) == expected
    keys = figure.axes[0].get_legend().get_texts()
    texts = [text.get_text() for text in keys]
    assert texts[0] == "1  GA + GD" and texts[15] == "16  LLMU"
    assert texts[20:] == ["base: untaught", "implanted: taught all", "reference: retain only"]
    assert figure.get_supxlabel() == (
        "n: questions · bars: 95 % intervals · profile laptop · commit abc1234 · 1 seed"
    )


def test_a_methods_place_colour_and_marker_in_the_grid() -> None:
    figure = figures.closer_look_grid_figure(tidy_closer_look(), labels=LABELS)
    points = {
        (line.get_color(), line.get_marker()): (line.get_xdata()[0], line.get_ydata()[0])
        for line in panels(figure)[0].lines
        if line.get_marker() not in {"None", ""}
    }
    assert points["#009E73", "o"] == (0.62, 0.88)
    assert points["#0072B2", "v"] == (0.61, 0.76)
    assert points["#333333", "*"] == (0.65, 0.70)
    looks = {(Look(name).colour, Look(name).marker) for name in LABELS if name[:2] in "ganpme"}
    assert len(looks) == len([name for name in LABELS if name[:2] in "ganpme"])
    assert Look("rmu") == Look("rmu") and Look("rmu").marker == Look("llmu").marker == "P"


def test_the_keys_of_losses_are_those_drawn() -> None:
    frame = tidy_closer_look()
    some = frame[frame["method"].isin(["none", "ga_gd", "idk_ap", "npo_gd"])]
    figure = figures.closer_look_grid_figure(some, labels=LABELS)
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys == ["Forget loss:", "Retain loss:", "GA", "GD", "NPO", "AP", "IDK", ""]


@pytest.mark.parametrize("change", [collapsed, lambda frame: frame])
@pytest.mark.parametrize("models", [1, 2])
def test_numbers_overlap_nothing(change, models: int) -> None:
    frame = change(tidy_closer_look(models))
    figure = figures.closer_look_grid_figure(frame, "laptop", PROVENANCE, LABELS)
    figure.draw_without_rendering()
    for axes in panels(figure):
        boxes = [mpl.text.Text.get_window_extent(text) for text in numbers(axes)]
        for place, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:place])
            assert axes.bbox.padded(2).containsx(box.x0) and axes.bbox.padded(2).containsx(box.x1)


@pytest.mark.parametrize("make", MAKERS)
def test_legends_and_labels_cover_no_panel(make) -> None:
    figure = make(tidy_closer_look(2, tasks=10), "laptop", PROVENANCE, LABELS)
    figure.draw_without_rendering()
    boxes = [axes.bbox for axes in figure.axes if axes.get_xlabel()]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert not any(legend.get_window_extent().overlaps(box) for legend in figure.legends)
    shown = [axes for axes in figure.axes if axes.get_xlabel()]
    labels = [axes.xaxis.label.get_window_extent() for axes in shown]
    for place, box in enumerate(labels):
        assert not any(box.overlaps(other) for other in labels[:place])
    assert min(box.x0 for box in labels) >= 0
    assert max(box.x1 for box in labels) <= figure.bbox.x1


def test_a_line_per_method_from_task_to_task_beside_the_implanted_model() -> None:
    frame = tidy_closer_look(tasks=10)
    figure = figures.closer_look_continual_figure(frame, "laptop", PROVENANCE, LABELS)
    mu, fe = figure.axes
    lines = [line for line in mu.lines if line.get_marker() not in {"None", ""}]
    assert len(lines) == len(ELSEWHERE)
    ours = next(line for line in lines if line.get_color() == "#009E73")
    expected = [0.62 - 0.03 * task for task in range(1, 11)]
    assert ours.get_ydata() == pytest.approx(expected)
    assert [round(x) for x in ours.get_xdata()] == list(range(1, 11))
    assert len(mu.patches) == len(fe.patches) == 1
    bare = frame[frame["stage"].ne("implanted")]
    assert not figures.closer_look_continual_figure(bare).axes[0].patches


def test_tasks_that_lack_a_method_leave_a_gap_and_one_task_is_a_point() -> None:
    frame = tidy_closer_look(tasks=1)
    lines = figures.closer_look_continual_figure(frame, labels=LABELS).axes[0].lines
    marked = [line for line in lines if line.get_marker() not in {"None", ""}]
    assert [len(line.get_xdata()) for line in marked] == [1] * len(ELSEWHERE)
    frame = tidy_closer_look()
    gone = frame["scenario"].eq("continual 2") & frame["method"].eq("ga_gd")
    lines = figures.closer_look_continual_figure(frame[~gone], labels=LABELS).axes[0].lines
    ours = next(x for x in lines if x.get_color() == "#D55E00" and x.get_marker() == "o")
    assert len(ours.get_xdata()) == 2


def test_rows_columns_and_marks_of_the_overview() -> None:
    figure = figures.closer_look_methods_figure(tidy_closer_look(), "laptop", PROVENANCE, LABELS)
    assert len(figure.axes) == 13
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == ["base", "implanted", "reference", *short(LABELS).values()]
    assert ticks[-5] == "LLMU"
    rouge = figure.axes[0].lines
    broken = [line.get_ydata()[0] for line in rouge if line.get_marker() == "X"]
    assert broken == [-3, -4, -5, -7, -18, -22]
    quality = next(axes for axes in figure.axes if axes.get_xscale() == "log")
    below = [line for line in quality.lines if line.get_marker() == "<"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in below] == [(1e-12, -16)]
    refusals = figure.axes[8].lines
    assert sum(line.get_marker() == "D" for line in refusals) == 23


def test_panels_of_what_is_absent_are_left_out() -> None:
    frame = tidy_closer_look()
    gone = ["forget_quality", "refusal_share", "hallucinated_share", "extraction_strength"]
    bare = frame[~frame["metric"].isin(gone) & frame["stage"].ne("reference")]
    figure = figures.closer_look_methods_figure(bare, labels=LABELS)
    assert len(figure.axes) == 9
    assert not figure.axes[0].patches
    scores = frame[frame["metric"].isin(["mu", "fe"])]
    assert len(figures.closer_look_methods_figure(scores, labels=LABELS).axes) == 2


@pytest.mark.parametrize("make", MAKERS)
def test_values_without_intervals_or_labels_are_drawn(make) -> None:
    frame = tidy_closer_look().assign(low=numpy.nan, high=numpy.nan)
    make(frame).draw_without_rendering()


@pytest.mark.parametrize("make", MAKERS)
def test_text_is_at_least_eight_points(make) -> None:
    texts = make(tidy_closer_look(2), "laptop", PROVENANCE, LABELS).findobj(mpl.text.Text)
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 8


def test_names_are_cut_before_a_bracket_where_they_stay_apart() -> None:
    assert short({"a": "LLMU (GA + KL)", "b": "RMU"}) == {"a": "LLMU", "b": "RMU"}
    same = {"a": "NPO (one)", "b": "NPO (two)"}
    assert short(same) == same


def test_missing_results_name_the_command() -> None:
    frame = tidy_closer_look()
    command = "make reproduce PROFILE=laptop"
    for make in MAKERS:
        with pytest.raises(CompanionError, match=f"No MU and FE of an unlearned.*{command}"):
            make(frame[frame["stage"] != "unlearned"], "laptop")
    with pytest.raises(CompanionError, match=f"No fictitious authors.*{command}"):
        figures.closer_look_methods_figure(real_world_alone(), "laptop")
    with pytest.raises(CompanionError, match=f"Nothing was unlearned task by task: .*{command}"):
        figures.closer_look_continual_figure(real_world_alone(), "laptop")


def test_the_entropy_of_each_method_is_a_line() -> None:
    history = pd.DataFrame({"step": [1, 2, 3], "entropy": [0.2, numpy.nan, 0.8]})
    axes = figures.entropy_curve_figure({"ME + GD": history, "ME + KL": history}).axes[0]
    uniform, first, second = axes.lines
    assert uniform.get_ydata()[0] == 1
    assert first.get_xdata().tolist() == [1, 3]
    assert first.get_ydata().tolist() == second.get_ydata().tolist() == [0.2, 0.8]
    with pytest.raises(CompanionError, match="no entropy to draw"):
        figures.entropy_curve_figure({})
    with pytest.raises(CompanionError, match="history of ME has no column entropy"):
        figures.entropy_curve_figure({"ME": history[["step"]]})
    with pytest.raises(CompanionError, match="no number in column entropy"):
        figures.entropy_curve_figure({"ME": history.assign(entropy=numpy.nan)})
