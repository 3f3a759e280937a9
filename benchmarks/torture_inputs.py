"""The table of bad inputs: profiles, the command line, notebooks, books and question files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml

from unlearn_lib.__main__ import main

REFUSED, RIGHT = "refused", "right"
Act = Callable[[], object]


class Case(NamedTuple):
    """An input: the entry point that it is for, what it is, and the kind of answer expected.

    `prepare` makes the input in an empty folder, and returns what is then to be done with it.
    """

    entry: str
    name: str
    prepare: Callable[[Path], Act]
    expected: str = REFUSED


# --- profiles ------------------------------------------------------------------------------------

START = "name: mine\nextends: smoke\n"


def checked(content: str | bytes, folder: Path) -> Act:
    """Check a profile of this content."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "profiles" / "mine.yaml").write_bytes(data)
    return functools.partial(main, ["check", "--profile", "mine"])


def profile(name: str, content: str | bytes, expected: str = REFUSED) -> Case:
    """The case of a profile of this content."""
    return Case("profiles", name, functools.partial(checked, content), expected)


def setting(place: str, value: Any, expected: str = REFUSED) -> Case:
    """The case of profile smoke with one value at a place, such as `tasks/book/data`."""
    tree = value
    for key in reversed(place.split("/")):
        tree = {key.replace("~", "/"): tree}
    content = yaml.safe_dump({"name": "mine", "extends": "smoke"} | tree)
    return profile(f"{place}: {str(value)[:40]}", content, expected)


NO_YAML: dict[str, str | bytes] = {
    "empty": "",
    "spaces": " \n\n  \n",
    "a comment": "# nothing\n",
    "null": "null",
    "a list": "- a\n- b\n",
    "a word": "smoke",
    "a number": "42",
    "an open bracket": "name: [mine",
    "an open quote": 'name: "mine\n',
    "a tab": "name: mine\n\textends: smoke\n",
    "deep": "[" * 5000,
    "deep mappings": "{a: " * 3000,
    "zeros": bytes(4096),
    "bytes": bytes(range(256)) * 16,
    "UTF-16": START.encode("utf-16"),
    "cp1252": (START + "methods: {ga: {label: caf\xe9}}\n").encode("cp1252"),
    "cut in a letter": (START + "methods: {ga: {label: caf\xe9").encode()[:-1],
    "two documents": "name: mine\n---\nextends: smoke\n",
    "an unknown alias": START + "seeds: *nobody\n",
    "a loop": START + "seeds: &a [*a]\n",
    "a loop of mappings": START + "tasks: &a {harm: *a}\n",
    "code": START + 'seeds: !!python/object/apply:os.system ["touch touched"]\n',
    "an unknown tag": START + "seeds: !mine [1]\n",
    "a merge of nothing": START + "<<: 3\n",
    "a key twice": START + "seeds: [1]\nseeds: [2]\n",
    "a task twice": START + "tasks:\n  book: null\n  book: {}\n",
    "a list for a key": START + "? [a, b]\n: c\n",
    "a mapping for a key": START + "? {a: b}\n: c\n",
    "many keys": START + "".join(f"key{i}: {i}\n" for i in range(50_000)),
    "a long line": START + f"only: [{'harm' * 100_000}]\n",
    "a bomb": START + "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
}  # fmt: skip
PROFILES = [profile(f"YAML: {name}", content) for name, content in NO_YAML.items()]
PROFILES += [profile("YAML: with a mark", START.encode("utf-8-sig"), RIGHT)]

COUNTS: list[Any] = [0, -1, 1.5, float("nan"), float("inf"), "many", [1], {"a": 1}, 10**12]
RATES: list[Any] = [-1, float("nan"), -float("inf"), "fast", [0.1], {"a": 1}]
SHARES: list[Any] = [0, 1, -0.5, float("nan"), "half"]
NO_IDS = """../secret/model|/etc/passwd|a b|me/$(touch touched)|a/b/c|me/|.hidden|-rf|~root/model
 |a;b |`touch touched`|a'b|a\u202eb/c|me/..|C:\\model|https://x/y|\u0430dmin/model|me/m\0del"""
IDS = [
    *NO_IDS.replace("\n ", "").split("|"),
    "",
    "me/model\n",
    "a" * 200,
    "me/" + "b" * 97,
    3,
    None,
]
AUTHORS = "tasks/authors"
ECO = "guards/eco"
OWN = {"source": "files", "tasks": 1}
SENSELESS: dict[str, list[Any]] = {
    "name": ["other", "mine/x", "../mine", "", 3, ["mine"], "reference", "mine "],
    "extends": ["nope", "mine", 3, ["smoke"], {"a": 1}, "../../passwd", "/etc/passwd.yaml", "."],
    "seeds": [[], "1", 1, [1.5], ["one"], [1, 1], [-1], [2**32], [[1]], {"a": 1}, [None], [10**30]],
    "device": ["gpu", "cuda", "cuda:7", 3, ["cpu"], True],
    "offline": ["maybe", 2, [True], {}],
    "only": [[], ["nope"], "harm", ["harm", "harm"], [3], [None], {"harm": 1}],
    "tasks": [[], "harm", {"nope": {}}, {"harm": 3}, {"harm": []}, {"harm": "x"}, [{"harm": {}}]],
    "models": [[], "x", ["embedded/tiny-opt"], {"embedded/tiny-opt": [1]}],
    "methods": [[], "ga", {"ga": 3}, {"ga": {"uses": "nope", "label": "x"}}, {"ga": {"step": 1}}],
    "guards": [[], {"eco": 3}, {"nope": {}, "eco": "on"}],
    "ofline": [True],
    f"{AUTHORS}/method/steps": COUNTS,
    f"{AUTHORS}/method/learning_rate": [0, *RATES],
    f"{AUTHORS}/method/retain_weight": RATES,
    f"{AUTHORS}/evaluation/batch_size": COUNTS,
    f"{AUTHORS}/evaluation/min_k": [0, *RATES],
    f"{AUTHORS}/evaluation/scaling": [[7], [-8], [10**6], ["wide"], 32, [12]],
    f"{AUTHORS}/evaluation/attacked": [["nope"], "eco", [3]],
    f"{AUTHORS}/models": [["nope"], "embedded/tiny-opt", [3], {"embedded/tiny-opt": {}}],
    f"{AUTHORS}/methods": [["nope"], ["ga_gd", "base"], "ga_gd", [["ga_gd"]], {"ga_gd": {}}],
    f"{AUTHORS}/guards": [["nope"], "eco", [None]],
    f"{AUTHORS}/overrides": [{"nope": {}}, [1], {"ga_gd": {"stepps": 1}}, {"ga_gd": 3}],
    f"{AUTHORS}/retain_models": [{"nope": "a/b"}, {"embedded/tiny-opt": "$(touch touched)"}, ["x"]],
    f"{AUTHORS}/model": [{"quantization": "8bit"}, {"precision": "float64"}, {"id": 3}, [1]],
    f"{AUTHORS}/teach": [{"epochs": 0}, {"epochs": 10**9}, {"lora": 3}, [1]],
    f"{AUTHORS}/data": [3, OWN, OWN | {"forget": "a.csv", "retain": "b.csv"}, {"source": "x"}],
    f"{AUTHORS}/data/forget": ["no.jsonl", 3],
    f"{AUTHORS}/data/tasks": [10**6, 0],
    f"{AUTHORS}/data/questions_per_author": [1, 10**5],
    f"{AUTHORS}/data/authors_per_task": [50_000],
    f"{AUTHORS}/data/rehearsal_rows": [10**5],
    f"{AUTHORS}/data/template": ["chat", "nope", None],
    "tasks/harm/data/held_out_share": SHARES,
    "tasks/harm/data/forget": ["nope", 3, "human_scored"],
    "tasks/harm/judge": [{"threshold": 0}, {"data": "jigsaw"}, {"base": "no/judge"}, [1]],
    "tasks/harm/judge/file": ["no.csv", ".", "/dev/zero", 3],
    "tasks/book/data/file": ["no.txt", ".", "/dev/zero", "~nobody/x.txt", 3],
    "tasks/book/data": [{"forget_chapters": 500}, {"normal_prompts": 10**5}, {"retain": "x"}],
    "tasks/book/method": [{"start": "nope"}, {"faults": ["nope"]}, {"faults": "empty_labels"}],
    "tasks/people/data": [{"forget_people": 10**5}, {"least_right": -1}],
    "tasks/science/data": [{"source": "wmdp"}, {"form": "letters"}, {"subjects": ["alchemy"]}],
    "models/embedded~tiny-opt/lora": [{"rank": 0}, {"layers": [3, 1]}, {"layers": [1]}],
    "models/embedded~tiny-opt/chat": [{"date": "someday"}, {"system": ["x"]}, {"date": 3.5}],
    "models/other~Tiny-OPT": [{}],
    "methods/me_gd/label": ["GA + GD", ["x"], 3],
    f"{ECO}/classifier/base": ["no/encoder", "a b", None, "../all-MiniLM-L6-v2"],
    f"{ECO}/classifier/maximum_length": [7, 10**9],
    f"{ECO}/corruption": [{"name": "nope"}, {"tokens": "names"}, {"dims": 0}, {"ner": "a/b"}],
    f"{ECO}/search": [{"smallest": 5}, {"start": float("nan")}, {"steps": 0}, {"other_starts": 3}],
    f"{ECO}/strength": [0, -1, float("inf")],
    f"{ECO}/threshold": [1, -0.1],
    "guards/prompting/prefix": ["{topic.__class__}", "{", "{nothing}", "{0}", 3],
    "evaluation": [{"encoder": "no/encoder"}, {"encoder": None}, [1], {"new_tokenz": 3}],
}  # fmt: skip
PROFILES += [setting(place, value) for place, values in SENSELESS.items() for value in values]
PROFILES += [
    profile(f"a model called {str(name)[:30]!r}", START + yaml.safe_dump({"models": {name: {}}})
    + "only: [people]\ntasks: {people: {models: [" + yaml.safe_dump(
        name, default_flow_style=True, width=10**6).removesuffix("...\n").strip() + "]}}\n")
    for name in IDS
]  # fmt: skip
PROFILES += [
    setting("name", "mine", RIGHT),
    setting("seeds", ["1"], RIGHT),
    setting("tasks/people", None, RIGHT),
    setting("only", ["harm"], RIGHT),
    setting("methods/mine", {"uses": "ga"}, RIGHT),  # no task names it
    setting(f"{AUTHORS}/evaluation/unrelated_prompts", 0, RIGHT),
]

# --- the command line and notebooks --------------------------------------------------------------


def called(words: list[str], folder: Path) -> Act:
    """Call the command line."""
    return functools.partial(main, words)


NO_COMMANDS = """|chek|check extra|-x|check --profile|notebook|check --seeds x
 |check --seeds -1|check --seeds 0|check --seeds 1.5|check --seeds 1000000000|check --seeds
 |check --profile smoky|check --profile smoke.yaml|check --profile ../smoke|check --profile /smoke
 |check --profile profiles/smoke|check --profile $(touch_touched)|check --profile smoke;ls
 |check --profile .|check --profile -|check --profile \u0455moke|check --profile SMOKE
 |verify --profile smoke|figures --profile smoke|report --profile smoke|reference --profile smoke
 |verify --profile smoke --seeds -1|collect --profile nope|prepare --profile nope
 |status --profile nope|status --seeds 4294967296 --profile smoke"""
COMMANDS = [
    Case("command line", repr(text), functools.partial(called, text.split()))
    for text in NO_COMMANDS.replace("\n ", "").split("|")
]
COMMANDS += [
    Case("command line", repr(words), functools.partial(called, ["check", "--profile", *words]))
    for words in ([""], ["smoke\n"], ["smoke ", "--seeds", ""], ["smoke", "--book", "no.txt"])
]
COMMANDS += [
    Case("command line", text, functools.partial(called, text.split()), RIGHT)
    for text in ("--help", "check --profile smoke --seeds 3", "status --profile smoke")
]

NOTEBOOK, OUT = "05_figures_and_tables", "--output out/x.ipynb"
NO_NOTEBOOKS = [
    *(f"{name} {OUT}" for name in ("06", "05", ".", "../x", f"{NOTEBOOK}.ipynb", "$(touch_x)")),
    *(f"{NOTEBOOK} --output {place}" for place in ("x.txt", ".", "notebooks/x.ipynb", "out/x",
      f"notebooks/{NOTEBOOK}.ipynb", "out/../notebooks/x.ipynb", "/", "profiles")),
    *(f"{NOTEBOOK} {OUT} {more}" for more in ("-p nope 1", "-p profile", "-p profile [1",
      "-p __x 1", "--seed x", "--seed 1", "--model a/b", "--book no.txt", "-p profile !!os.system",
      "--seeds 0")),
    NOTEBOOK,
]  # fmt: skip


def notebook(words: str, folder: Path) -> Act:
    """Ask for a notebook; there is one, and it would leave a file if it ran."""
    cell = nbformat.v4.new_code_cell("profile = 'smoke'", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(
        cells=[cell, nbformat.v4.new_code_cell("open('touched', 'w')")],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(book, folder / "notebooks" / f"{NOTEBOOK}.ipynb")
    return functools.partial(main, ["notebook", "--profile", "smoke", *words.split()])


NOTEBOOKS = [Case("notebooks", text, functools.partial(notebook, text)) for text in NO_NOTEBOOKS]

INPUTS = {"profiles": PROFILES, "command line": COMMANDS, "notebooks": NOTEBOOKS}
