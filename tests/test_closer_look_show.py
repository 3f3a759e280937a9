"""What notebook 04 displays without training: texts of models, scenarios that do not run, logs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from test_tofu_metrics import official_content, tofu_log

from unlearn_lib import metrics, profiles
from unlearn_lib.datasets.questions import Question
from unlearn_lib.display import with_interval
from unlearn_lib.experiments import closer_look_show
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.metrics import Estimate
from unlearn_lib.profiles import load_profile

EVIL = "<script>alert('x')</script> & <b>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &lt;b&gt;"
LONG = " ".join(f"w{number}" for number in range(1, 100))
FICTITIOUS: tuple[Callable[[CloserLook], Any], ...] = (
    closer_look_show.knowledge,
    closer_look_show.training,
    closer_look_show.untargeted,
    closer_look_show.targeted,
    closer_look_show.measures,
    closer_look_show.answers,
    closer_look_show.entropy,
    closer_look_show.methods,
    closer_look_show.continual,
    closer_look_show.verdict,
)
REAL_WORLD: tuple[Callable[[CloserLook], Any], ...] = (
    closer_look_show.people,
    closer_look_show.real_world,
    lambda experiment: closer_look_show.answers(experiment, "real_world"),
)


def stub(texts: dict[str, str], scenario: str = "fictitious") -> Any:
    """An experiment whose models gave these answers to one question."""
    tasks = (1, 2) if scenario == "continual" else (1,)
    return SimpleNamespace(
        labels={name: f"label <i> of {name}" for name in texts},
        models_of=lambda scenario: [(name, task) for name in texts for task in tasks],
        record=lambda who, scenario, task: {
            "forget": {"texts": ["another", texts[who]]},
            "retain": {"texts": [f"kept by {who}", "another"]},
        },
        sets=lambda scenario: {
            "forget": (Question("another", "another"), Question(f"Q {EVIL}", f"A {EVIL}")),
            "retain": (Question("What is kept?", "This."),),
        },
    )


def test_texts_of_models_are_escaped_and_cut() -> None:
    found = closer_look_show.answers(stub({"m": f"{EVIL} {LONG}", "n": ""}), row=1).data
    for tag in ("<script>", "<i>", "& <b>"):
        assert tag not in found
    assert found.count(ESCAPED) == 3  # the question, the true answer, the model's
    assert "label &lt;i&gt; of m" in found
    words = closer_look_show.WORDS - len(EVIL.split())
    assert f" w{words} …" in found and f"w{words + 1}" not in found
    assert "(nothing)" in found and found.count("<tr>") == found.count("</tr>") == 2


def test_addresses_and_numbers_in_texts_are_masked() -> None:
    said = "Write to someone@example.org or call +1 555 010 9999, see https://example.org/x."
    found = closer_look_show.answers(stub({"m": said}), row=1).data
    assert "example.org" not in found and "9999" not in found and found.count("[masked]") == 3


def test_answers_are_of_the_set_that_is_asked_for() -> None:
    found = closer_look_show.answers(stub({"m": "x", "n": "y"}), split="retain").data
    assert "What is kept?" in found and "true: This." in found
    assert "kept by m" in found and "kept by n" in found


def test_answers_after_each_task_are_told_apart() -> None:
    found = closer_look_show.answers(stub({"m": "x"}, "continual"), "continual", row=1).data
    assert "of m, after task 1" in found and "of m, after task 2" in found


def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> CloserLook:
    """Profile smoke's experiment, with a model for the real world alone or for all but it.

    It has been asked to compute nothing.
    """

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was asked for")

    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    profile = load_profile("smoke")
    chosen = (profile.tofu.models[0].id,) if real else ()
    block = profile.tofu.model_copy(update={"real_world_models": chosen})
    experiment = CloserLook(profile.model_copy(update={"tofu": block}), None, 1)
    monkeypatch.setattr(experiment.store, "get", refuse)
    return experiment


def is_a_note(found: Any) -> bool:
    if isinstance(found, pd.DataFrame):
        return found["value"].tolist() == [closer_look_show.ABSENT]
    return isinstance(found, HTML | Markdown) and closer_look_show.ABSENT in found.data


@pytest.mark.parametrize("shown", FICTITIOUS, ids=lambda shown: shown.__name__)
def test_a_model_of_the_real_world_alone_has_a_note_elsewhere(
    shown: Callable[[CloserLook], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_a_note(shown(smoke(tmp_path, monkeypatch, real=True)))


@pytest.mark.parametrize("shown", REAL_WORLD, ids=["people", "real_world", "answers"])
def test_a_model_without_the_real_world_has_a_note_there(
    shown: Callable[[CloserLook], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_a_note(shown(smoke(tmp_path, monkeypatch, real=False)))


def test_without_an_me_method_there_is_a_note_for_its_entropy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = smoke(tmp_path, monkeypatch, real=False)
    monkeypatch.setattr(experiment, "history", lambda name: pd.DataFrame({"total": [1.0]}))
    assert is_a_note(closer_look_show.entropy(experiment))


def test_sets_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = smoke(tmp_path, monkeypatch, real=False)
    shown = closer_look_show.data(experiment)
    settings = experiment.settings.data
    per_author = settings.questions_per_author
    assert shown.loc["to forget, task 1"].tolist() == [per_author, 1]
    assert shown.loc["to forget, task 2"].tolist() == [per_author, 1]
    assert shown.loc["to retain"].tolist() == [2 * per_author, 2]
    assert shown.loc["held out, never taught"].tolist() == [per_author, 1]
    for name in ("retain, asked", "real authors", "world facts"):
        assert shown.loc[name, "questions"] == settings.evaluation_rows
    told = closer_look_show.settings(experiment)["value"]
    assert told["questions"] == "embedded" and told["seed"] == 1


def test_a_question_is_shown_with_all_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = smoke(tmp_path, monkeypatch, real=False)
    row = experiment.data.tasks[0][2]
    shown = closer_look_show.sample(experiment, 2)["value"]
    assert shown.iloc[0] == row.question
    assert row.answer in shown.tolist() and row.paraphrase in shown.tolist()
    assert shown.tolist()[-len(row.perturbed_answer) :] == list(row.perturbed_answer)


def test_a_named_judge_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = smoke(tmp_path, monkeypatch, real=False)
    chosen = experiment.settings.evaluation.model_copy(update={"entailment": "some/nli"})
    experiment.settings = experiment.settings.model_copy(update={"evaluation": chosen})
    assert closer_look_show.judge(experiment)["value"].tolist() == ["some/nli"]


def test_a_value_is_shown_with_its_interval() -> None:
    value = Estimate(0.5, 0.25, 1.0, 9)
    assert with_interval(value) == "0.50 [0.25, 1.00]"
    assert with_interval(value, 3) == "0.500 [0.250, 1.000]"
    assert with_interval(None) == ""


def test_official_logs_are_scored_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARN_MIRROR", raising=False)
    assert "UNLEARN_MIRROR" in closer_look_show.official()["value"].iloc[0]
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    assert "UNLEARN_MIRROR" in closer_look_show.official()["value"].iloc[0]
    logs = {name: tofu_log(seed, name) for seed, name in enumerate(("a_full", "a_retain90"))}
    (tmp_path / "evals").mkdir()
    for name, log in logs.items():
        (tmp_path / f"evals/{name}.json").write_text(json.dumps(official_content(log)))
    shown = closer_look_show.official()
    assert list(shown.index) == list(logs)
    for name, log in logs.items():
        value = float(shown.loc[name, "model utility"].split(" ")[0])
        assert value == pytest.approx(metrics.model_utility(log).value, abs=1e-4)
    quality = shown["forget quality against a_retain90"]
    expected = metrics.forget_quality(logs["a_full"], logs["a_retain90"]).value
    assert np.isclose(float(quality["a_full"]), expected, rtol=1e-4) and quality["a_retain90"] == ""
