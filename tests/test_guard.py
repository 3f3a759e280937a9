"""Parts of a guard: corruptions, the strength's search, chosen tokens, scripts, calibration."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_text_classifier import write_bert
from torch.testing import assert_close
from transformers import BertConfig, BertForTokenClassification, ByT5Tokenizer

from unlearn_lib.guard import tokens
from unlearn_lib.guard.corruptions import CORRUPTIONS, corrupt, prompt_seed
from unlearn_lib.guard.fit import conformal_threshold
from unlearn_lib.guard.prompts import refusal, scripts_of
from unlearn_lib.guard.search import SearchStep, best_strength, zeroth_order
from unlearn_lib.guard.tokens import Frame, chosen_tokens, question_text, token_spans
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.settings import SearchSettings
from unlearn_lib.util import CompanionError

# --- corruptions -----------------------------------------------------------------------------

MOVES = ["reverse_order", "shuffle"]
# By absolute value, row 0 ranks its components 1, 3, 0, 2 and row 2 ranks them 2, 0, 3, 1.
EMBEDDINGS = torch.tensor([[1.0, -4, 0.5, 2], [9, 9, 9, 9], [-3, 0.25, 5, 1], [6, 7, 8, -9]])
CHOSEN = torch.tensor([True, False, True, False])


def corrupted(name: str, **options: Any) -> torch.Tensor:
    return corrupt(EMBEDDINGS, CHOSEN, name, **{"strength": 10.0, "dims": 2, **options})[CHOSEN]


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """A prompt's embeddings, rows chosen, a name of a corruption and its settings."""
    tokens, width = draw(st.integers(0, 6)), draw(st.integers(1, 9))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    return {
        "embeddings": torch.randn(tokens, width, generator=random).to(dtype),
        "chosen": torch.rand(tokens, generator=random) < 0.5,
        "name": draw(st.sampled_from(CORRUPTIONS)),
        "strength": draw(st.sampled_from([0.0, 0.5, 100.0])),
        "dims": draw(st.none() | st.integers(1, width)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@pytest.mark.parametrize(
    "name, first, third",
    [
        ("zero_out_first_n", [0, 0, 0.5, 2], [0, 0, 5, 1]),
        ("zero_out_top_k", [1, 0, 0.5, 0], [0, 0.25, 0, 1]),
        ("flip_sign_first_n", [-1, 4, 0.5, 2], [3, -0.25, 5, 1]),
        ("flip_sign_top_k", [1, 4, 0.5, -2], [3, 0.25, -5, 1]),
        ("add_value_first_n", [11, 6, 0.5, 2], [7, 10.25, 5, 1]),
        ("add_value_top_k", [1, 6, 0.5, 12], [7, 0.25, 15, 1]),
        ("add_value_least_k", [11, -4, 10.5, 2], [-3, 10.25, 5, 11]),
        ("sub_value_first_n", [-9, -14, 0.5, 2], [-13, -9.75, 5, 1]),
        ("sub_value_top_k", [1, -14, 0.5, -8], [-13, 0.25, -5, 1]),
        ("sub_value_least_k", [-9, -4, -9.5, 2], [-3, -9.75, 5, -9]),
        ("reverse_order", [-3, 0.25, 5, 1], [1, -4, 0.5, 2]),
    ],
)
def test_corruptions_by_hand(name: str, first: list[float], third: list[float]) -> None:
    assert corrupted(name).tolist() == [first, third]


def test_noise_is_the_seeds_normal_numbers_times_the_strength() -> None:
    noise = 10 * torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    rows = EMBEDDINGS[CHOSEN]
    first = torch.tensor([True, True, False, False])
    largest = torch.tensor([[False, True, False, True], [True, False, True, False]])
    expected = {
        "rand_noise_first_n": torch.where(first, rows + noise, rows),
        "set_rand_noise_first_n": torch.where(first, noise, rows),
        "rand_noise_top_k": torch.where(largest, rows + noise, rows),
    }
    for name, result in expected.items():
        assert_close(corrupted(name, seed=3), result)


def test_random_components_are_the_same_in_all_rows() -> None:
    ones = torch.ones(5, 20)
    changed = corrupt(ones, ones[:, 0] > 0, "rand_noise_rand_n", 1.0, dims=3, seed=4) != 1
    assert (changed == changed[0]).all() and changed[0].sum() == 3


@given(problems())
def test_only_dims_components_of_chosen_rows_change_and_never_the_input(
    problem: dict[str, Any],
) -> None:
    embeddings, chosen = problem["embeddings"], problem["chosen"]
    before = embeddings.clone()
    result = corrupt(**problem)
    assert torch.equal(embeddings, before) and torch.equal(corrupt(**problem), result)
    assert result.dtype == embeddings.dtype and result.shape == embeddings.shape
    assert torch.equal(result[~chosen], embeddings[~chosen])
    if problem["name"] in MOVES:
        assert sorted(result.tolist()) == sorted(embeddings.tolist())
    else:
        most = problem["dims"] or embeddings.shape[1]
        assert ((result != embeddings).sum(dim=1) <= most).all()


def test_a_prompts_seed_is_the_same_everywhere_and_its_own() -> None:
    # printf '2:Où ? 東京' | sha256sum | cut -c 1-8
    assert prompt_seed("Où ? 東京", 2) == 0x77ACEBA5
    prompts = [("Who?", 5), ("Who?", 0), ("Who? ", 5), ("who?", 5), ("", 5)]
    assert len({prompt_seed(text, seed) for text, seed in prompts}) == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "rand_noise_first"}, "'rand_noise_first_n'"),
        ({"dims": 5}, "dims is 5"),
        ({"strength": math.nan}, "Strength nan"),
        ({"strength": 1e39}, "smaller"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompanionError, match=message):
        corrupted(**{"name": "rand_noise_first_n", **options})


# --- the search of the strength --------------------------------------------------------------


def search(objective: Callable[[float], float], **changed: Any) -> list[SearchStep]:
    values = {"steps": 20, "learning_rate": 0.25, "start": 1.0, "perturbation": 0.1, **changed}
    return zeroth_order(objective, SearchSettings.model_validate(values))


def bowl(lowest: float) -> Callable[[float], float]:
    """(β - lowest)²: the two-point estimate of its slope, 2 (β - lowest), is exact."""
    return lambda strength: (strength - lowest) ** 2


@pytest.mark.parametrize("learning_rate", [0.1, 0.25, 0.4, 0.75])
def test_a_quadratic_shrinks_by_1_minus_2_lr_a_step(learning_rate: float) -> None:
    steps = search(bowl(5.0), steps=6, learning_rate=learning_rate)
    expected = [5 - 4 * (1 - 2 * learning_rate) ** number for number in range(7)]
    assert [step.strength for step in steps] == pytest.approx(expected)
    assert [step.objective for step in steps] == pytest.approx([(b - 5) ** 2 for b in expected])


def test_one_step_of_the_released_settings_by_hand() -> None:
    # f(0.1999) - f(0.0001) = -0.3996 on a slope of -2: β = 0.1 + 100 * 0.3996 / 0.1998 = 200.1.
    result = zeroth_order(lambda strength: 1 - 2 * strength, SearchSettings(steps=1))
    assert best_strength(result) == pytest.approx(200.1)


def test_three_calls_a_step_one_a_start_and_the_best_start_is_followed() -> None:
    asked: list[float] = []

    def objective(strength: float) -> float:
        asked.append(strength)
        return (strength - 5) ** 2

    steps = search(objective, steps=2, start=0.5, other_starts=[1.0, 0.2])
    assert asked == pytest.approx([0.5, 1, 0.2, 1.1, 0.9, 3, 3.1, 2.9, 4])
    assert [(step.step, step.calls) for step in steps] == [(0, 1), (1, 2), (2, 3), (3, 6), (4, 9)]


@given(st.floats(0.1, 20), st.floats(0.01, 2), st.integers(1, 9))
def test_the_best_of_the_curve_is_taken_and_none_is_below_the_smallest(
    lowest: float, rate: float, steps: int
) -> None:
    result = search(bowl(lowest), learning_rate=rate, steps=steps, smallest=0.3)
    best = min(result, key=lambda step: step.objective)
    assert best_strength(result) == best.strength
    assert min(step.strength for step in result) >= 0.3


def test_it_stops_below_the_limit_and_takes_the_earliest_of_equal_points() -> None:
    steps = search(bowl(5.0), stop_below=4.0)  # 16, 4, 1: 4 is not below 4
    assert [step.objective for step in steps] == pytest.approx([16, 4, 1])
    assert best_strength(search(lambda strength: 0.5, start=2.0)) == 2.0


def test_logarithms_are_searched_and_strengths_are_told() -> None:
    def objective(strength: float) -> float:
        return float(np.log10(strength) - 3) ** 2

    result = search(objective, logarithmic=True, start=-1.0, smallest=-2.0, steps=3)
    assert [step.strength for step in result] == pytest.approx([0.1, 10, 100, 10**2.5])
    assert best_strength(result) == pytest.approx(10**2.5)


@pytest.mark.parametrize(
    "objective, changed",
    [
        (lambda strength: math.nan if strength > 1 else 0.0, {}),
        (lambda strength: -1e308 * min(strength, 1.2), {"learning_rate": 1e5}),
        (lambda strength: 0.0, {"logarithmic": True, "start": 400.0}),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_search_that_leaves_the_numbers_is_refused(objective: Any, changed: Any) -> None:
    with pytest.raises(CompanionError, match="objective is (nan|inf) at strength"):
        search(objective, **changed)


# --- characters of tokens, a template's frame, chosen tokens -----------------------------------

TEXT = "Who wrote “Näht, Café” – Zoë 東京? 🙂 It's Ann's."


@pytest.mark.parametrize("slow", [False, True])
@given(st.one_of(st.just(TEXT), st.text(st.sampled_from("Who? 'sé東🙂\ufffdAn.\n"), max_size=30)))
@hypothesis_settings(max_examples=40)
def test_every_character_belongs_to_a_token(tokenizer: Any, slow: bool, text: str) -> None:
    reader = ByT5Tokenizer() if slow else tokenizer
    ids = reader(text, add_special_tokens=False)["input_ids"]
    spans = token_spans(reader, ids)
    whole = reader.decode(ids, clean_up_tokenization_spaces=False)
    assert len(spans) == len(ids) and spans == sorted(spans)
    assert {place for span in spans for place in range(*span)} == set(range(len(whole)))


@pytest.mark.parametrize("template", ["chat", "question_answer"])
def test_a_frame_is_what_a_template_adds(tokenizer: Any, template: str) -> None:
    encode = TextEncoder(tokenizer, template, 64, 32, 128).prompt
    frame, ids = Frame.of(encode), encode("How do birds fly?")
    start, end = frame.question(ids)
    assert ids[:start] == frame.before and ids[end:] == frame.after
    assert tokenizer.decode(ids[start:end]).strip() == "How do birds fly?"
    assert question_text(tokenizer, ids, frame) == "How do birds fly?"


def test_a_token_that_joins_question_and_template_is_the_questions() -> None:
    def encode(text: str) -> list[int]:
        """Characters, but «?» and the line's end after it are one token."""
        return [-1 if sign == "\0" else ord(sign) for sign in f"<{text}\n>".replace("?\n", "\0")]

    frame = Frame.of(encode)
    assert frame == Frame((ord("<"),), (ord(">"),))
    assert frame.question(encode("Who?")) == (1, 5) and frame.question(encode("Who")) == (1, 5)


def test_a_frame_that_is_not_there_leaves_the_whole_row() -> None:
    frame = Frame((1, 2), (3,))
    assert frame.question([1, 2, 9, 8, 3]) == (2, 4)
    for ids in ([1, 9, 9, 3], [1, 2, 9, 9], [1, 2], [2, 3], [9], []):
        assert frame.question(ids) == (0, len(ids))


def finder(*names: str) -> Any:
    """Stands for a model of names that knows some."""

    def spans(text: str) -> list[tuple[int, int]]:
        starts = [(text.index(name), name) for name in names if name in text]
        return [(start, start + len(name)) for start, name in starts]

    return spans


@pytest.mark.parametrize(
    "names, expected",
    [
        (None, "What is Zoë Lee's song about?"),
        ([], "What is Zoë Lee's song about?"),
        (["Zoë Lee"], "Zoë Lee"),
        (["Zoë Lee", "song"], "Zoë Lee song"),
    ],
)
def test_names_or_else_the_whole_question_is_chosen(
    encoder: TextEncoder, names: list[str] | None, expected: str
) -> None:
    ids = encoder.prompt("What is Zoë Lee's song about?")
    ner = None if names is None else finder(*names)
    places = chosen_tokens(encoder.tokenizer, ids, Frame.of(encoder.prompt), ner)
    assert encoder.tokenizer.decode([ids[place] for place in places]).strip() == expected


def test_the_last_token_is_never_chosen_and_another_template_wholly_but_for_it(
    tokenizer: Any,
) -> None:
    ids = tokenizer("who is X", add_special_tokens=False)["input_ids"]
    every = list(range(len(ids) - 1))
    for ner in (None, finder("X")):
        assert chosen_tokens(tokenizer, ids, Frame(), ner) == every
    assert chosen_tokens(tokenizer, ids, Frame((999,), ()), finder("who")) == every
    assert chosen_tokens(tokenizer, ids[:1], Frame()) == []


# --- a token classifier ------------------------------------------------------------------------


def test_entities_are_widened_to_whole_words() -> None:
    text = "who is Oskel Sundgarde, Ann?"
    found = [(7, 9), (13, 17), (17, 22), (24, 27)]
    pieces = [{"start": start, "end": end} for start, end in found]
    spans = tokens.names_in(lambda text: pieces, text)
    places = {place for span in spans for place in range(*span)}
    assert "".join(text[place] for place in sorted(places)) == "OskelSundgardeAnn"
    assert tokens.names_in(lambda text: pieces, "  ") == []


def test_a_token_classifier_reads_texts_of_any_length(tmp_path: Path) -> None:
    write_bert(tmp_path, ["who", "is", "ann"])
    labels = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    config = BertConfig.from_pretrained(tmp_path, **labels)
    BertForTokenClassification(config).save_pretrained(tmp_path)
    spans = tokens.load_ner(tmp_path)("who is ann " * 40)
    assert spans and all(0 <= start < end <= 440 for start, end in spans)


def test_a_folder_without_a_token_classifier_is_refused(tmp_path: Path, tiny_assets: Any) -> None:
    for folder in (tmp_path, tiny_assets["gpt2"].folder):
        with pytest.raises(CompanionError, match="no trained model"):
            tokens.load_ner(folder)


# --- scripts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, reason",
    [
        ("Was Renée Müller-Łukasz born in Åarhus?", ""),
        ("Is Hawaiʻi's e\u0301te\u0301 warm?", ""),
        ("\U0001d416\U0001d421\U0001d428 is Ｊａｎｅ?", ""),
        ("Is ΔH of 5 μg / Ω the λ of β-carotene?", ""),
        ("2 + 2 = 😀?", ""),
        ("Где родился Торвандал?", "CYRILLIC"),
        ("Πού γεννήθηκε η Μαρία;", "GREEK"),
        ("Where was 李白 born, and who taught the author to write?", "CJK"),
        ("Where was Torv\u0430ndal born?", "CYRILLIC"),
        (" \n\u200b\t", "empty"),
    ],
)
def test_other_scripts_and_blank_prompts_are_refused(prompt: str, reason: str) -> None:
    assert reason in refusal(prompt, ("LATIN",))
    assert bool(reason) == bool(refusal(prompt, ("LATIN",)))


def test_scripts_are_those_of_the_training_prompts() -> None:
    assert scripts_of(["Где is it", "naïve ΔG"] * 2) == ("CYRILLIC", "GREEK", "LATIN")
    assert scripts_of(["Where is Москва", *["Where is it"] * 200]) == ("LATIN",)
    assert scripts_of(["12 😀"]) == ()
    assert refusal("Кто такой Торвандал, and who else?", ("CYRILLIC", "LATIN")) == ""


# --- calibration -------------------------------------------------------------------------------


def test_thresholds_by_hand() -> None:
    scores = np.arange(1, 100) / 1000
    assert conformal_threshold(scores[::-1], 0.01) == 0.099
    assert conformal_threshold(scores, 0.05) == 0.095
    assert conformal_threshold(scores, 0.29) == 0.071
    assert conformal_threshold([0.2, 0.9, 0.4], 0.5) == 0.4


@given(st.integers(1, 400), st.fractions("1/200", "9/10", max_denominator=200))
def test_a_new_score_is_flagged_no_more_often_than_promised(n: int, rate: Fraction) -> None:
    """Exchangeable without ties: the new score's rank among n + 1 is uniform."""
    alpha, scores = float(rate), np.arange(1, n + 1) / (n + 2)
    if n + 1 < 1 / Fraction(str(alpha)):
        with pytest.raises(CompanionError, match="held-out retain prompts"):
            conformal_threshold(scores, alpha)
        return
    ranks_above = n + 1 - np.count_nonzero(scores <= conformal_threshold(scores, alpha))
    assert ranks_above / (n + 1) <= alpha < (ranks_above + 1) / (n + 1)


def test_a_calibration_that_cannot_be_is_refused() -> None:
    with pytest.raises(CompanionError, match="needs 99 held-out .*there are 98"):
        conformal_threshold(np.zeros(98))
    with pytest.raises(CompanionError, match="score 1"):
        conformal_threshold([*[0.1] * 97, 1, 1], 0.02)
