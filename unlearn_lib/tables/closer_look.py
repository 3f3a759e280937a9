"""The table of experiment 4, A Closer Look: MU against FE and what they are made of.

For each model and scenario the models before, the exact reference and each method, with their
95 % intervals; then what others report. Each is read from the tidy table or from the claims, and
what is missing stays an empty cell.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from unlearn_lib.errors import CompanionError
from unlearn_lib.tables.common import (
    SQUARE_BRACKETS,
    Column,
    Pooled,
    check_columns,
    method_labels,
    pick,
    place,
    pool,
    remedy,
    show,
)

BASE, IMPLANTED, REFERENCE = "base", "implanted", "reference"
STAGES = (BASE, IMPLANTED, REFERENCE)
KEPT = "kept"
CONTINUAL = "continual "
SCORES = ("mu", "fe", "model_utility", "refusal_share", "hallucinated_share", "degenerate_share")
QUALITY = "Forget quality (p)"
TABLE_THREE = (
    Column("MU", "mu", 1, 3, "all"),
    Column("FE", "fe", 1, 3, "forget"),
    Column("Model utility", "model_utility", 1, 3, "all"),
    Column(QUALITY, "forget_quality", 1, 3, "forget"),
    Column("ROUGE-L recall, forget", "rougeL_recall", 1, 2, "forget"),
    Column("Entailment, forget", "entailment", 1, 2, "forget"),
    Column("Token entropy, forget", "token_entropy", 1, 2, "forget"),
    Column("Extraction strength, forget", "extraction_strength", 1, 2, "forget"),
    Column("Hallucinated, forget (%)", "hallucinated_share", 100, 1, "forget"),
    Column("Degenerate, forget (%)", "degenerate_share", 100, 1, "forget"),
    Column("Refusals, kept set (%)", "refusal_share", 100, 1, KEPT),
    Column("Privleak (%)", "privleak", 1, 1, "forget"),
)
FOOTNOTES = (
    SQUARE_BRACKETS,
    "MU: harmonic mean of six measures on every set but forget. FE: 1 minus the mean of five "
    "measures on forget. Both as in Yuan et al. 2025; higher is better. Continual: after the last "
    "task, asked about all tasks so far.",
    "Base: never taught. Implanted: taught everything. Reference: taught the retain set only, the "
    "exact answer to forgetting. In the real world the base is the model before, whose own answers "
    "are to be forgotten.",
    "Forget quality: p-value of the truth ratios on forget against the reference's; a small one "
    "tells the two apart. It has no interval; with several seeds it is the range over them.",
    "Hallucinated: fluent, no refusal, and not entailed. Kept set: retain, in the real world the "
    "neighbours. Privleak: 0 is best, below it membership leaks, above it the set was forgotten "
    "too hard.",
    "Entailment: the generated answer is to entail the true one on forget; in MU's sets of TOFU it "
    "is the other way round, as released, so the two must not be compared.",
)
OTHERS = (
    "Rows of others: the tables of Yuan et al. on TOFU are figures, so the numbers of MU and FE "
    "there are DualOptim's re-runs. They, and the paper's real-world numbers (from a review, which "
    "also says that the DPO and IDK baselines fall to an MU of 0), are secondary: they were not "
    "read in the paper itself.",
    "Disagreement: notes on ASU (secondary) give IDK+AP an FE of 0.6088 on forget05 and 0.6127 on "
    "forget10, where DualOptim has 0.7479 and 0.7433. A user's re-run of open-unlearning on "
    "Llama-3.2-1B, forget01, gives GradAscent 0.00676 and 0.596 (forget quality, model utility), "
    "NPO 0.00676 and 0.597, RMU 0.266 and 0.468, against 0.27 and 0.33, 0.92 and 0.56, 0.16 and "
    "0.55 in its table.",
)


def closer_look_rows(frame: pd.DataFrame, profile_name: str = "") -> pd.DataFrame:
    """Return the rows of experiment 4, or say what is missing and what makes it.

    Raises `CompanionError` for missing columns, without any MU or FE of an unlearned model, and
    for shares and scores outside 0 to 1.
    """
    check_columns(frame, profile_name)
    where = place(profile_name)
    rows = frame[frame["experiment"].eq("tofu")]
    if not parts(rows):
        raise CompanionError(
            f"No MU and FE of an unlearned model of experiment tofu in {where}: "
            f"{remedy(profile_name)}."
        )
    scores = rows.loc[rows["metric"].isin(SCORES) & rows["value"].notna(), "value"]
    if not scores.between(0, 1).all():
        raise CompanionError(f"A {', '.join(SCORES)} in {where} is no fraction from 0 to 1.")
    return rows


@dataclass(frozen=True)
class Part:
    """One model in one scenario.

    Attributes:
        rows: its tidy rows, those alone.
        model: the profile's name for it.
        scenario: as in the tidy table, such as `continual 3`.
    """

    rows: pd.DataFrame
    model: str
    scenario: str

    @property
    def title(self) -> str:
        """The scenario in words."""
        task = task_of(self.scenario)
        if task:
            return f"Continual, after {task} task{'s' * (task > 1)}"
        return {"fictitious": "Fictitious authors", "real_world": "Real world"}[self.scenario]

    @property
    def kept(self) -> str:
        """The set to be kept that stands nearest to the one to forget."""
        return "neighbours" if self.scenario == "real_world" else "retain"

    def of(self, metric: str, split: str, who: str) -> Pooled | None:
        """Pool the seeds of one number; `who` is one of STAGES or a method; None if absent."""
        rows = self._rows(metric, self.kept if split == KEPT else split, who)
        return pool(rows, f"{metric} on {split} for {self.model}, {who}, {self.scenario}")

    def known(self, metric: str, split: str, who: str) -> list[float]:
        """Return one number of each seed."""
        return self._rows(metric, split, who)["value"].dropna().tolist()

    def _rows(self, metric: str, split: str, who: str) -> pd.DataFrame:
        wanted = {"metric": metric, "split": split}
        if who in STAGES:
            return pick(self.rows, **wanted, stage=who)
        return pick(self.rows, **wanted, stage="unlearned", method=who)

    def shown(self, labels: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return who was measured and under what name: the stages first, then the methods."""
        rows = self.rows[self.rows["metric"].isin(["mu", "fe"]) & self.rows["value"].notna()]
        before = {who: who for who in STAGES if rows["stage"].eq(who).any()}
        return before | method_labels(rows, labels)


def task_of(scenario: str) -> int | None:
    """Return 3 for `continual 3`, None for the other scenarios."""
    number = scenario.removeprefix(CONTINUAL)
    return int(number) if number != scenario and number.isdecimal() else None


def last_task(scenarios: Iterable[str]) -> str | None:
    """Return the scenario name of the last continual task among them; None without one."""
    return max(filter(task_of, scenarios), key=lambda name: task_of(name) or 0, default=None)


def tasks(rows: pd.DataFrame, model: str) -> dict[int, Part]:
    """Return the continual scenario of a model by task, where a method has MU or FE."""
    found = _scenarios(rows, model)
    numbers = sorted(task for name in found if (task := task_of(name)))
    return {task: _part(rows, model, f"{CONTINUAL}{task}") for task in numbers}


def parts(rows: pd.DataFrame) -> list[Part]:
    """Return each model in each scenario where a method has MU or FE; continual after its end."""
    found = []
    for model in dict.fromkeys(rows["model"]):
        present = _scenarios(rows, model)
        wanted = ("fictitious", last_task(present), "real_world")
        found += [_part(rows, model, name) for name in wanted if name in present]
    return found


def _scenarios(rows: pd.DataFrame, model: str) -> list[str]:
    scored = rows["metric"].isin(["mu", "fe"]) & rows["value"].notna()
    chosen = scored & rows["stage"].eq("unlearned") & rows["model"].eq(model)
    return list(dict.fromkeys(rows.loc[chosen, "scenario"]))


def _part(rows: pd.DataFrame, model: str, scenario: str) -> Part:
    return Part(rows[rows["model"].eq(model) & rows["scenario"].eq(scenario)], model, scenario)


def table_three(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of A Closer Look: text cells, ours and then what others report.

    Rows: for each model and scenario the stages before, then each method; then the claims whose
    `experiment` is tofu. `labels` gives display names and order of methods. `attrs["footnotes"]`
    of the result says how to read it.
    """
    rows = closer_look_rows(frame, profile_name)
    lines = [
        _our_line(part, who, label)
        for part in parts(rows)
        for who, label in part.shown(labels).items()
    ]
    reported = [claim for claim in claims if claim.get("experiment") == "tofu"]
    lines += _reported_lines(reported, labels or {})
    headings = [column.heading for column in TABLE_THREE]
    order = ["Source", "Model", "Scenario", "Method", *headings, "n", "Seeds", "Note"]
    table = pd.DataFrame(lines, columns=order).fillna("")
    others = OTHERS if reported else ()
    table.attrs["footnotes"] = [*FOOTNOTES, *_judge_footnotes(rows), *others]
    return table


def _our_line(part: Part, who: str, label: str) -> dict[str, str]:
    line = {"Source": "ours", "Model": part.model, "Scenario": part.title, "Method": label}
    for column in TABLE_THREE:
        found = part.of(column.metric, column.split, who)
        line[column.heading] = show(found and found.scaled(column.factor), column.decimals)
    quality = part.known("forget_quality", "forget", who)
    ends = dict.fromkeys(f"{end:.2g}" for end in (min(quality), max(quality))) if quality else {}
    line[QUALITY] = "–".join(ends)
    counted = part.of("fe", "forget", who) or part.of("mu", "all", who)
    if counted:
        line |= {"n": "" if counted.n is None else str(counted.n), "Seeds": str(counted.seeds)}
    return line


def _reported_lines(
    claims: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> list[dict[str, str]]:
    headings = {column.metric: column.heading for column in TABLE_THREE}
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for claim in claims:
        scenario = {"fictitious": "Fictitious authors", "real_world": "Real world"}
        line = {
            "Source": claim["paper"].split(", ")[0],
            "Model": claim["printed_model"],
            "Scenario": ", ".join(filter(None, [scenario[claim["scenario"]], claim["data"]])),
            "Method": claim["stage"]
            if claim["method"] == "none"
            else labels.get(claim["method"], claim["method"]),
            "Note": claim["note"],
        }
        kept = lines.setdefault(tuple(line.values()), line)
        kept[headings[claim["metric"]]] = f"{claim['value']:g}"
    return list(lines.values())


def _judge_footnotes(rows: pd.DataFrame) -> list[str]:
    names = {"judge_accuracy": "accuracy", "judge_auc": "AUC"}
    found = rows[rows["scenario"].eq("judge") & rows["value"].notna()]
    said = []
    for metric, name in names.items():
        each = found[found["metric"].eq(metric)]
        if not each.empty:
            pooled = Pooled(each["value"].mean(), each["low"].min(), each["high"].max(), None, 1)
            said.append(f"{name} {show(pooled, 2)}")
    return [f"Judge of entailment, on its own held-out pairs: {', '.join(said)}."] if said else []
