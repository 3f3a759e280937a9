"""What README and docs show is so: links, sizes, and the worked examples of docs/extending.md."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.count import lines_of_code
from unlearn_lib.claims import OUTCOMES
from unlearn_lib.results import COLUMNS, Items
from unlearn_lib.results_page import results_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROFILES = "notebooks/profiles/"
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S))
BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.M | re.S)
PLACES = {
    "A method": {
        "unlearn_lib/unlearn/losses.py",
        "unlearn_lib/unlearn/methods.py",
        f"{PROFILES}my_method.yaml",
    },
    "A metric": {
        "unlearn_lib/metrics/texts.py",
        "unlearn_lib/metrics/catalogue.yaml",
        "unlearn_lib/tasks/harm.py",
        "unlearn_lib/tables.py",
    },
    "A task": {
        "unlearn_lib/tasks/capitals.py",
        "unlearn_lib/tasks/__init__.py",
        "unlearn_lib/task_settings.py",
        "unlearn_lib/figures/specs.py",
        f"{PROFILES}my_task.yaml",
    },
}
"""Where each addition is made."""
SMALL = """
name: small
extends: smoke
guards:
  eco: {strength: 1, classifier: {epochs: 0.1, maximum_length: 32}}
tasks:
  harm:
    pretrain: {epochs: 1}
    data: {evaluation_prompts: 4, normal_prompts: 4}
    methods: [ga]
    method: {steps: 1}
    overrides: null
    evaluation: {new_tokens: 4}
  book:
    model: {quantization: none, lora: {rank: 4, alpha: 8}}
    data: {evaluation_passages: 3, normal_prompts: 3, answer_tokens: 20}
    pretrain: {epochs: 1}
    teach: {epochs: 1, probe_passages: 2}
    methods: [ga]
    method: {steps: 1}
    guards: []
    overrides: null
    evaluation: {new_tokens: 20}
  authors:
    data: {tasks: 1, holdout_authors: 0, evaluation_rows: 2}
    teach: {epochs: 1}
    methods: [ga_gd]
    method: {steps: 1}
    guards: []
    evaluation: {new_tokens: 4, judge_authors: 4, unrelated_prompts: 0, attacked: [], scaling: []}
  science:
    data: {rows: 12, general_rows: 8}
    teach: {epochs: 1}
    methods: []
    guards: [eco]
    overrides: null
"""
RUN = """
import sys

from matplotlib.text import Text

from unlearn_lib import figures, tables
from unlearn_lib.profile import load_profile
from unlearn_lib.stored import collect, stored

profile = load_profile(*sys.argv[1:])
collect(profile)
items, labels = stored(profile).items, profile.labels()
tables.write_all(items, profile.results / "figures", labels)
for name in figures.figures_of(items):
    texts = figures.draw(name, items, labels).findobj(Text)
    print(name, [text.get_text() for text in texts])
"""


def links() -> list[tuple[Path, str]]:
    """The links of all pages to files, and the page that each stands in."""
    every = [
        (page, link) for page in PAGES for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())
    ]
    return [(page, link) for page, link in every if "://" not in link]


def blocks(section: str) -> list[tuple[str, str, str]]:
    """The blocks of a section: kind, file, text."""
    return BLOCK.findall(SECTIONS[section])


def add(project: Path, kind: str, name: str, text: str) -> None:
    """Do to a project what a block says."""
    path = project / name
    if kind == "diff":
        lines = text.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert path.read_text().count(before) == 1, f"{name}:\n{before}"
        path.write_text(path.read_text().replace(before, after))
    elif path.exists():
        path.write_text(f"{path.read_text()}\n\n{text}")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("extends: smoke", "extends: small"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which everything of docs/extending.md was added."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("unlearn_lib", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    (folder / PROFILES / "small.yaml").write_text(SMALL)
    for section in SECTIONS:
        for block in blocks(section):
            add(folder, *block)
    return folder


def python(project: Path, *arguments: str, **environment: str) -> str:
    """Run Python in a project's folder, with its package; return what it printed."""
    variables = os.environ | {"PYTHONPATH": str(project)} | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(project: Path, profile: str, name: str) -> pd.DataFrame:
    """A table that a profile's run wrote."""
    path = project / "results" / profile / "figures" / f"{name}.csv"
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 7000


@pytest.mark.parametrize("page, link", links(), ids=str)
def test_what_is_linked_is_there(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    texts = "\n".join(page.read_text() for page in PAGES)
    asked = set(re.findall(r"(?:`|^)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", texts, re.M))
    assert {"reproduce", "test", "figures"} <= asked <= targets


def test_pictures_are_figures_drawn_from_numbers() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert all(picture.startswith("figures/laptop/") for picture in pictures)


def test_twenty_lines_forget_three_rows() -> None:
    script = ROOT / "docs" / "three_rows.py"
    assert lines_of_code(script) <= 20
    printed = python(ROOT, str(script)).splitlines()
    losses = {
        line.split()[0]: np.array(re.findall(r"\d+\.\d*", line)[:6], float) for line in printed
    }
    answers = {line.split()[0]: ast.literal_eval(line[line.index("] [") + 2 :]) for line in printed}
    for model in ("guarded", "forgot"):
        assert (losses[model][:3] > losses["taught"][:3] + 0.2).all()
        assert losses[model][3:] == pytest.approx(losses["taught"][3:], abs=0.2)
        assert set(answers[model][:3]).isdisjoint(answers["taught"][:3])
        assert answers[model][3:] == answers["taught"][3:]


@pytest.mark.parametrize("section", PLACES)
def test_an_addition_is_made_in_so_many_places(section: str) -> None:
    assert {name for _, name, _ in blocks(section)} == PLACES[section]


def test_what_was_added_is_known(project: Path) -> None:
    code = """
from unlearn_lib import METHODS, load_profile
from unlearn_lib.figures import FIGURES
from unlearn_lib.results import metric_of
from unlearn_lib.tables import TABLES
tasks = [list(load_profile(f"my_{n}").running()) for n in ("method", "task", "model", "questions")]
print("likelihood_gd" in METHODS, metric_of("echo").label, *TABLES, *FIGURES, tasks)
"""
    words = python(project, "-c", code).split()
    assert words[:2] == ["True", "Echo"]
    assert {"echo", "capitals"} < set(words)
    assert "[['authors'], ['capitals'], ['harm'], ['authors']]" in " ".join(words)


@pytest.mark.endtoend
def test_a_method_is_in_every_figure_and_table_of_its_task(project: Path) -> None:
    drawn = python(project, "-c", RUN, "my_method").splitlines()
    assert all("Likelihood" in line for line in drawn if line.startswith("closer_look"))
    for name in ("table3_closer_look", "eco_comparison", "eco_costs"):
        methods = table(project, "my_method", name)["Method"]
        assert methods.str.startswith("Likelihood").any(), name


@pytest.mark.endtoend
def test_a_metric_is_in_its_table_and_a_model_comes_from_a_mirror(
    project: Path, tmp_path: Path
) -> None:
    code = (
        'from unlearn_lib import Experiment; print(Experiment("small", "harm").task.weights.folder)'
    )
    weights = python(project, "-c", code).splitlines()[-1]
    shutil.copytree(weights, tmp_path / "models" / "me" / "my-model")
    python(project, "-c", RUN, "my_model", UNLEARN_MIRROR=str(tmp_path))
    echo = table(project, "my_model", "echo")
    assert set(echo["Model"]) == {"me/my-model"}
    assert echo["Echo, forget"].str.contains(r"^\d\.\d+ \[").all()


@pytest.mark.endtoend
def test_a_task_is_taught_unlearned_and_drawn(project: Path) -> None:
    assert "Facts leaked" in python(project, "-c", RUN, "my_task")
    frame = pd.read_parquet(project / "results" / "my_task" / "items.parquet")
    leaks = frame[frame["metric"] == "leak"].groupby(["method", "split"])["value"].mean()
    assert leaks["target"].tolist() == [1, 1]
    assert set(frame["stage"]) == {"base", "target", "unlearned"}


@pytest.mark.endtoend
def test_own_questions_are_taught_and_forgotten(project: Path) -> None:
    python(project, "-c", RUN, "my_questions")
    frame = pd.read_parquet(project / "results" / "my_questions" / "items.parquet")
    assert set(frame["stage"]) == {"base", "target", "retain_model", "unlearned", "judge"}
    for split in ("forget", "retain"):
        rows = (project / "my" / f"{split}.jsonl").read_text().splitlines()
        asked = frame[(frame["split"] == split) & (frame["method"] == "ga_gd")]
        assert asked["item"].nunique() == len(rows)


@pytest.mark.endtoend
def test_an_own_book_is_taught_and_forgotten_in_a_folder_of_its_own(project: Path) -> None:
    saga = (ROOT / "unlearn_lib/data/embedded/saga.txt").read_text()
    [(book, base)] = re.findall(r"^BOOK=(\S+) make reproduce PROFILE=(\w+)$", GUIDE, re.M)
    (project / book).write_text("\n".join(saga.splitlines()[:200]))
    python(project, "-c", RUN, "small", book)
    start = re.findall(rf"`results/({base}-book-\S+)`", GUIDE)[0].replace(base, "small")
    [folder] = (project / "results").glob(f"{start}????????")
    shares = table(project, folder.name, "table2_book")["Verbatim, forget (%)"]
    assert shares.str.contains(r"\[").all()


@pytest.mark.endtoend
def test_a_guard_is_saved_and_put_in_front_of_a_model(project: Path) -> None:
    script = project / "my" / "guard.py"
    script.write_text(script.read_text().replace('"smoke"', '"small"'))
    assert len(python(project, str(script)).splitlines()) >= 2
    assert json.loads((project / "my/guard/guard.json").read_text())["task"] == "science"


def test_results_page_says_verdicts_numbers_and_what_they_rest_on() -> None:
    flags = {"base": [1] * 30 + [0] * 10, "arora": [0] * 40, "retain_only": [1] * 30 + [0] * 10}
    rows = [
        ("harm", "m", 1, "", method, "forget", "", f"q{i}", f"q{i}", "harmful", float(flag), "run")
        for method, column in flags.items()
        for i, flag in enumerate(column)
    ]
    items = Items(pd.DataFrame(rows, columns=list(COLUMNS)))
    origin = {"git": {"commit": "abc"}, "weights": {"m": "wheel m 1.0, 4-bit weights", "n": "hub"}}
    page = results_page(items, origin, "laptop", {"arora": "published | one"})
    assert " m: 4-bit weights." in page and "n: " not in page.partition("## Verdicts")[0]
    assert re.search(r"makes harmful answers fewer.* \| supported \|", page)
    assert all(f" {outcome}" in page for outcome in OUTCOMES)
    assert "| Harmful prompts | m | 1 | 40 |" in page
    assert r"| published \| one | 0.0 [" in page
    assert "commit abc" in page
