"""Figures: the same bytes twice, every method drawn, and one-sentence errors."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy
import pandas as pd
import pytest
from test_tables import LABELS, tidy

from unlearn_lib import figures, results
from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.style import plain_ticks, set_p_values, settle
from unlearn_lib.profiles import load_profile

PROVENANCE = {"git": {"commit": "abc1234def", "dirty": False}}
FOOTER = "bars: 95 % intervals · profile laptop · commit abc1234 · 1 seed"


def histories() -> dict[str, pd.DataFrame]:
    """Return loss histories of three methods, one of them without a mismatch part."""
    step = numpy.arange(1, 41)
    frames = {}
    for place, name in enumerate(["Published", "GA + KL", "NPO + own answers"]):
        parts = {"step": step, "forget": -2 - step * (0.1 + place / 20)}
        parts["retain"] = 0.4 * numpy.exp(-step / 20) + place / 10
        if name != "GA + KL":
            parts["mismatch"] = 3 * numpy.exp(-step / 12) + place / 3
        frames[name] = pd.DataFrame(parts).assign(total=parts["forget"] + parts["retain"])
    return frames


def test_a_redraw_gives_the_same_bytes(tmp_path: Path) -> None:
    before = mpl.rcParams["font.size"], mpl.get_backend()
    drawn = [
        figures.draw_all(tidy(2, 3), tmp_path / name, "laptop", PROVENANCE, {"harmful": LABELS})
        for name in ("first", "second")
    ]
    assert [path.suffix for path in drawn[0]] == [".png", ".svg", ".pdf", ".json"]
    for first, second in zip(*drawn, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    assert not list(tmp_path.rglob("*.tmp"))
    assert (mpl.rcParams["font.size"], mpl.get_backend()) == before


def test_two_processes_draw_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "stored", lambda profile: (tidy(), PROVENANCE, "a test"))
    drawn = []
    for processes in (1, 2):
        monkeypatch.setattr(results, "ROOT", tmp_path / str(processes))
        drawn.append(results.draw(load_profile("laptop"), processes))
    alone, shared = drawn
    assert alone[0].name == "harmful_rate.png"
    assert alone[-1].name == "verdicts_headline.table.json"
    for one, other in zip(alone, shared, strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_provenance_follows_the_numbers(tmp_path: Path) -> None:
    frame = tidy()
    first = figures.draw_all(frame, tmp_path / "a", "laptop", PROVENANCE)[-1]
    frame.loc[0, "value"] += 0.01
    second = figures.draw_all(frame, tmp_path / "b", "laptop", PROVENANCE)[-1]
    one, two = (json.loads(path.read_text()) for path in (first, second))
    assert one["figure"] == "harmful_rate" and one["profile"] == "laptop"
    assert one["git"] == PROVENANCE["git"]
    assert one["source_sha256"] != two["source_sha256"]


def test_every_method_has_its_row_and_the_panels_their_units() -> None:
    figure = figures.harmful_rate_figure(tidy(), "laptop", PROVENANCE, LABELS)
    first = figure.axes[0]
    labels = [tick.get_text().replace("\n", " ") for tick in first.get_yticklabels()]
    assert labels == ["Before unlearning", *LABELS.values()]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "Harmful answers (%)\nto held-out prompts\nn = 120 prompts",
        "Degenerate\nanswers (%)\nn = 120 prompts",
        "Perplexity, retained\n(× before)\nn = 200 texts",
        "Similarity to\nbefore (cosine)\nn = 60 prompts",
    ]
    assert figure.get_supxlabel() == FOOTER


def test_a_broken_model_is_marked_and_off_scale_values_are_written_out() -> None:
    figure = figures.harmful_rate_figure(tidy(), labels=LABELS)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert [line.get_ydata()[0] for line in crosses] == [-1, -2]
    assert [text.get_text() for text in figure.axes[2].texts] == ["3.1e5×"]


def test_a_model_whose_perplexity_is_unknown_is_no_sound_one() -> None:
    frame = tidy()
    ours = frame["method"].eq("ours") & frame["metric"].eq("retain_perplexity")
    frame.loc[ours, ["value", "low", "high"]] = numpy.nan
    figure = figures.harmful_rate_figure(frame, labels=LABELS)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert [line.get_ydata()[0] for line in crosses] == [-1, -2, -6]
    frame.loc[ours, ["value", "low", "high"]] = numpy.inf
    texts = figures.harmful_rate_figure(frame, labels=LABELS).axes[2].texts
    assert [text.get_text() for text in texts] == ["3.1e5×", "∞"]


def test_the_shortness_control_is_hollow() -> None:
    axes = figures.harmful_rate_figure(tidy(), labels=LABELS).axes[0]
    hollow = [line for line in axes.lines if line.get_marker() == "D"]
    assert len(hollow) == 6
    assert all(line.get_markerfacecolor() == "white" for line in hollow)


def test_text_is_at_least_eight_points() -> None:
    figure = figures.harmful_rate_figure(tidy(2, 3), "laptop", PROVENANCE, LABELS)
    texts = figure.findobj(mpl.text.Text)
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 8


def test_missing_results_name_the_command() -> None:
    frame = tidy()
    command = "make reproduce PROFILE=laptop"
    with pytest.raises(CompanionError, match=f"No similarity_original of.*{command}"):
        kept = frame[frame["metric"] != "similarity_original"]
        figures.harmful_rate_figure(kept, "laptop")
    with pytest.raises(CompanionError, match=command):
        figures.harmful_rate_figure(frame[frame["stage"] == "base"], "laptop")
    with pytest.raises(CompanionError, match=command):
        figures.draw_all(frame.iloc[:0], Path("unused"), "laptop", PROVENANCE)


def test_a_notebook_shows_figures_without_a_backend() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    shown, _ = formatter.format(figures.loss_curves_figure(histories()))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_changed_tree_is_marked_in_the_footer() -> None:
    rows = tidy(1, 3)
    text = figures.footer(rows, "smoke", {"git": {"commit": "abc1234def", "dirty": True}})
    assert text == "profile smoke · commit abc1234+ · 3 seeds"
    assert "commit unknown" in figures.footer(rows, "smoke", {"git": {"commit": None}})


def test_with_several_seeds_the_footer_tells_what_points_and_bars_are() -> None:
    figure = figures.harmful_rate_figure(tidy(1, 3), "laptop", PROVENANCE, LABELS)
    assert figure.get_supxlabel().replace("\n", " · ") == (
        "points: means of 3 seeds · bars: span of their 95 % intervals · "
        "profile laptop · commit abc1234 · 3 seeds"
    )


def test_a_legend_holds_only_marks_that_are_drawn() -> None:
    frame = tidy()
    figure = figures.harmful_rate_figure(frame, labels=LABELS)
    assert "after, not within limits" in [text.get_text() for text in figure.legends[0].texts]
    sound = frame[~frame["method"].isin(list(LABELS)[:2])]
    texts = figures.harmful_rate_figure(sound, labels=LABELS).legends[0].texts
    assert "after, not within limits" not in [text.get_text() for text in texts]


def test_a_settled_figure_stays_as_it_is() -> None:
    figure = figures.harmful_rate_figure(tidy(), labels=LABELS)
    settle(figure)
    before = [axes.get_position().bounds for axes in figure.axes]
    settle(figure)
    figure.draw_without_rendering()
    assert [axes.get_position().bounds for axes in figure.axes] == before
    ends = [end for axes in figure.axes for end in axes.get_position().bounds]
    assert all(abs(round(end, 5) - end) < 1e-12 for end in ends)


def test_clips_are_numbered_and_not_named_by_a_hash(tmp_path: Path) -> None:
    paths = figures.draw_all(tidy(), tmp_path, "laptop", PROVENANCE)
    text = next(path for path in paths if path.suffix == ".svg").read_text()
    assert 'clip-path="url(#clip1)"' in text and 'id="clip1"' in text
    assert not re.search(r'(url\(#|id=")p[0-9a-f]{10}', text)


def test_logarithmic_axes_have_two_ticks_at_least() -> None:
    for limits, texts in (((1, 1000), ["1", "10", "100", "1k"]), ((2, 40), ["3", "10", "30"])):
        axes = figures.Picture().subplots()
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        ticks = plain_ticks(axes.xaxis, 3)
        shown = sorted(at for at in axes.get_xticks() if limits[0] <= at <= limits[1])
        assert sorted(ticks) == shown
        assert [ticks[at] for at in sorted(ticks)] == texts


def test_p_values_reach_from_one_to_the_least() -> None:
    for known, texts in (
        ([1, 0.2], ["−2", "−1", "0"]),
        ([3e-5, 1], ["−5", "−2", "0"]),
        ([1e-40], ["−12", "−6", "0"]),
    ):
        axes = figures.Picture().subplots()
        set_p_values(axes, known)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == texts
        assert axes.get_xlim()[0] < max(min(known), 1e-12)


def test_a_loss_between_steps_without_one_is_a_dot() -> None:
    nan = float("nan")
    losses = {"step": [0, 1, 2, 3, 4, 5], "forget": [1, nan, nan, 2, nan, 3], "retain": [1] * 6}
    figure = figures.loss_curves_figure({"GA": pd.DataFrame(losses)})
    forget, retain = (axes.lines[0] for axes in figure.axes)
    assert forget.get_marker() == "o" and retain.get_marker() == "None"
    assert forget.get_markevery() == [True, False, False, True, False, True]
    whole = figures.loss_curves_figure({"GA": pd.DataFrame(losses).assign(forget=1.0)})
    assert whole.axes[0].lines[0].get_marker() == "None"


def test_loss_curves_leave_out_what_a_method_lacks() -> None:
    figure = figures.loss_curves_figure(histories())
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 3, 3]
    alone = figures.loss_curves_figure({"GA": histories()["GA + KL"].drop(columns="retain")})
    assert [axes.get_title(loc="left") for axes in alone.axes] == ["Forget", "Weighted sum"]
    with pytest.raises(CompanionError, match="none of the columns forget"):
        figures.loss_curves_figure({"GA": pd.DataFrame({"step": [1.0]})})
    with pytest.raises(CompanionError, match="no column step"):
        figures.loss_curves_figure({"GA": pd.DataFrame({"forget": [1.0]})})
    with pytest.raises(CompanionError, match="no loss history"):
        figures.loss_curves_figure({})
