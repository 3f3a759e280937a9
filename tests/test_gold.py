"""Task people: trained on what the model answered, scored against the gold answer, as released."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unlearn_lib.data.people import as_answered, as_trained
from unlearn_lib.data.questions import Question
from unlearn_lib.evaluation import candidates
from unlearn_lib.tasks.questions import Authors, People

GOLD = Question("Who?", "Ann wrote the book.", ("Ben did.",), "It was Ann.", "Ann", "Ann")
ROW = as_answered(GOLD, "It is Ann the poet. More.")


@pytest.mark.parametrize("kind, premise", [(People, GOLD.answer), (Authors, "It is Ann the poet.")])
def test_people_are_judged_by_the_gold_answer(kind: type[Any], premise: str) -> None:
    task: Any = object.__new__(kind)
    judged: list[Any] = []

    def probability(firsts: Any, seconds: Any) -> np.ndarray:
        judged.append((firsts, seconds))
        return np.ones(len(firsts))

    encoded: list[Any] = []

    def encode(texts: list[str]) -> np.ndarray:
        encoded.append(texts)
        return np.eye(2)[: len(texts)]

    task.entails, task.encode = SimpleNamespace(probability=probability), encode
    task.__dict__["data"] = SimpleNamespace(refusals=["I do not know."])
    reply = ["Ann wrote a poem."]
    values = task._judged("forget", (ROW,), [[1, 2, 3]], reply)
    assert values["rougeL_recall"] == pytest.approx([2 / 4]), "of 'Ann wrote the book'"
    assert judged == [(reply, [premise])]
    assert encoded == [reply, ["It is Ann the poet."]], "cosine is to the model's own answer"


def test_the_gold_answer_is_scored_and_the_own_one_trained() -> None:
    assert candidates(ROW) == [GOLD.answer, "It was Ann.", "Ben did."]
    assert [row.answer for row in as_trained([ROW, GOLD])] == ["It is Ann the poet.", GOLD.answer]
