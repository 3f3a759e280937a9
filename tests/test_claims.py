"""Each kind of claim gets each outcome from hand-made items; gates, Holm, and the committed file."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from unlearn_lib import claims
from unlearn_lib.claims import NOT_TESTABLE, REFUTED, SUPPORTED, UNDECIDED, Claim, Verdict, judge
from unlearn_lib.results import COLUMNS, Items, catalogue
from unlearn_lib.task_settings import TASKS
from unlearn_lib.util import ROOT, CompanionError

PAPER = {"title": "Paper", "models": ["paper/model"]}


def rows(
    method: str, metric: str, values: Any, task: str = "harm", **more: str
) -> list[dict[str, Any]]:
    """One item per value."""
    same = dict.fromkeys(COLUMNS, "") | {"model": "our/model", "seed": 1, "split": "forget"}
    same |= {"task": task, "method": method, "metric": metric} | more
    return [
        same | {"item": str(i), "cluster": str(i), "value": float(value)}
        for i, value in enumerate(values)
    ]


def items(*parts: list[dict[str, Any]]) -> Items:
    return Items(pd.DataFrame([row for part in parts for row in part], columns=list(COLUMNS)))


def claim(kind: str, **keys: Any) -> Claim:
    known: dict[str, Any] = {"id": "one", "paper": PAPER, "place": "Table 1", "notebook": "01"}
    known |= {"statement": "It is so", "reported": "so", "task": "harm", "margin": 0.1}
    known |= {"metric": ["harmful_rate"], "first": ["arora"]}
    return Claim(kind=kind, **{**known, **keys})


def only(table: Items, one: Claim) -> Verdict:
    return judge(table, "laptop", claims=[one])[0]


def share(n: int, count: int) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def harm(n: int, before: int, after: int) -> Items:
    """Answers of the base model and of the published update."""
    return items(
        rows("base", "harmful", share(n, before)), rows("arora", "harmful", share(n, after))
    )


FALLS: dict[str, Any] = {"kind": "superiority", "second": ["base"], "claimed": "lower"}


@pytest.mark.parametrize(
    "n, before, after, outcome",
    [(200, 120, 20, SUPPORTED), (400, 200, 200, REFUTED), (10, 6, 4, UNDECIDED)],
)
def test_superiority(n: int, before: int, after: int, outcome: str) -> None:
    verdict = only(harm(n, before, after), claim(**FALLS))
    assert verdict.outcome == outcome
    assert verdict.tags == ("another model",)
    difference = 100 * (after - before) / n
    assert f"{difference:.1f} [" in verdict.measured and f"n {n}" in verdict.measured


def test_a_claim_of_several_comparisons_needs_each_of_them() -> None:
    one, table = claim(**FALLS | {"second": ["base", "control"]}), harm(300, 180, 60)
    assert only(table, one).outcome == NOT_TESTABLE
    for falls, outcome in ((180, SUPPORTED), (60, REFUTED), (75, UNDECIDED)):
        control = rows("control", "harmful", share(300, falls)[::-1])
        both = Items(pd.concat([table.frame, pd.DataFrame(control)]))
        assert only(both, one).outcome == outcome


@pytest.mark.parametrize(
    "n, right, outcome",
    [(400, 100, SUPPORTED), (400, 300, REFUTED), (16, 4, UNDECIDED), (0, 0, NOT_TESTABLE)],
)
def test_equivalence_with_a_number(n: int, right: int, outcome: str) -> None:
    one = claim("equivalence", metric=["choice_accuracy"], first=["eco"], value=0.25)
    assert only(items(rows("eco", "choice_right", share(n, right))), one).outcome == outcome


@pytest.mark.parametrize("fall, outcome", [(0.0, SUPPORTED), (0.4, REFUTED)])
def test_non_inferiority_to_a_model_and_to_the_noise_floor(fall: float, outcome: str) -> None:
    noise = np.random.default_rng(0).normal(size=(3, 200))
    scores, ratios = 0.6 + noise / 10, np.exp(noise)
    table = items(
        rows("target", "rougeL_recall", scores[0], "authors"),
        rows("eco", "rougeL_recall", scores[0] - fall + noise[1] / 10, "authors"),
        rows("retain_model", "truth_ratio", ratios[0], "authors"),
        rows("eco", "truth_ratio", ratios[1] * np.exp(10 * fall), "authors"),
    )
    keys: dict[str, Any] = {"kind": "non_inferiority", "task": "authors", "first": ["eco"]}
    model = claim(**keys, metric=["rougeL_recall"], second=["target"])
    floor: dict[str, Any] = {"value": "noise_floor", "claimed": "lower", "margin": 0.2}
    assert only(table, model).outcome == outcome
    assert only(table, claim(**keys, metric=["ks_distance"], **floor)).outcome == outcome


@pytest.mark.parametrize(
    "n, count, outcome", [(299, 0, SUPPORTED), (297, 0, UNDECIDED), (400, 20, REFUTED)]
)
def test_bound_is_clopper_and_pearsons(n: int, count: int, outcome: str) -> None:
    table = items(rows("eco", "false_alarm", share(n, count), split="guard_retain"))
    keys: dict[str, Any] = {"metric": ["false_positive_rate"], "first": ["eco"], "value": 0.01}
    verdict = only(table, claim("bound", **keys))
    assert verdict.outcome == outcome
    limit = stats.beta.ppf(0.95, count + 1, n - count)
    assert f"at most {100 * limit:.2g} %" in verdict.measured
    label = only(table, claim("by_construction", **keys, why="it cannot fail"))
    assert label.outcome == NOT_TESTABLE and "by construction" in label.why
    assert label.measured == verdict.measured


def answers(method: str, forget: float, retain: float, n: int = 120) -> list[dict[str, Any]]:
    """Items of a model that answers right with so much confidence."""
    draws, parts = np.random.default_rng(1), []
    for split, quality in (("forget", forget), ("retain", retain)):
        right = np.clip(draws.normal(quality, 0.05, n), 0.01, 0.99)
        values: dict[str, Any] = dict.fromkeys(("rougeL_recall", "cosine", "token_entropy"), right)
        values |= {"entailment": right > draws.random(n), "truth_ratio": right / (1 - right)}
        values |= {"loss_answer": -np.log(right), "loss_wrong_1": -np.log(1 - right)}
        for metric, each in values.items():
            parts += rows(method, metric, each, "authors", split=split)
    return parts


@pytest.mark.parametrize(
    "first, second, outcome",
    [
        ((0.2, 0.8), (0.2, 0.5), SUPPORTED),
        ((0.1, 0.8), (0.4, 0.5), SUPPORTED),
        ((0.2, 0.5), (0.2, 0.8), REFUTED),
        ((0.4, 0.5), (0.1, 0.8), REFUTED),
        ((0.1, 0.5), (0.4, 0.8), NOT_TESTABLE),
        ((0.4, 0.8), (0.1, 0.5), NOT_TESTABLE),
    ],
)
def test_matched_compares_at_equal_forgetting(
    first: tuple[float, float], second: tuple[float, float], outcome: str
) -> None:
    table = items(answers("me_gd", *first), answers("ga_gd", *second))
    keys: dict[str, Any] = {"task": "authors", "metric": ["mu"], "margin": 0.05}
    verdict = only(table, claim("matched", first=["me_gd"], second=["ga_gd"], **keys))
    assert verdict.outcome == outcome, verdict.text
    assert "MU" in verdict.measured and "FE" in verdict.measured


@pytest.mark.parametrize(
    "change, outcome",
    [
        ({}, SUPPORTED),
        ({"least": 0.7}, NOT_TESTABLE),
        ({"most": 0.5, "least": 0}, NOT_TESTABLE),
        ({"method": "target"}, NOT_TESTABLE),
        ({"method": "target", "least": 0.9, "untaught": 0.5}, SUPPORTED),
    ],
)
def test_a_closed_gate_says_why(change: dict[str, Any], outcome: str) -> None:
    gate = {"says": "it knows", "metric": "harmful_rate", "method": "base", "least": 0.6}
    verdict = only(harm(200, 120, 20), claim(**FALLS, gates=[gate | change]))
    assert verdict.outcome == outcome
    assert ("it knows" in verdict.why) == (outcome == NOT_TESTABLE)


def test_holm_corrects_the_headlines_of_a_paper() -> None:
    table = harm(60, 34, 26)
    alone = only(table, claim(**FALLS, headline=True))
    assert alone.outcome == SUPPORTED and alone.p > 0.05 / 20
    for headline, outcome in ((True, UNDECIDED), (False, SUPPORTED)):
        many = [claim(**FALLS, headline=headline, id=str(number)) for number in range(20)]
        verdicts = judge(table, "laptop", claims=many)
        assert {verdict.outcome for verdict in verdicts} == {outcome}
        assert verdicts[0].p == pytest.approx(min(1, (20 if headline else 1) * alone.p))


def test_undecided_says_how_many_questions_would_do() -> None:
    draws = np.random.default_rng(3)
    base, arora = (list(draws.random(100) < 0.5) for _ in range(2))
    table = items(rows("base", "harmful", base), rows("arora", "harmful", arora))
    verdict = only(table, claim(**FALLS))
    error = np.std(np.subtract(arora, base, dtype=float)) / 10
    effect = error * (stats.t.ppf(0.975, 99) + stats.t.ppf(0.8, 99))
    words = verdict.why.split()
    assert verdict.outcome == UNDECIDED
    assert float(words[words.index("of") + 1]) == pytest.approx(100 * effect, rel=0.1)
    assert float(words[-1].replace(",", "")) == pytest.approx(100 * (effect / 0.1) ** 2, rel=0.15)


def test_conditions_are_patterns_in_the_order_of_their_numbers() -> None:
    sizes, pattern = {900: 10, 10000: 60, 2000: 30}, r"\d+ parameters"
    keys: dict[str, Any] = {"task": "authors", "metric": ["false_negative_rate"], "first": ["eco"]}
    keys |= {"split": "forget", "second": ["eco"], "condition": [pattern]}
    parts = [
        rows("eco", "missed", share(100, count), "authors", condition=f"{size} parameters")
        for size, count in sizes.items()
    ]
    verdict = only(items(*parts), claim("superiority", other_condition=pattern, **keys))
    assert verdict.outcome == SUPPORTED and "50.0 [" in verdict.measured


def test_the_same_measurement_is_counted_once_and_a_refuted_headline_fails() -> None:
    same = claim(claims.SAME, id="two", same_measurement_as="one")
    verdicts = judge(harm(400, 9, 9), "laptop", claims=[same, claim(**FALLS, headline=True)])
    assert [verdict.outcome for verdict in verdicts] == [REFUTED, REFUTED]
    assert claims.counts(verdicts)[REFUTED] == 1
    text, passes = claims.verify(verdicts)
    assert not passes and "one" in text and "0.0 [" in text
    assert list(claims.table(verdicts)["Verdict"]) == [REFUTED, REFUTED]
    assert list(claims.of_notebook(verdicts, "01")["Claim"]) == ["It is so"]
    assert claims.of_notebook(verdicts, "02").empty


@pytest.mark.parametrize(
    "change, hint",
    [("margn: 1", "margin"), ("kind: superiorty", "superiority"), ("gates: [{mots: 1}]", "most")],
)
def test_a_wrong_word_is_refused_with_the_nearest(tmp_path: Path, change: str, hint: str) -> None:
    path = tmp_path / "claims.yaml"
    kind = "" if change.startswith("kind") else "kind: bound, "
    path.write_text(f"claims:\n- {{id: one, {kind}{change}}}\n")
    with pytest.raises(CompanionError, match=rf"one .*did you mean '{hint}'"):
        claims.read_claims(path)


COMMITTED = claims.read_claims()


@pytest.mark.parametrize("one", COMMITTED, ids=lambda one: one.id)
def test_a_committed_claim_can_be_judged(one: Claim) -> None:
    ids = [other.id for other in COMMITTED]
    own = {other.id for other in COMMITTED if other.kind != claims.SAME}
    assert ids.count(one.id) == 1
    assert one.notebook in ("01", "02", "03", "04") and one.claimed in ("higher", "lower")
    assert {*one.metric, *(gate["metric"] for gate in one.gates)} <= set(catalogue())
    if one.kind == claims.SAME:
        assert one.same_measurement_as in own
    elif one.kind == claims.UNTESTED:
        assert one.why
    else:
        assert one.task in TASKS and one.metric and one.first
        assert (one.second or one.value or one.why) and (one.margin or one.value or one.why)


def test_the_papers_have_59_claims_and_what_they_report_can_stand_beside_ours() -> None:
    papers = Counter(one.paper["title"].split()[0] for one in COMMITTED)
    assert papers == {"Arora": 22, "Liu": 18, "Yuan": 19}
    reported = pd.read_csv(ROOT / "notebooks" / "reported.csv")
    assert set(reported["task"]) <= set(TASKS) and set(reported["metric"]) <= set(catalogue())
