"""Bring your own method, model, book, questions: what README.md shows is what runs here.

Its blocks are written to the files that they name, with a smaller profile in the place of smoke.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_readers import prose

from unlearn_lib import profiles
from unlearn_lib.datasets import tofu
from unlearn_lib.errors import CompanionError
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.experiments.harmful import HarmfulExperiment
from unlearn_lib.figures import FIGURES
from unlearn_lib.metrics import tidy
from unlearn_lib.profiles import Profile, load_profile
from unlearn_lib.settings import TofuData
from unlearn_lib.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Bring your own\n")[2].partition("\n## ")[0]
BLOCKS = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", SECTION, re.M | re.S))
MADE = "notebooks/profiles/"
NO_METHODS = {"eco_search", "eco_scaling", "eco_verdicts", "closer_look_orderings"}
"""Figures and tables of the guard alone, and of orderings of methods that the papers name."""
SMALL = """
name: small
extends: smoke
harmful:
  implant: {epochs: 1}
  data: {evaluation_prompts: 4, normal_prompts: 4}
  methods: []
  evaluation: {new_tokens: 4}
book:
  models: [{id: embedded/tiny-opt, precision: float32, lora: {rank: 4, alpha: 8}}]
  data: {evaluation_passages: 3, normal_prompts: 3, answer_tokens: 20}
  pretrain: {epochs: 1}
  implant: {epochs: 1, probe_passages: 2}
  methods: []
  evaluation: {new_tokens: 20}
tofu:
  data: {tasks: 1, holdout_authors: 0, evaluation_rows: 2}
  implant: {epochs: 1}
  methods:
    - {name: ga_gd, uses: ga_gd, label: GA + GD, steps: 1, learning_rate: 1.0e-3,
       scenarios: [continual]}
  evaluation: {new_tokens: 4, judge_authors: 4}
eco:
  classifier: {epochs: 0.1, most: 25, maximum_length: 32}
  guards: {entities: {strength: 1}, science: {strength: 1}}
  beside: {entities: [], book: []}
  science: {rows: 12, general_rows: 8}
  implant: {epochs: 1}
  methods: []
  evaluation: {unrelated_prompts: 2, unrelated_tokens: 2, new_tokens: 4, scaling: [],
    robustness_models: [eco]}
"""
ONE_METHOD = """
  methods: [{name: ga, uses: ga, label: GA, steps: 1, learning_rate: 1.0e-3}]"""
RUN = """
import json
import sys

from matplotlib.text import Text

from unlearn_lib import figures, results, tables
from unlearn_lib.experiments import book, closer_look, eco, harmful
from unlearn_lib.profiles import load_profile

name, folder = sys.argv[1:]
for experiment in (harmful, book, closer_look, eco):
    experiment.open_experiment(name, None, 1).save_rows()
profile = load_profile(name)
results.collect(profile)
drawn = {}
figures.save_figure = lambda figure, folder, name, *others: drawn.update({name: figure}) or []
results.draw(profile)
texts = {n: [t.get_text() for t in drawn[n].findobj(Text)] for n in drawn}
print("\\n" + json.dumps(texts))
"""


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def shown(name: str) -> str:
    """A profile as README shows it, on the small profile."""
    text = BLOCKS[f"{MADE}{name}.yaml"]
    assert text.count("extends: smoke") == 1
    return text.replace("extends: smoke", "extends: small")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the small profile, whose experiments have one method each."""
    shutil.copytree(profiles.PROFILES, tmp_path / MADE)
    small = SMALL.replace("\n  methods: []", ONE_METHOD).replace("[continual]", "[fictitious]")
    write(tmp_path, f"{MADE}small.yaml", small)
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / MADE)
    return tmp_path


def test_readme_shows_a_worked_example_of_each() -> None:
    assert re.findall(r"^### (.+)$", SECTION, re.M) == [
        "A method",
        "A model",
        "A book",
        "Questions to forget, and to keep",
    ]
    assert list(BLOCKS) == [
        "unlearn_lib/losses.py",
        "unlearn_lib/methods.py",
        "notebooks/profiles/my_method.yaml",
        "notebooks/profiles/my_model.yaml",
        "my/forget.jsonl",
        "my/retain.jsonl",
        "notebooks/profiles/my_questions.yaml",
    ]


# --- a method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_a_method(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of every figure and table of a copy of the project to which a method was added."""
    tree = tmp_path_factory.mktemp("tree")
    for part in ("unlearn_lib", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb")
        shutil.copytree(ROOT / part, tree / part, ignore=ignored)
    shutil.copyfile(ROOT / "requirements.lock", tree / "requirements.lock")
    for module in ("unlearn_lib/losses.py", "unlearn_lib/methods.py"):
        write(tree, module, f"{(tree / module).read_text()}\n\n{BLOCKS[module]}")
    write(tree, f"{MADE}small.yaml", SMALL)
    write(tree, f"{MADE}my_method.yaml", shown("my_method"))
    command = [sys.executable, "-c", RUN, "my_method", str(tree)]
    kept = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    tables = (tree / "figures" / "my_method").glob("*.csv")
    return {name: "\n".join(texts) for name, texts in figures.items()} | {
        path.stem: path.read_text(encoding="utf-8") for path in tables
    }


def test_a_method_is_one_function_one_entry_and_one_line() -> None:
    added = BLOCKS["unlearn_lib/losses.py"], BLOCKS["unlearn_lib/methods.py"]
    assert [len(re.findall(r"^\S", text, re.M)) for text in added] == [2, 1]
    assert added[0].startswith("def ") and added[1].startswith("METHODS[")
    assert len(yaml.safe_load(BLOCKS[f"{MADE}my_method.yaml"])["methods"]) == 1


@pytest.mark.parametrize(
    "name", sorted(set(chain(*FIGURES.values(), *TABLES.values())) - NO_METHODS)
)
def test_a_method_added_is_in_every_figure_and_table(
    name: str, with_a_method: dict[str, str]
) -> None:
    label = yaml.safe_load(BLOCKS[f"{MADE}my_method.yaml"])["methods"][0]["label"]
    assert label in with_a_method[name]


def content(**changed: Any) -> dict[str, Any]:
    tree = yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())
    line = {"name": "mine", "uses": "ga_gd", "label": "Mine", "steps": 7, "learning_rate": 1.0e-3}
    return tree | {"methods": [line | changed]}


def test_a_method_of_all_experiments_runs_wherever_a_method_can() -> None:
    found = Profile.model_validate(content())
    before = load_profile("smoke")
    for name, block in found.experiments().items():
        *others, last = block.methods
        assert tuple(others) == before.experiments()[name].methods and last.name == "mine"
        assert last.steps == 7 and last.label == found.labels(name)["mine"] == "Mine"
    assert set(found.tofu.method("mine").scenarios) == {"fictitious", "continual", "real_world"}
    assert all(names[-1] == "mine" for names in found.eco.beside.values())
    assert found.eco.evaluation.robustness_models == ("implanted", "eco", "mine")


def test_an_experiment_s_own_line_of_the_same_name_holds_there() -> None:
    found = Profile.model_validate(content(name="ga_gd"))
    before = load_profile("smoke")
    assert found.tofu.method("ga_gd") == before.tofu.method("ga_gd")
    assert found.eco.method("ga_gd") == before.eco.method("ga_gd")
    assert found.harmful.method("ga_gd").steps == found.book.method("ga_gd").steps == 7
    assert found.eco.beside["entities"] == ("ga_gd", "idk_ap")


def test_all_models_are_attacked_where_none_is_named() -> None:
    tree = content()
    del tree["eco"]["evaluation"]["robustness_models"]
    assert Profile.model_validate(tree).eco.evaluation.robustness_models == ()


@pytest.mark.parametrize(
    "methods, says",
    [
        ([{"name": "mine", "stepz": 2}], "unknown key 'methods.0.stepz' (did you mean 'steps'?)."),
        ([{"uses": "ga"}], "the key 'methods.0.name' is missing."),
        ("ga", "'methods':"),
        ([3], "'methods.0':"),
    ],
)
def test_a_wrong_line_is_named_where_it_stands(methods: Any, says: str, tmp_path: Path) -> None:
    line = {"uses": "ga", "label": "Mine", "steps": 1, "learning_rate": 1.0e-3}
    if isinstance(methods, list) and isinstance(methods[0], dict) and "name" in methods[0]:
        methods = [line | methods[0]]
    text = yaml.safe_dump({"name": "own", "extends": "smoke", "methods": methods})
    with pytest.raises(CompanionError) as told:
        load_profile(write(tmp_path, "own.yaml", text))
    assert says in str(told.value)


# --- a model -----------------------------------------------------------------------------------


def test_a_model_of_one_s_own_runs_from_a_mirror(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile(write(project, f"{MADE}my_model.yaml", shown("my_model")))
    [model] = profile.harmful.models
    assert f"`models/{model.id}`" in SECTION and list(profile.experiments()) == ["harmful"]
    mirror = tmp_path_factory.mktemp("mirror")
    saved = HarmfulExperiment(load_profile("small"), None, 1).weights.folder
    shutil.copytree(saved, mirror / "models" / model.id)
    monkeypatch.setenv("UNLEARN_MIRROR", str(mirror))
    experiment = HarmfulExperiment(profile, None, 1)
    assert experiment.weights.source == "mirror"
    found = tidy.read(experiment.save_rows())
    assert set(found["model"]) == {model.id} and "harmful_rate" in set(found["metric"])
    assert set(found["stage"]) == {"base", "unlearned"}


# --- a book ------------------------------------------------------------------------------------


def test_a_book_of_one_s_own_is_implanted_and_forgotten(project: Path) -> None:
    [(given, base)] = re.findall(r"^BOOK=(\S+) make reproduce PROFILE=(\w+)$", SECTION, re.M)
    chapters = [f"Chapter {n}\n\n" + "\n\n".join(prose(250, seed=n)) for n in range(1, 5)]
    book = write(project, given, "\n\n".join(chapters))
    profile = load_profile("small", book)
    folder = load_profile(base, book).results.relative_to(project)
    assert f"`{folder.as_posix()}`" in SECTION
    found = tidy.read(BookExperiment(profile, None, 1).save_rows())
    assert set(found["stage"]) == {"base", "implanted", "unlearned"}
    assert found["value"][found["metric"].eq("verbatim_share")].notna().all()
    assert not (project / "results" / "small").exists()


# --- questions ---------------------------------------------------------------------------------


@pytest.fixture
def questions(project: Path) -> Path:
    """The project's folder with README's two files of questions."""
    for name in ("my/forget.jsonl", "my/retain.jsonl"):
        write(project, name, BLOCKS[name])
    return project


def given(**changed: Any) -> TofuData:
    data = yaml.safe_load(BLOCKS[f"{MADE}my_questions.yaml"])["tofu"]["data"]
    return TofuData.model_validate(data | changed)


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


def rewrite(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write(root, name, "".join(json.dumps(row) + "\n" for row in rows))


def refusal(settings: TofuData) -> str:
    with pytest.raises(CompanionError) as told:
        tofu.load(settings)
    return str(told.value)


def test_questions_of_one_s_own_are_taught_and_forgotten(questions: Path) -> None:
    profile = load_profile(write(questions, f"{MADE}my_questions.yaml", shown("my_questions")))
    assert list(profile.experiments()) == ["tofu"]
    found = tidy.read(CloserLook(profile, None, 1).save_rows())
    assert set(found["stage"]) == {"base", "implanted", "reference", "unlearned"}
    own = found[found["split"].eq("forget") & found["metric"].eq("rougeL_recall")]
    assert len(own) and (own["n"] == len(rows(questions, "my/forget.jsonl"))).all()
    assert {"mu", "fe", "forget_quality"} <= set(found["metric"])


def test_files_are_found_from_the_project_s_folder_or_anywhere(questions: Path) -> None:
    found = tofu.load(given())
    assert found.source == "files" and not found.holdout
    for name, part in (("my/forget.jsonl", found.tasks[0]), ("my/retain.jsonl", found.retain)):
        assert [row.question for row in part] == [r["question"] for r in rows(questions, name)]
        assert all(row.perturbed_answer and not row.paraphrased_answer for row in part)
    assert {"forget", "retain", "refusals", "real_authors", "world_facts"} == set(found.sha256)
    assert tofu.load(given(forget=questions / "my" / "forget.jsonl")) == found


def test_paraphrases_and_a_holdout_are_read_where_they_are_given(questions: Path) -> None:
    own = [row | {"paraphrased_answer": "So it is."} for row in rows(questions, "my/forget.jsonl")]
    rewrite(questions, "my/forget.jsonl", own)
    rewrite(questions, "my/holdout.jsonl", [{"question": "Who rows?", "answer": "Sam does."}])
    found = tofu.load(given(holdout="my/holdout.jsonl"))
    assert {row.paraphrase for row in found.tasks[0]} == {"So it is."}
    assert [row.answer for row in found.holdout] == ["Sam does."] and "holdout" in found.sha256


def test_a_row_of_one_s_own_that_is_wrong_is_named(questions: Path) -> None:
    first, second = rows(questions, "my/retain.jsonl")
    del second["perturbed_answer"]
    rewrite(questions, "my/retain.jsonl", [first, second])
    message = refusal(given())
    assert "Row 2 of retain ('Who sails the ferry?')" in message and "perturbed_answer" in message
    rewrite(questions, "my/retain.jsonl", [first, rows(questions, "my/forget.jsonl")[0]])
    assert "is in retain too" in refusal(given())
    rewrite(questions, "my/retain.jsonl", [first])
    assert "more than the 1 to be retained" in refusal(given())
    (questions / "my" / "retain.jsonl").unlink()
    assert f"There is no file {questions / 'my' / 'retain.jsonl'}" in refusal(given())


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"retain": None}, "source 'files' needs 'retain', the path of a file of questions"),
        ({"tasks": 2}, "the file 'forget' is one task; set 'tasks' to 1"),
        ({"source": "embedded"}, "'forget' names a file, but 'source' is 'embedded'"),
    ],
)
def test_settings_of_files_that_do_not_fit_are_refused(
    changed: dict[str, Any], says: str, project: Path
) -> None:
    tree = yaml.safe_load(shown("my_questions"))
    tree["tofu"]["data"] |= changed
    with pytest.raises(CompanionError, match=re.escape(says)):
        load_profile(write(project, f"{MADE}my_questions.yaml", yaml.safe_dump(tree)))
