"""The figures of the guard's experiment: everyone drawn, nothing covered, one-sentence errors."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_figures import PROVENANCE
from test_tables_closer_look import row

from unlearn_lib import figures
from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.style import power_text

LABELS = {
    "ga": "GA",
    "npo_gd": "NPO + GD",
    "idk_ap": "IDK + AP",
    "llmu": "LLMU (GA + mismatch + KL)",
}
STAGES = ("base", "implanted", "reference")
GUARDS = ("eco", "prompting")
EVERYONE = (*STAGES, *GUARDS, *LABELS)
SETS = (
    "as asked", "paraphrased", "prefix", "suffix", "typos", "other spelling", "half a question",
    "keywords", "buried",
)  # fmt: skip
# forget quality, model utility, how much is left of what was taught, degenerate share
FATES = {
    "base": (4e-3, 0.38, 0.05, 0.02),
    "implanted": (2e-9, 0.62, 0.9, 0.0),
    "reference": (1.0, 0.61, 0.06, 0.0),
    "eco": (0.42, 0.62, 0.04, 0.02),
    "prompting": (3e-8, 0.55, 0.7, 0.0),
    "ga": (4e-15, 0.0, 0.0, 1.0),
    "npo_gd": (0.04, 0.55, 0.12, 0.1),
    "idk_ap": (0.01, 0.61, 0.03, 0.0),
    "llmu": (2e-8, 0.36, 0.09, 0.5),
}
MAKERS = figures.FIGURES["eco"]
COUNTED = {
    "eco_book": "passages",
    "eco_costs": "prompts; 1: measured as a whole",
    "eco_scaling": "timings",
}
"""What n counts in a figure's foot; questions elsewhere, and nothing in the search's."""


def key_of(who: str) -> dict[str, Any]:
    """Return stage and method of a stage before, a guard or a method."""
    if who in STAGES:
        return {"stage": who, "method": "none"}
    return {"stage": "guarded" if who in GUARDS else "unlearned", "method": who}


def share(metric: str, value: float, **more: Any) -> dict[str, Any]:
    """Return a line of a share, with an interval within 0 to 1."""
    line = row(metric, value, 0.06, **more)
    return line | {"low": max(0.0, line["low"]), "high": min(1.0, line["high"])}


def authors_rows(who: str, **here: Any) -> list[dict[str, Any]]:
    quality, utility, left, degenerate = FATES[who]
    here |= {"scenario": "entities", **key_of(who)}
    perplexity = math.inf if degenerate == 1 else 9 + 900 * degenerate**2
    return [
        row("forget_quality", quality * (1 + here["seed"]) / 2, **here),
        share("model_utility", utility, **here, split="all"),
        share("asg", abs(left - 0.06) + 0.02, **here),
        share("leak_share", left, **here),
        share("rougeL_recall", 0.2 + 0.7 * left, **here),
        row("perplexity", perplexity, perplexity / 4, **here),
        share("unique_token_ratio", 0.95 - 0.7 * degenerate, **here),
        share("degenerate_share", degenerate, **here),
    ]


def book_rows(who: str, **here: Any) -> list[dict[str, Any]]:
    _, _, left, degenerate = FATES[who]
    here |= {"scenario": "book", **key_of(who)}
    rows = [share("asg", 0.6 * left + 0.02, **here)]
    for split, known in (("forget", left), ("kept", 0.8 * (1 - degenerate))):
        here["split"] = split
        similar = ("rougeL_recall", "meteor", "cosine_similarity")
        rows += [share(metric, 0.2 + 0.6 * known, **here) for metric in similar]
        rows.append(share("verbatim_share", known, **here))
        rows.append(row("perplexity", 30 - 20 * known, 2, **here))
        rows.append(share("degenerate_share", degenerate, **here))
    return rows


def science_rows(who: str, **here: Any) -> list[dict[str, Any]]:
    _, utility, left, _ = FATES[who]
    here |= {"scenario": "science", **key_of(who)}
    known = {"forget": left, "retain": utility, "general": utility}
    rows = [share("choice_accuracy", 0.25 + 0.7 * f, **here, split=s) for s, f in known.items()]
    return [*rows, share("probe_accuracy", 0.35 + 0.6 * left, **here)]


def cost_rows(who: str, **here: Any) -> list[dict[str, Any]]:
    weights, guard = who not in GUARDS, who == "eco"
    rows = []
    for task in ("entities", "book", "science"):
        here |= {"scenario": "costs", "split": task, **key_of(who)}
        rows += [
            row("seconds", 60.0 + 4 * len(who) if weights else 25.0 * guard, **here),
            row("milliseconds_per_prompt", 4.2 * guard + 2.0 * (who == "prompting"), 0.3, **here),
            row("milliseconds_per_token", 0.01 * guard, 0.02, **here),
            row("parameters_changed", 134_515_008.0 * weights, **here),
            row("bytes_stored", 269e6 if weights else 90e6 * guard, **here),
        ]
    return rows


def robustness_rows(who: str, **here: Any) -> list[dict[str, Any]]:
    rows = []
    for place, split in enumerate(SETS):
        here |= {"scenario": "robustness", "split": split, **key_of(who)}
        dodged = place / 10 if who == "eco" else 0.0
        rows.append(share("leak_share", max(0.0, FATES[who][2] - 0.02 * place) + dodged, **here))
        if who == "eco":
            rows.append(share("false_negative_rate", 0.01 + place / 9, **here))
    return rows


def guard_rows(**here: Any) -> list[dict[str, Any]]:
    """Return the search of two tasks and the guard's time on five sizes of model."""
    rows = []
    for task in ("entities", "book"):
        strengths = [0.1, 1.0, 12.0, 40.0, 37.0, 60.0, 58.0, 58.0]
        for step, strength in enumerate(strengths):
            seen = here | {"scenario": "search", "split": f"{task} {step:02d}", **key_of("eco")}
            gap = (
                0.1
                + 0.05 * abs(math.log10(strength / (37 - 25 * here["seed"])))
                + 0.01 * (step % 3)
            )
            rows.append(row("search_strength", strength, **seen))
            rows.append(row("search_objective", gap, **seen))
            rows.append(row("model_calls", 16.0 * (2 * step + 1), **seen))
    for size in (200_000, 1_800_000, 14_000_000, 134_515_008, 1_100_000_000):
        for who, time in (("eco", 4.0), ("base", 1.5 * (size / 2e5) ** 0.7)):
            seen = here | {"scenario": "scaling", "split": str(size), **key_of(who)}
            rows.append(row("milliseconds_per_prompt", time, 0.1 * time, **seen))
    return rows


def tidy_eco(models: int = 1, seeds: int = 1) -> pd.DataFrame:
    """Return a fake tidy table of every scenario with numbers such as the experiment gives."""
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.2-1B"]
    rows = []
    for model in names[:models]:
        for seed in range(seeds):
            here = {"experiment": "eco", "model": model, "seed": seed}
            rows += guard_rows(**here)
            for who in EVERYONE:
                rows += authors_rows(who, **here)
                if who != "reference":
                    rows += book_rows(who, **here) + science_rows(who, **here)
                if who not in STAGES:
                    rows += cost_rows(who, **here)
                if who in ("implanted", "reference", "eco", "prompting", "npo_gd", "idk_ap"):
                    rows += robustness_rows(who, **here)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Return the table of two seeds and, in the scenarios entities and search, two models."""
    whole = tidy_eco(2, 2)
    first = whole["model"].eq(whole["model"].iloc[0])
    return whole[first | whole["scenario"].isin(["entities", "search"])]


@pytest.fixture(scope="module")
def drawn(frame: pd.DataFrame) -> dict[str, Figure]:
    """Return every figure of the table, laid out."""
    found = {name: make(frame, "laptop", PROVENANCE, LABELS) for name, make in MAKERS.items()}
    for figure in found.values():
        figure.draw_without_rendering()
    return found


def panels(figure: Figure) -> list[Axes]:
    """Return the panels, without a list of names."""
    return [axes for axes in figure.axes if axes.get_xlabel()]


def marked(axes: Axes, marker: str) -> list[tuple[float, float]]:
    """Return where a panel has a kind of mark."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def ticks(axes: Axes) -> list[str]:
    """Return the names of a panel's rows."""
    return [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_covers_anything_and_text_is_at_least_eight_points(
    drawn: dict[str, Figure], name: str
) -> None:
    figure = drawn[name]
    shown = panels(figure)
    boxes = [axes.bbox for axes in shown]
    labels = [axes.xaxis.label.get_window_extent() for axes in shown]
    titles = [title.get_window_extent() for axes in shown for title in (axes._left_title,)]
    rows = [tick.get_window_extent() for axes in shown[:1] for tick in axes.get_yticklabels()]
    for group in (boxes, labels, titles, rows):
        for place, box in enumerate(group):
            full = box.width > 0
            assert not any(full and other.width and box.overlaps(other) for other in group[:place])
    for box in boxes:
        assert not any(legend.get_window_extent().overlaps(box) for legend in figure.legends)
    for axes in shown:
        known = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
        assert not any(one.overlaps(next_) for one, next_ in zip(known, known[1:], strict=False))
        written = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
        for place, box in enumerate(written):
            assert not any(box.overlaps(other) for other in written[:place])
    assert min(box.x0 for box in labels + rows) >= 0
    assert max(box.x1 for box in labels) <= figure.bbox.x1
    sizes = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert min(sizes) >= 8
    notes = "" if name == "eco_search" else (
        f"n of each seed: {COUNTED.get(name, 'questions')} · points: means of 2 seeds · bars: "
        "span of their 95 % intervals\n"
    )  # fmt: skip
    assert figure.get_supxlabel() == notes + "profile laptop · commit abc1234 · 2 seeds"


def test_a_numbered_point_per_guard_and_method(drawn: dict[str, Figure]) -> None:
    left, right = panels(drawn["eco_tradeoff"])
    assert left.get_title(loc="left") == "SmolLM2-135M-Instruct"
    assert right.get_title(loc="left") == "Llama-3.2-1B"
    assert left.get_xlabel() == "Model utility →  n = 16"
    assert left.get_yscale() == "log"
    quality, utility, *_ = FATES["eco"]
    reference, guard = marked(left, "*")
    assert guard == pytest.approx((utility, 0.75 * quality))
    assert reference == pytest.approx((0.61, 0.75))
    assert marked(left, "v") == [(0.0, 1e-12)]
    assert len(marked(left, "X")) == 1 and len(marked(left, "o")) == 2
    assert [line.get_ydata()[0] for line in left.lines if line.get_ls() == "--"] == [0.05]
    written = ", ".join(text.get_text() for text in left.texts)
    assert sorted(written.split(", ")) == ["1", "2", "3", "4", "5", "6"]
    key = next(axes for axes in drawn["eco_tradeoff"].axes if axes.get_legend()).get_legend()
    texts = [text.get_text() for text in key.get_texts()]
    assert texts[:3] == ["1  ECO", "2  prompting", "3  GA"] and texts[-1] == "6  LLMU"


def test_rows_and_marks_of_the_measures(drawn: dict[str, Figure]) -> None:
    figure = drawn["eco_methods"]
    first = panels(figure)[:7]
    expected = ["base", "implanted", "reference", "ECO", "prompting", "GA", "NPO + GD"]
    assert ticks(first[0]) == [*expected, "IDK + AP", "LLMU"]
    assert marked(first[0], "<") == [(1e-12, -5)]
    utility, perplexity = first[1], first[5]
    assert [height for _, height in marked(utility, "X")] == [-5, -8]
    assert [height for _, height in marked(utility, "o")] == [-6, -7]
    assert marked(utility, "*") == [(0.61, -2), (0.62, -3)]
    assert [text.get_text() for text in perplexity.texts] == ["∞"]
    assert len(utility.patches) == 1
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "unlearned, degenerate ≤ 10 % or as reference" in texts
    assert "reference, 95 % interval" in texts


def test_a_degenerate_guard_keeps_its_star_and_turns_orange(frame: pd.DataFrame) -> None:
    broken = frame[frame["scenario"].eq("entities") & frame["stage"].ne("unlearned")].copy()
    guard = broken["method"].eq("eco") & broken["metric"].eq("degenerate_share")
    broken.loc[guard, "value"] = 0.5
    figure = figures.eco_methods_figure(broken)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "guard (ECO), more degenerate" in texts
    stars = [line for line in panels(figure)[1].lines if line.get_marker() == "*"]
    assert [line.get_color() for line in stars] == ["#333333", "#D55E00"]
    unknown = broken[broken["metric"].ne("degenerate_share")]
    texts = figures.eco_tradeoff_figure(unknown).legends[0].get_texts()
    assert "guard (ECO), more degenerate" in [text.get_text() for text in texts]


def test_a_line_per_seed_of_the_search_with_the_best_marked(drawn: dict[str, Figure]) -> None:
    shown = panels(drawn["eco_search"])
    assert [axes.get_title(loc="left") for axes in shown[:2]] == ["Fictitious authors", "Book"]
    assert shown[0].get_xscale() == "log"
    lines = [line for line in shown[0].lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in lines] == [8, 8]
    assert [across for across, _ in marked(shown[0], "*")] == [40, 12]
    assert shown[0].get_xlabel() == "Strength (best: 40, 12)\n240 model calls"


def test_one_seed_of_the_search_has_its_ends_and_best_numbered() -> None:
    frame = tidy_eco()
    axes = panels(figures.eco_search_figure(frame))[1]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "3", "7"]
    strength = frame["metric"].eq("search_strength")
    frame.loc[strength, "value"] -= 20
    assert panels(figures.eco_search_figure(frame))[1].get_xscale() == "linear"


def test_ways_of_asking_keep_their_order_and_the_guards_misses_stand_behind_it(
    drawn: dict[str, Figure], frame: pd.DataFrame
) -> None:
    shown = panels(drawn["eco_robustness"])
    assert ticks(shown[0]) == list(SETS)
    labels = [axes.get_xlabel().replace("\n", " ") for axes in shown[:4]]
    assert labels == [
        "implanted leaks (%) n = 16", "reference leaks (%) n = 16",
        "ECO leaks (%) n = 16", "ECO does not flag (%) n = 16",
    ]  # fmt: skip
    assert marked(shown[3], "o")[1] == pytest.approx((100 * (0.01 + 1 / 9), -1))
    part = frame[frame["split"].isin(["keywords", "buried", "in verse"])]
    extra = part[part["split"].eq("keywords")].assign(split="in verse")
    figure = figures.eco_robustness_figure(pd.concat([extra, part]))
    assert ticks(panels(figure)[0]) == ["keywords", "buried", "in verse"]


def test_choices_stand_beside_chance_and_the_probe_is_hollow(drawn: dict[str, Figure]) -> None:
    forget, retain, general = panels(drawn["eco_science"])[:3]
    for axes in (forget, retain, general):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_ls() == "--"] == [25]
    assert len(marked(forget, "D")) == 8 and not marked(retain, "D") and not marked(general, "D")
    assert marked(forget, "D")[1][0] == pytest.approx(100 * (0.35 + 0.6 * 0.9))


def test_costs_of_nothing_stand_at_the_edge_and_tasks_side_by_side(
    drawn: dict[str, Figure],
) -> None:
    seconds, _, _, changed, stored = panels(drawn["eco_costs"])[:5]
    assert changed.get_xticklabels()[0].get_text() == "none"
    none = changed.get_xticks()[0]
    assert marked(changed, "o")[:2] == [(none, 0.25), (none, -0.75)]
    assert marked(changed, "s")[2] == pytest.approx((134.515008, -2))
    assert marked(stored, "D")[0] == pytest.approx((90e6, -0.25))
    assert ticks(seconds)[:3] == ["ECO", "prompting", "GA"]


def test_the_guards_share_of_the_time_is_written_at_both_ends(drawn: dict[str, Figure]) -> None:
    axes = panels(drawn["eco_scaling"])[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["267 %", "0.64 %"]
    model, guard = (line for line in axes.lines if len(line.get_xdata()) == 5)
    assert guard.get_xdata().tolist() == [0.2, 1.8, 14, 134.515008, 1100]
    assert model.get_ydata()[0] == pytest.approx(1.5)


def test_chapters_to_keep_are_hollow(drawn: dict[str, Figure]) -> None:
    verbatim, *_, gap, perplexity = panels(drawn["eco_book"])[:6]
    assert "reference" not in ticks(verbatim)
    assert len(marked(verbatim, "D")) == len(ticks(verbatim)) == 8
    assert not marked(gap, "D") and len(marked(perplexity, "D")) == 8
    texts = [text.get_text() for text in drawn["eco_book"].legends[0].get_texts()]
    assert "base, 95 % interval" in texts


def test_few_numbers_without_intervals_are_drawn() -> None:
    frame = tidy_eco().assign(low=numpy.nan, high=numpy.nan, n=numpy.nan)
    few = frame[frame["stage"].eq("guarded") & frame["metric"].ne("meteor")]
    for name, make in MAKERS.items():
        figure = make(few, "smoke")
        assert "1 seed" in figure.get_supxlabel()
        assert len(panels(figure)) == {"eco_book": 5}.get(name, len(panels(figure)))


def test_missing_results_name_the_command(frame: pd.DataFrame) -> None:
    for name, make in MAKERS.items():
        scenario = figures.NEEDS[name]
        with pytest.raises(CompanionError, match=f"scenario {scenario} .*PROFILE=laptop"):
            make(frame[frame["scenario"].ne(scenario)], "laptop")
    bare = frame[frame["metric"].ne("search_strength") & frame["metric"].ne("model_utility")]
    with pytest.raises(CompanionError, match="No step of a search has a strength: run"):
        figures.eco_search_figure(bare)
    with pytest.raises(CompanionError, match="both forget quality and model utility: run"):
        figures.eco_tradeoff_figure(bare)


def test_a_redraw_gives_the_same_bytes_and_only_what_was_run(tmp_path: Path) -> None:
    frame = tidy_eco()
    frame = frame[frame["scenario"].isin(["scaling", "guard"])]
    first, second = (
        figures.draw_all(frame, tmp_path / name, "laptop", PROVENANCE) for name in ("a", "b")
    )
    assert {path.stem for path in first} == {"eco_scaling"}
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_powers_of_ten_are_short() -> None:
    assert [power_text(power) for power in (-2, 0, 2, 3, 5, 6, 8, 9)] == [
        "0.01", "1", "100", "1k", "100k", "1M", "100M", "1e9",
    ]  # fmt: skip


def test_an_embedding_before_and_after() -> None:
    before = numpy.tile(numpy.linspace(-1, 1, 32), (3, 1))
    after = before.copy()
    after[1, :2] += [3, 4]
    flags = [False, True, False]
    figure = figures.embedding_figure(before, after, ["ĠWho", "$is$", "Ġ"], flags)
    first, second, bars, _ = figure.axes
    for axes, values in ((first, before), (second, after)):
        image = axes.images[0]
        assert image.get_array().tolist() == values[:, :24].T.tolist()
        assert image.get_clim() == pytest.approx((-1, 1), abs=0.02)
    assert [bar.get_height() for bar in bars.patches] == [0, 5, 0]
    shown = bars.get_xticklabels()
    assert [tick.get_text() for tick in shown] == ["Who", "$is$", "␣"]
    assert [tick.get_weight() for tick in shown] == ["normal", "bold", "normal"]
    assert bars.get_xlabel() == "Prompt, 3 tokens; corrupted: 1, in bold orange"


def test_the_end_of_a_long_prompt_is_drawn_and_bad_shapes_are_refused() -> None:
    zeros = numpy.zeros((60, 4))
    tokens = [f"incomprehensible {place}" for place in range(60)]
    figure = figures.embedding_figure(zeros, zeros, tokens, [True] * 60)
    figure.draw_without_rendering()
    assert len(figure.axes[2].patches) == 48
    assert figure.axes[2].get_xticklabels()[0].get_text() == "incomprehensibl…"
    assert figure.axes[2].get_xlabel().startswith("Prompt, the last 48 of 60 tokens")
    with pytest.raises(ValueError, match=r"they are \[60, 4\] and \[60, 3\]"):
        figures.embedding_figure(zeros, zeros[:, :3], tokens, [True] * 60)
    with pytest.raises(ValueError, match="60 embeddings, 60 tokens and 59 flags"):
        figures.embedding_figure(zeros, zeros, tokens, [True] * 59)
    with pytest.raises(ValueError, match="must be"):
        figures.embedding_figure(zeros[:0], zeros[:0], [], [])
