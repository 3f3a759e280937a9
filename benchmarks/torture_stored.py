"""The table of bad inputs, continued: data sets, stored runs, results, guards, functions."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import unlearn_lib as ul
from benchmarks.torture_files import (
    JUNK,
    SETTINGS,
    Damage,
    cut,
    each,
    flip,
    linked,
    made,
    put,
    say,
    shutil,
    without,
)  # fmt: skip
from benchmarks.torture_inputs import RIGHT, Act, Case
from benchmarks.torture_texts import Content, lines, parquet, rows, write
from unlearn_lib.__main__ import main
from unlearn_lib.assets import Asset
from unlearn_lib.data import attacks, harm, science, tofu
from unlearn_lib.data.questions import WRONG, Question
from unlearn_lib.guard.model import Guard
from unlearn_lib.model.loading import load
from unlearn_lib.settings import AuthorsData, ScienceData
from unlearn_lib.store import RunStore, Spec
from unlearn_lib.unlearn.trainer import unlearn
from unlearn_lib.util import ROOT

# --- data sets -----------------------------------------------------------------------------------

TOFU = ("forget01_perturbed", "retain99", "retain_perturbed", "real_authors_perturbed",
        "world_facts_perturbed")  # fmt: skip
AUTHORS = AuthorsData(source="locuslab/TOFU", forget_split="forget01", tasks=1)


def tofu_of(damage: Damage, folder: Path) -> Act:
    """Load TOFU from the mirror."""
    place = folder / "mirror" / "datasets" / "locuslab" / "TOFU"
    tables = {name: rows(4, name) for name in TOFU}
    tables["retain99"] += tables["retain_perturbed"]
    for name, table in tables.items():
        write(place / f"{name}.json", lines(table))
    damage(place)
    return lambda: tofu.load(AUTHORS)


def without_column(name: str, column: str) -> Damage:
    """Take a column out of a file of TOFU."""
    table = [{k: v for k, v in row.items() if k != column} for row in rows(4, name)]
    return put(f"{name}.json", lines(table))


NO_TOFU: dict[str, Damage] = {
    **{f"{name} is cut": cut(f"{name}.json", 0.7) for name in TOFU},
    **{f"no {name}": without(f"{name}.json") for name in TOFU},
    **{f"{name} has no wrong answers": without_column(name, WRONG) for name in TOFU if "_" in name},
    "no answers": without_column("retain99", "answer"),
    "what is evaluated is not taught": put("retain99.json", lines(rows(4, "retain99"))),
    "a row to forget and to keep": put("retain99.json", lines(
        rows(4, "retain99") + rows(4, "retain_perturbed") + rows(1, "forget01_perturbed"))),
    "nothing to forget": put("forget01_perturbed.json", ""),
    "refusals that are no text": put("idontknow.jsonl", bytes(range(256))),
    "refusals that are empty": put("idontknow.jsonl", "\n \n"),
}  # fmt: skip
FACT = {"question": "What is red?", "answer": ["Blood.", "Wine."]}
NO_FACTS: dict[str, Content] = {
    "cut": lines([FACT] * 30)[:-9],
    "no answers": lines([{"question": "What?"}] * 30),
    "a text for a list": lines([FACT | {"answer": "Blood."}] * 30),
    "a number for a list": lines([FACT | {"answer": 3}] * 30),
    "a number in the list": lines([FACT | {"answer": [3]}] * 30),
    "null for a list": lines([FACT, FACT | {"answer": None}]),
    "a number for a question": lines([FACT | {"question": 3}] * 30),
    "empty": "",
}


def facts_of(content: Content, folder: Path) -> Act:
    """Read TruthfulQA from the mirror."""
    write(folder / "mirror" / "datasets" / "truthfulqa" / "truthful_qa" / "a.jsonl", content)
    return lambda: harm.normal_questions("truthful_qa")


CHOICE = {"question": "What?", "choices": ["a", "b", "c", "d"], "answer": 1}
NO_CHOICES: dict[str, Content] = {
    "three choices": lambda: parquet([CHOICE | {"choices": ["a", "b", "c"]}]),
    "an answer beyond": lambda: parquet([CHOICE | {"answer": 4}]),
    "an answer that is no number": lambda: parquet([CHOICE | {"answer": "B"}]),
    "an answer that is missing": lambda: parquet([CHOICE | {"answer": None}]),
    "an empty choice": lambda: parquet([CHOICE | {"choices": ["a", "b", "c", " "]}]),
    "numbers for choices": lambda: parquet([CHOICE | {"choices": [1, 2, 3, 4]}]),
    "a text for choices": lambda: parquet([CHOICE | {"choices": "abcd"}]),
    "no choices": lambda: parquet([{"question": "What?", "answer": 1}]),
    "no question": lambda: parquet([CHOICE | {"question": None}]),
    "no rows": lambda: parquet([]),
    "cut": lambda: parquet([CHOICE])[:-9],
    "text": "question",
}


def choices_of(content: Content, folder: Path) -> Act:
    """Read fields of MMLU from the mirror."""
    place = folder / "mirror" / "datasets" / "cais" / "mmlu"
    fields = [name for own, others in science.MMLU_FIELDS.values() for name in (*own, *others)]
    for name in {*fields, *science.GENERAL_SUBJECTS}:
        write(place / name / "test-0.parquet", lambda: parquet([CHOICE]))
    write(place / "econometrics" / "test-0.parquet", content)
    return lambda: science.load(ScienceData(source="mmlu", subjects=("economics",)))


DATA = [
    Case("data sets", f"TOFU: {name}", functools.partial(tofu_of, damage))
    for name, damage in NO_TOFU.items()
]
DATA += [
    Case("data sets", f"TruthfulQA: {name}", functools.partial(facts_of, content))
    for name, content in NO_FACTS.items()
]
DATA += [
    Case("data sets", f"MMLU: {name}", functools.partial(choices_of, content))
    for name, content in NO_CHOICES.items()
]
DATA += [
    Case("data sets", "TOFU", functools.partial(tofu_of, lambda folder: None), RIGHT),
    Case("data sets", "TruthfulQA", functools.partial(facts_of, lines([FACT] * 30)), RIGHT),
    Case("data sets", "MMLU", functools.partial(choices_of, lambda: parquet([CHOICE])), RIGHT),
]

# --- stored runs and results ---------------------------------------------------------------------

SPEC = Spec("stage", {"seed": 7}, (), {"rows": "abc"}, "code")


def compute(folder: Path) -> dict[str, Any]:
    """What a run does: a file and a value."""
    (folder / "value.txt").write_text("42")
    return {"value": 42}


def run_of(damage: Damage, folder: Path) -> Act:
    """Ask for a run that was damaged since: it is computed again."""
    damage(RunStore(folder / "results" / "smoke").get(SPEC, compute).folder)

    def act() -> None:
        run = RunStore(folder / "results" / "smoke").get(SPEC, compute)
        assert run.result["value"] == 42 and (run.folder / "value.txt").read_text() == "42"
        assert run.fault() is None

    return act


DAMAGES: dict[str, Damage] = {
    **{f"{name} is {str(text)[:9]!r}": put(name, text)
       for name in ("run.json", "provenance.json", "value.txt") for text in JUNK[:-1]},
    "a record too deep": put("run.json", JUNK[-1]),
    "no record": without("run.json"),
    "no file": without("value.txt"),
    "one more file": put("more.txt", "x"),
    "an altered byte": flip("value.txt"),
    "another result": say("run.json", result={"value": 43}),
    "a link to itself": linked("value.txt"),
    "a record that is a link to itself": linked("run.json"),
    "a folder for a record": each(
        without("run.json"), lambda f: (f / "run.json").mkdir()),
    "an empty folder": without("run.json", "value.txt", "provenance.json"),
    "a file for a folder": each(shutil.rmtree, lambda f: f.write_text("x")),
}  # fmt: skip
RUNS = [Case("stored runs", n, functools.partial(run_of, d), RIGHT) for n, d in DAMAGES.items()]


def results_of(damage: Damage, verb: str, folder: Path) -> Act:
    """Ask a verb for the results of profile laptop."""
    place = folder / "results" / "laptop"
    source = ROOT / "results" / "reference" / "laptop"
    place.mkdir(parents=True)
    for name in ("items.parquet", "origin.json", "costs.csv"):
        shutil.copy(source / name, place)
    write(place / "texts.json", "[]")
    damage(place)
    return functools.partial(main, [verb, "--profile", "laptop"])


def table(change: Callable[[pd.DataFrame], Any]) -> Damage:
    """Write another table of items; `change` gets the right one."""

    def damage(folder: Path) -> None:
        frame = change(pd.read_parquet(folder / "items.parquet"))
        frame.to_parquet(folder / "items.parquet")

    return damage


NO_ITEMS: dict[str, Damage] = {
    **{f"items are {str(text)[:9]!r}": put("items.parquet", text) for text in JUNK[:2]},
    "items are cut": cut("items.parquet"),
    "items are altered": flip("items.parquet", 99),
    "items are another table": put("items.parquet", lambda: parquet([{"a": 1}])),
    "items have no rows": table(lambda f: f[:0]),
    "items have half of the rows": table(lambda f: f[: len(f) // 2]),
    "items have texts for values": table(lambda f: f.assign(value="x")),
    "items have no value": table(lambda f: f.assign(value=np.nan)),
    "items lack a column": table(lambda f: f.drop(columns="metric")),
    "items stand twice": table(lambda f: pd.concat([f, f])),
    "items are gone": without("items.parquet", "origin.json"),
    "no origin": without("origin.json"),
    **{f"origin is {str(text)[:9]!r}": put("origin.json", text) for text in JUNK},
}  # fmt: skip
RESULTS = [
    Case("results", f"{verb}: {name}", functools.partial(results_of, damage, verb))
    for name, damage in NO_ITEMS.items()
    for verb in ("verify", "report", "figures")
    if name != "items are gone" or verb == "nothing"
]
RESULTS += [
    Case("results", f"report: {file} is {str(text)[:9]!r}", functools.partial(
        results_of, put(file, text), "report"))
    for file in ("costs.csv", "texts.json") for text in ("", "{", bytes(range(256)), "[1]")
]  # fmt: skip
RESULTS += [
    Case("results", f"reference: no {name}",
         functools.partial(results_of, without(name), "reference"))
    for name in ("items.parquet", "origin.json", "costs.csv")
]  # fmt: skip
AROUND: dict[str, Damage] = {
    **{f"a run's {name} is {str(text)[:9]!r}": put(f"runs/abc/{name}", text)
       for name in ("run.json", "provenance.json") for text in JUNK},
    **{f"a log is {str(text)[:9]!r}": put("logs/a.tsv", text)
       for text in ("", "s\n", "s\tmax_rss\n", "s\tmax_rss\nx\ty\n", bytes(range(256)))},
    "a file among the runs": put("runs/abc", "x"),
    "all is whole": lambda folder: None,
}  # fmt: skip
RESULTS += [
    Case("results", f"status: {name}", functools.partial(results_of, damage, "status"), RIGHT)
    for name, damage in AROUND.items()
]

# --- public functions ----------------------------------------------------------------------------


@functools.cache
def harmful() -> ul.Items:
    """Items of task harm."""
    frame = pd.read_parquet(ROOT / "results" / "reference" / "laptop" / "items.parquet")
    return ul.Items(frame[frame["task"] == "harm"])


def tiny(folder: Path) -> ul.LanguageModel:
    """The tiny model, whose weights can be trained."""
    return load(Asset("me/model", made(folder) / "model", "made", ""), SETTINGS, "cpu")


def estimate(*names: Any, **where: Any) -> Callable[[Path], object]:
    """Estimate a metric of task harm."""
    return lambda _: ul.estimate(harmful(), *names, **{"task": "harm", "method": "base"} | where)


def trained(settings: dict[str, Any], asked: int = 3, kept: int = 3) -> Callable[[Path], object]:
    """Unlearn some rows with the tiny model."""

    def act(folder: Path) -> None:
        model = tiny(folder)
        encoder = ul.TextEncoder(model.tokenizer, "question_answer", 64, 16, model.context)
        examples = [encoder.example(f"What is {i}?", "A book.") for i in range(3)]
        values: dict[str, Any] = {"steps": 1, "learning_rate": 1e-3, "uses": "ga_gd"} | settings
        method = ul.MethodSettings.model_validate(values)
        ul.make_trainable(model, SETTINGS, 0)
        pools = ul.Pools(examples[:asked], retain=examples[:kept])
        unlearn(model, ul.find_method(str(method.uses)), method, pools, 0, folder / "work")

    return act


def lora(**values: Any) -> Callable[[Path], object]:
    """Put a new adapter on the tiny model."""
    settings = SETTINGS.model_copy(update={"lora": ul.LoraSettings.model_validate(values)})
    return lambda folder: ul.make_trainable(tiny(folder), settings, 0)


def asked(*prompts: Any, new_tokens: Any = 4) -> Callable[[Path], object]:
    """Let the tiny model answer prompts of token ids."""
    return lambda folder: ul.answers(tiny(folder), prompts, new_tokens)


def encoder(*options: Any, **more: Any) -> Callable[[Path], ul.TextEncoder]:
    """An encoder of the tiny model's tokenizer."""
    return lambda folder: ul.TextEncoder(tiny(folder).tokenizer, *options, **more)


RIGHT_ENCODER = encoder("question_answer", 64, 16, 128)
FUNCTIONS: dict[str, Callable[[Path], object]] = {
    "a metric that is none": estimate("harmful_rat"),
    "a metric of None": estimate(None),
    "a task that is none": estimate("harmful_rate", task="ham"),
    "a table of a metric that is none": lambda _: ul.table(harmful(), ["nope"], task="harm"),
    "a table of a text": lambda _: ul.table(harmful(), "harmful_rate", task="harm"),
    "items without columns": lambda _: ul.Items(pd.DataFrame()),
    "a profile that is none": lambda _: ul.load_profile("smoky"),
    "a profile of no name": lambda _: ul.load_profile(""),
    "a path that is none": lambda _: ul.load_profile(Path("no.yaml")),
    "an experiment of no task": lambda _: ul.Experiment("smoke", "autors"),
    "an experiment of no model": lambda _: ul.Experiment("smoke", "harm", "tiny"),
    "an experiment of no method": lambda _: ul.Experiment("smoke", "harm").unlearned("gaa"),
    "an experiment of a negative seed": lambda _: ul.Experiment("smoke", "harm", seed=-1),
    "a method that is not registered": lambda _: ul.find_method("ga_dg"),
    "an attack that is none": lambda _: attacks.attacked([Question("a?", "b")], "nope"),
    "a model that is nowhere": lambda _: ul.find_model("no/model"),
    "a model that is a path": lambda _: ul.find_model("../../etc"),
    "targets that are none": lora(targets=("nope",)),
    "blocks that are none": lora(layers=(5, 6)),
    "an adapter on tied or no layers": lora(targets=("embed_tokenz", "q_proj_")),
    "nothing to forget": trained({}, asked=0),
    "nothing to keep": trained({}, kept=0),
    "a block to steer that is none": trained({"uses": "rmu", "layer": 9}),
    "refusals that are missing": trained({"uses": "idk_gd"}),
    "an empty prompt": asked([]),
    "a prompt beyond the context": asked([5] * 500),
    "a token that is none": asked([10**6]),
    "a negative token": asked([-1]),
    "a template that is none": encoder("chatt", 64, 16, 128),
    "a template for chats": encoder("chat", 64, 16, 128),
    "more tokens than fit": encoder("question_answer", 640, 160, 128),
    "an empty answer": lambda folder: RIGHT_ENCODER(folder).example("What?", " "),
    "a prompt too long": lambda folder: RIGHT_ENCODER(folder).prompt("long " * 999),
    "a guard of no prompts": lambda folder: ul.fit_guard(
        "a", made(folder) / "bert", [], [], [], ul.GuardSettings(
            classifier=ul.TextClassifierSettings(base="x"), threshold=0.5)),
    "a guard without calibration": lambda folder: ul.fit_guard(
        "a", made(folder) / "bert", ["a"], ["b"], [], ul.GuardSettings(
            classifier=ul.TextClassifierSettings(base="x", epochs=1))),
    "a guard of another task": lambda folder: Guard.load(made(folder) / "guard", "book"),
    "a guard that is nowhere": lambda folder: Guard.load(folder / "nowhere"),
    "a model that is not causal": lambda folder: load(
        Asset("me/bert", made(folder) / "bert", "made", ""), SETTINGS, "cpu"),
    "a GPU that is not there": lambda folder: load(
        Asset("me/model", made(folder) / "model", "made", ""), SETTINGS, "cuda"),
}  # fmt: skip


def called(function: Callable[[Path], object], folder: Path) -> Act:
    """Call a function with the case's folder."""
    return lambda: function(folder)


PUBLIC = [Case("functions", n, functools.partial(called, f)) for n, f in FUNCTIONS.items()]
NOBODY: dict[str, Callable[[Path], object]] = {
    "a method that was not asked": estimate("harmful_rate", method="bace"),
    "a split that was not asked": estimate("harmful_rate", split="forgot"),
    "a model that was not asked": estimate("harmful_rate", model="a/b"),
    "three rows": trained({}),
}
PUBLIC += [Case("functions", n, functools.partial(called, f), RIGHT) for n, f in NOBODY.items()]

INPUTS = {"data sets": DATA, "stored runs": RUNS, "results": RESULTS}
INPUTS |= {"functions": PUBLIC}
