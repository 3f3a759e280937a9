"""Logs of TOFU's authors: what is read from a file made here, and their own files where there."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from unlearn_lib.metrics.official import FIELDS, SETS, log_items, official_log
from unlearn_lib.metrics.questions import folded_truth_ratio, item_id
from unlearn_lib.util import CompanionError

MIRROR = Path(os.environ.get("UNLEARN_MIRROR") or Path(__file__).parents[2] / "shared" / "mirror")
LOGS = MIRROR / "evals"
TOFU = MIRROR / "datasets" / "locuslab" / "TOFU"
PUBLISHED = {
    "full": (0.522074, 1.0),
    "retain90": (0.531991, 2.1943e-16),
    "retain95": (0.524959, 6.8666e-13),
    "retain99": (0.518603, 7.3673e-05),
}
"""Model utility, and forget quality of the full model against this one, as the authors print."""
ROWS = 12


def content(start: str = "Question: ", end: str = "\n") -> dict[str, Any]:
    """A log as TOFU's authors write it: every field a table from row to value."""
    random = np.random.default_rng(0)
    columns = {field: random.gamma(2, 1, ROWS) for field in FIELDS}
    columns["average_perturb_loss"] = random.gamma(3, 1, (ROWS, 5))
    rows = {field: values.tolist() for field, values in columns.items()}
    rows["generated_text"] = [[f"{start}q {row}?{end}", "answer", "truth"] for row in range(ROWS)]
    table = {field: {str(i): each for i, each in enumerate(rows[field])} for field in rows}
    return {key: json.loads(json.dumps(table)) for key in SETS.values()}


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Any], Path]:
    def write(log: Any) -> Path:
        path = tmp_path / "official.json"
        path.write_text(log if isinstance(log, str) else json.dumps(log))
        return path

    return write


@pytest.mark.parametrize("start, end", [("Question: ", "\n"), ("[INST] ", " [/INST]")])
def test_a_log_is_read_in_the_order_of_its_rows(
    put: Callable[[Any], Path], start: str, end: str
) -> None:
    written = content(start, end)
    losses = written[SETS["forget"]]["avg_gt_loss"]
    written[SETS["forget"]]["avg_gt_loss"] = dict(reversed(losses.items()))
    log = official_log(put(written))
    assert list(log) == list(SETS)
    for part in log.values():
        assert list(part["question"]) == [f"q {row}?" for row in range(ROWS)]
        assert list(part["loss_answer"]) == [losses[str(row)] for row in range(ROWS)]
        assert part.filter(like="loss_wrong_").shape == (ROWS, 5)


def test_items_of_a_log(put: Callable[[Any], Path]) -> None:
    written = content()
    items = log_items(official_log(put(written)))
    assert list(items.columns) == ["split", "item", "metric", "value"]
    assert len(items) == len(SETS) * ROWS * 8
    rows = items[(items.split == "retain") & (items.item == item_id("q 3?"))]
    values = dict(zip(rows.metric, rows.value, strict=True))
    part = written[SETS["retain"]]
    wrong = part["average_perturb_loss"]["3"]
    assert [values[f"loss_wrong_{number}"] for number in range(1, 6)] == wrong
    assert values["loss_answer"] == part["avg_gt_loss"]["3"]
    expected = math.exp(np.mean(wrong) - part["avg_paraphrased_loss"]["3"])
    assert values["truth_ratio"] == pytest.approx(expected)
    assert values["rougeL_recall"] == part["rougeL_recall"]["3"]


def test_an_item_is_the_beginning_of_a_sha256() -> None:
    assert item_id("abc") == "ba7816bf8f01"  # FIPS 180-2, appendix B.1


@pytest.mark.parametrize("text", ["", "{", "not json", "[1]", "null", "{}"])
def test_files_that_are_no_logs_are_named(put: Callable[[Any], Path], text: str) -> None:
    with pytest.raises(CompanionError, match=r"official\.json"):
        official_log(put(text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match=r"gone\.json cannot be read"):
        official_log(tmp_path / "gone.json")


@pytest.mark.parametrize("field", [*FIELDS, "generated_text"])
@pytest.mark.parametrize("bad", [None, "word", math.nan, [1, 2], "row", "field"])
def test_a_broken_set_is_named(put: Callable[[Any], Path], field: str, bad: Any) -> None:
    written = content()
    part = written[SETS["forget"]]
    if bad == "field":
        del part[field]
    elif bad == "row":
        del part[field]["4"]
    elif field == "average_perturb_loss":
        part[field]["2"][0] = bad
    else:
        part[field]["2"] = [] if field == "generated_text" else bad
    with pytest.raises(CompanionError, match=rf"Set '{SETS['forget']}' of .*official\.json"):
        official_log(put(written))


# --- the authors' own files ------------------------------------------------------------------

there = all((LOGS / f"tofu_phi-1.5_{name}_wd0.01.json").is_file() for name in PUBLISHED)
published = pytest.mark.skipif(not there, reason="the authors' logs are not in the mirror")


def wide(name: str) -> pd.DataFrame:
    """The items of a published log, a row per question and a column per metric."""
    items = log_items(official_log(LOGS / f"tofu_phi-1.5_{name}_wd0.01.json"))
    return items.pivot_table(index=["split", "item"], columns="metric", values="value")


@published
@pytest.mark.parametrize("name", PUBLISHED)
def test_items_of_published_logs_give_the_published_numbers(name: str) -> None:
    rows, full = wide(name), wide("full")
    means = []
    for split in ("retain", "real_authors", "world_facts"):
        part = rows.loc[split]
        losses = part.filter(like="loss_").dropna(axis=1).to_numpy()
        shares = special.softmax(-losses, axis=1)[:, 0]
        probability = np.exp(-part["loss_answer"]) if split == "retain" else shares
        ratio = folded_truth_ratio(part["truth_ratio"], forget=False)
        means += [part["rougeL_recall"].mean(), probability.mean(), ratio.mean()]
    ratios = (each.loc["forget"]["truth_ratio"] for each in (full, rows))
    assert stats.hmean(means) == pytest.approx(PUBLISHED[name][0], rel=1e-4)
    assert stats.ks_2samp(*ratios).pvalue == pytest.approx(PUBLISHED[name][1], rel=1e-4)


@published
@pytest.mark.parametrize("name, split", [("retain90", 10), ("retain95", 5), ("retain99", 1)])
def test_published_logs_hold_the_items_of_our_data(name: str, split: int) -> None:
    path = TOFU / f"forget{split:02}.json"
    if not path.is_file():
        pytest.skip("TOFU is not in the mirror")
    lines = path.read_text("utf-8").splitlines()
    ours = {item_id(json.loads(line)["question"]) for line in lines}
    forget = set(wide(name).loc["forget"].index)
    assert forget <= ours and len(forget) == min(300, len(ours))
