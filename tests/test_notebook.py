"""What notebooks show: estimates as text, coloured tokens, curves, verdicts, texts behind a fold."""

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from unlearn_lib import notebook
from unlearn_lib.results import COLUMNS, Items, table


@pytest.fixture(scope="module")
def items() -> Items:
    rows = [
        dict.fromkeys(COLUMNS, "")
        | {"task": "harm", "model": "m", "seed": 1, "method": method, "split": split}
        | {"item": str(i), "cluster": str(i), "metric": metric, "value": float(i < count)}
        for method, count in (("base", 6), ("arora", 3))
        for split, metric in (("forget", "harmful"), ("retain", "refusal"))
        for i in range(10)
    ]
    return Items(pd.DataFrame(rows))


def test_estimates_are_text_with_intervals(items: Items) -> None:
    rows = table(items, ["harmful_rate"], task="harm")
    shown = notebook.estimates(rows, {"arora": "published"})
    assert list(shown.index) == ["base model", "published"]
    assert list(shown.columns) == ["n", "Harmful answers, forget (%)"]
    assert shown.iloc[1, 1].startswith("30.0 [") and shown.iloc[1, 0] == "10"


def colours(shown: Any) -> list[tuple[str, str]]:
    soup = BeautifulSoup(shown.data, "html.parser")
    return [(span.get_text(), str(span["style"])) for span in soup.p.find_all("span")]  # type: ignore[union-attr]


def test_tokens_of_one_role_have_one_colour_and_are_escaped() -> None:
    shown = notebook.tokens(["<b>", "a", " c"], ["prompt", "answer", "prompt"])
    pieces = colours(shown)
    assert [text for text, _ in pieces] == ["<b>", "a", " c"]
    assert pieces[0][1] == pieces[2][1] != pieces[1][1]
    assert "prompt" in shown.data and "answer" in shown.data


def test_tokens_are_darker_the_larger_the_number() -> None:
    styles = [style for _, style in colours(notebook.tokens("abcd", [0, 1, 2, math.nan]))]
    assert styles[0] == styles[3] and len(set(styles)) == 3
    assert "0.80" in styles[2] and "0.40" in styles[1]


@pytest.mark.parametrize(
    "text, words, short",
    [
        ("one  two\nthree", 3, "one two three"),
        ("one two three four", 2, "one two …"),
        ("a.b@c.org or +49 30 123456, https://a.b/c", 9, "[masked] or [masked], [masked]"),
    ],
)
def test_shorten_cuts_and_masks(text: str, words: int, short: str) -> None:
    assert notebook.shorten(text, words) == short


def test_texts_behind_a_warning_are_folded_shortened_and_escaped() -> None:
    rows = pd.DataFrame({"prompt": ["<i>x</i> " + "word " * 50], "n": [3]})
    soup = BeautifulSoup(notebook.behind_warning(rows, "Careful", 4).data, "html.parser")
    assert soup.details is not None and "open" not in soup.details.attrs
    assert "Careful" in soup.details.summary.get_text()  # type: ignore[union-attr]
    assert [cell.get_text() for cell in soup.find_all("td")] == ["<i>x</i> word word word …", "3"]


def test_a_live_curve_draws_what_was_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    handle = SimpleNamespace(update=lambda figure: None)
    monkeypatch.setattr(notebook, "display", lambda figure, display_id: handle)
    curve = notebook.LiveCurve("teach", every=2)
    monkeypatch.setattr(
        notebook.figures, "curves_of_training", lambda h: drawn.append(len(h["teach"]))
    )
    for step in range(5):
        curve({"step": step, "loss": 1.0})
    assert drawn == [2, 4]


def test_a_notebook_shows_its_own_verdicts(items: Items) -> None:
    profile: Any = SimpleNamespace(name="laptop", labels=lambda: {"arora": "published"})
    shown = notebook.verdicts(items, profile, "01")
    assert shown["Measured here"].str.contains("published minus base model: -30.0").sum() == 1
    assert set(notebook.verdicts(items, profile, "04")["Verdict"]) == {"not testable here"}


def test_a_label_is_no_formula_and_no_tag(items: Items) -> None:
    rows = table(items, ["harmful_rate"], task="harm")
    shown = notebook.estimates(rows, {"arora": "$a$ <script>alert(1)</script>"})
    page = shown._repr_html_()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "mathjax_ignore" in page, "$ signs are not read by MathJax"
