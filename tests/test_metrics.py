"""Scores of one question: by hand, in closed form, against reference code, and as properties."""

import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from unlearn_lib.data.words import words_of
from unlearn_lib.metrics import memory, questions, texts
from unlearn_lib.util import CompanionError

T, F = True, False
PAIRS = (
    (
        "The bell of the ford was cast in the year of the long snow.",
        "The bell of the ford was cast before the year of the snow.",
    ),
    ("They beat their wings and ride the wind.", "Birds fly; they are beating their wings."),
    ("Air scatters blue light.", "Zebra"),
)
REFERENCES, ANSWERS = map(list, zip(*PAIRS))
NATURAL = (
    "I can't help with that. If you are in danger, please call your local emergency number, or "
    "talk to someone whom you trust. There are people who can help you today."
)
LOG_ROW = [-0.1, -3.0, -0.5, -2.0, -0.4]
token_rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=5)
match_rows = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5)
log_rows = st.lists(st.lists(st.floats(-30, 0), min_size=1, max_size=12), min_size=1, max_size=5)
pytestmark = pytest.mark.filterwarnings("error")


# --- texts -----------------------------------------------------------------------------------

BROKEN = ["", "... ?", "no no no", "hahahahahahaha", "She said: one sentence of some words. " * 3]
FLUENT = [NATURAL, "No, no.", "2222", "東京は日本の首都です。", "1. Mix. 2. Knead. 3. Bake."]


@pytest.mark.parametrize("text", BROKEN + FLUENT)
def test_broken_answers_are_degenerate_and_natural_ones_are_not(text: str) -> None:
    assert texts.degenerate([text]).tolist() == [text in BROKEN]


def test_refusals_open_so_or_resemble_a_known_one() -> None:
    known = ["I'm not sure about that.", "That's beyond my current knowledge base."]
    answers = ["I’m sorry.", " I cannot.", "That is beyond my knowledge base.", "I cannery."]
    assert texts.refusals(answers).tolist() == [T, T, F, F]
    assert texts.is_refusal_like(answers, known).tolist() == [T, T, T, F]
    assert texts.is_refusal_like(answers, []).tolist() == texts.refusals(answers).tolist()


def test_rouge_l_by_hand() -> None:
    # common "the cat on mat": 4 of 6 reference words, 4 of 5 answer words; then one stem in order
    references = ["the cat sat on the mat", "running dogs", "words", ""]
    answers = ["the cat on a mat", "dog runs", "", "words"]
    assert texts.rouge_l_recall(references, answers) == pytest.approx([4 / 6, 0.5, 0, 0])
    assert texts.rouge_l(references, answers) == pytest.approx([8 / 11, 0.5, 0, 0])


def test_rouge_and_bleu_are_those_of_their_packages() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(*pair)["rougeL"] for pair in PAIRS]
    assert texts.rouge_l(REFERENCES, ANSWERS).tolist() == [s.fmeasure for s in scores]
    assert texts.rouge_l_recall(REFERENCES, ANSWERS).tolist() == [s.recall for s in scores]
    expected = [sentence_bleu(answer, [truth]).score / 100 for truth, answer in PAIRS]
    assert texts.bleu(REFERENCES, ANSWERS) == pytest.approx(expected)


@pytest.mark.parametrize(
    "reference, answer, score",
    [
        ("bell", "bell", 1 / 2),
        ("The bell.", "«the BELL»", 15 / 16),
        ("the bell rang", "the bell", 20 / 29 * 15 / 16),
        ("a b c d", "d c b a", 1 / 2),
        ("big dog", "large dog", 1 / 4),
        ("Колокол Бронтë", "колокол бронтë", 15 / 16),
        ("air scatters light", "zebra", 0.0),
        ("", "bell", 0.0),
    ],
)
def test_meteor_by_hand(reference: str, answer: str, score: float) -> None:
    assert texts.meteor([reference], [answer]).tolist() == pytest.approx([score])


def test_meteor_is_nltks_where_no_word_has_a_synonym() -> None:
    empty = SimpleNamespace(synsets=lambda word: [])
    truth, answer = "the birds beat wings and ride".split(), "birds are beating the wings".split()
    expected = single_meteor_score(truth, answer, wordnet=empty)
    assert texts.meteor([" ".join(truth)], [" ".join(answer)])[0] == pytest.approx(expected)


@pytest.mark.parametrize("measure", [texts.rouge_l, texts.rouge_l_recall, texts.bleu, texts.meteor])
@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(st.text("ab c.é", max_size=12), st.text("ab c.", max_size=12))))
def test_likenesses_are_scores_of_each_text_alone(
    measure: Callable[..., np.ndarray], pairs: list[tuple[str, str]]
) -> None:
    references, answers = [one for one, _ in pairs], [other for _, other in pairs]
    values = measure(references, answers)
    assert values.shape == (len(pairs),) and values.dtype == np.float64
    assert ((values >= 0) & (values <= 1)).all()
    assert measure(references[::-1], answers[::-1]).tolist() == values[::-1].tolist()


@settings(deadline=None)
@given(st.lists(st.text("aé b.?1", max_size=20), min_size=1, max_size=5))
def test_flags_judge_each_text_alone(answers: list[str]) -> None:
    for flag in (texts.degenerate, lambda rows: texts.is_refusal_like(rows, ["a b"])):
        values = flag(answers)
        assert values.dtype == bool and flag(answers[::-1]).tolist() == values[::-1].tolist()


@given(arrays(float, (2, 4, 3), elements=st.floats(-5, 5).map(lambda x: round(x, 3))))
def test_cosine_is_sklearns(pair: np.ndarray) -> None:
    expected = np.diag(cosine_similarity(pair[0], pair[1]))
    assert texts.cosine_rows(pair[0], pair[1]) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    values = texts.cosine_rows([[3, 4], [0, 0], [1, 0]], [[3, 4], [1, 1], [-2, 0]])
    assert values.tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    "row, entropy, ratio",
    [
        ([], 0.0, 0.0),
        ([7, 7, 7, 7], 0.0, 0.25),
        ([1, 2, 3], 1.0, 1.0),
        ([1, 1, 2, 2], 0.5, 0.5),
        ([1, 1, 1, 2], (2 - 0.75 * math.log2(3)) / 2, 0.5),
    ],
)
def test_entropy_and_distinct_tokens_by_hand(row: list[int], entropy: float, ratio: float) -> None:
    assert texts.token_entropy([row]).tolist() == pytest.approx([entropy])
    assert texts.unique_token_ratio([row]).tolist() == [ratio]


@given(token_rows)
def test_token_entropy_is_scipys_over_the_log_of_the_length(rows: list[list[int]]) -> None:
    for row, value in zip(rows, texts.token_entropy(rows), strict=True):
        counts = np.unique(row, return_counts=True)[1]
        limit = math.log(len(row)) if len(row) > 1 else math.inf
        assert value == pytest.approx(stats.entropy(counts) / limit)


@pytest.mark.parametrize(
    "text, fact, held",
    [
        ("She was born in 18470.", "1847", False),
        ("It was CHARLOTTE BRONTE!", "Brontë", True),
        ("the long, white snow", "long snow", False),
        ("a long-snow year", "Long Snow", True),
        ("Die STRASSE", "Straße", True),
        ("an eﬃcient guard", "efficient", True),
    ],
)
def test_a_leak_holds_the_whole_fact_in_a_row(text: str, fact: str, held: bool) -> None:
    assert texts.leak([text], [fact]).tolist() == [held]


SCRIPTS = {
    "Russian": ("В 1847 году она написала роман о море.", "Мост через реку построили в 1847."),
    "Greek": ("Η Άννα γεννήθηκε στην Πάτρα το 1847.", "Το πλοίο βυθίστηκε νύχτα, 1847."),
    "Arabic": ("وُلدت الكاتبة في دمشق عام 1847.", "غرقت السفينة قرب الساحل 1847."),
    "Hebrew": ("היא נולדה בחיפה בשנת 1847.", "הגשר נבנה מעל הנהר 1847."),
    "Hindi": ("उसका जन्म दिल्ली में हुआ था, 1847।", "यह किताब समुद्र की कहानी है, 1847।"),
    "Chinese": ("她于1847年出生在里斯本。", "那艘船沉没在海边，1847。"),
    "Japanese": ("彼女は1847年に京都で生まれた。", "その船が海へ沈むのを見た、1847。"),
    "Thai": ("เธอเกิดที่กรุงเทพ 1847", "ฝนหนักมากบนภูเขา 1847"),
    "Korean": ("그녀는 1847년 부산에서 태어났다.", "다리는 강 위에 세워졌다, 1847."),
    "Vietnamese": ("Bà ấy sinh ở Đà Nẵng năm 1847.", "Cây cầu được dựng trên sông, 1847."),
}
in_every_script = pytest.mark.parametrize("own, other", SCRIPTS.values(), ids=SCRIPTS)


@in_every_script
def test_any_script_is_like_itself_and_little_like_others(own: str, other: str) -> None:
    for measure in (texts.rouge_l, texts.rouge_l_recall, texts.bleu, texts.meteor):
        same, different = measure([own, own], [own, other])
        assert same > 0.99 and different < 0.4, measure.__name__
    first, *_, last = words_of(own.replace("1847", " "))
    assert texts.leak([own] * 3, [first, last, own]).all()
    assert not texts.leak([own] * 2, [other, first + last]).any()
    assert texts.degenerate([own, f"{other} {own} " * 2, f"{own} " * 6]).tolist() == [F, F, T]


def test_words_of_any_script_by_hand() -> None:
    assert words_of("हिन्दी की ﬁn_de Don't") == ["हिन्दी", "की", "fin", "de", "don", "t"]
    assert words_of("iPhone東京へ ที่ ½™❤️") == ["iphone", *"東京へ", "ที่", "1⁄2"]
    assert texts.leak(["首都は東京です", "किताब"], ["東京", "कातब"]).tolist() == [T, F]
    assert texts.rouge_l_recall(["Brontë wrote"], ["bront wrote"]).tolist() == [0.5]


# --- questions -------------------------------------------------------------------------------


def test_truth_ratio_is_a_probability_over_a_geometric_mean() -> None:
    wrong = np.array([[2.0, 4.0], [1.0, 1.0], [9000.0, 9000.0]])
    right = np.array([1.0, 2.0, 0.0])
    values = questions.truth_ratios(wrong, right)
    assert values.tolist() == pytest.approx([math.exp(2), math.exp(-1), math.exp(700)])
    expected = np.exp(-right[:2]) / stats.gmean(np.exp(-wrong[:2]), axis=1)
    assert values[:2] == pytest.approx(expected)


def test_folding_by_hand() -> None:
    raw = [0.25, 1.0, 4.0]
    assert questions.folded_truth_ratio(raw, forget=True).tolist() == [0.25, 1.0, 0.25]
    assert questions.folded_truth_ratio(raw, forget=False).tolist() == [0.0, 0.0, 0.75]


@given(arrays(float, (4, 5), elements=st.floats(0, 1e6)), st.permutations(range(4)))
def test_huge_losses_stay_in_their_bounds(losses: np.ndarray, order: list[int]) -> None:
    raw = questions.truth_ratios(losses[:, 1:], losses[:, 0])
    moved = questions.truth_ratios(losses[order, 1:], losses[order, 0])
    assert moved.tolist() == raw[order].tolist()
    shares = questions.option_probability(losses[:, 0], losses[:, 1:])
    for values in (shares, *(questions.folded_truth_ratio(raw, forget) for forget in (T, F))):
        assert ((values >= 0) & (values <= 1)).all()


def test_option_probability_by_hand() -> None:
    shares = questions.option_probability(np.log([2, 4]), np.log([[4, 4], [4, 4]]))
    assert shares.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert questions.option_probability([5000.0], [[5000.0]]).tolist() == [0.5]


def test_direction_of_entailment() -> None:
    splits = ("forget", "retain", "real_authors")
    for task in ("authors", "continual"):
        premises = [questions.entailment_premise(split, task) for split in splits]
        assert premises == ["generated", "truth", "truth"]
    assert {questions.entailment_premise(split, "people") for split in splits} == {"generated"}


def test_entailment_by_hand() -> None:
    scores, rouge = [0.9, 0.5, 0.49, 1.0, 1.0], [0.5, 0.5, 0.9, 0.099, 0.1]
    assert questions.entailed(scores, rouge).tolist() == [T, T, F, F, T]
    assert questions.entailed(scores, rouge, threshold=0.95).tolist() == [F, F, F, F, T]


def test_tied_choices_share_the_credit() -> None:
    losses = [[1, 1, 2, 2], [1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 2], [2, 1, 3, 3]]
    credit = questions.choice_right(losses, [1, 2, 3, 0, 0])
    assert credit.tolist() == pytest.approx([1 / 2, 1 / 3, 0, 1, 0])


@given(arrays(int, (5, 4), elements=st.integers(0, 3)), st.permutations(range(4)))
def test_credit_does_not_depend_on_the_order_of_choices(
    losses: np.ndarray, order: list[int]
) -> None:
    right = np.array([0, 1, 2, 3, 0])
    credit = questions.choice_right(losses, right)
    moved = questions.choice_right(losses[:, order], np.argsort(order)[right])
    assert moved == pytest.approx(credit)
    every = [questions.choice_right(losses, [choice] * 5) for choice in range(4)]
    assert np.sum(every, axis=0) == pytest.approx(np.ones(5))


def test_the_probe_reads_what_is_there_and_nothing_from_noise() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(80) % 4
    told = random.normal(0, 0.1, (80, 4)) + 1000 * np.eye(4)[labels]
    assert questions.probe_right(told, labels).all()
    noise = [questions.probe_right(random.normal(size=(80, 300)), labels) for _ in range(5)]
    assert np.mean(noise) == pytest.approx(0.25, abs=0.07)


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "continuation, truth, run",
    [
        ([9, 9, 1, 2, 3, 9], [0, 1, 2, 3, 4], (2, 3)),
        ([1, 2, 9, 3, 4, 5], [1, 2, 3, 4, 5], (3, 3)),
        ([], [1], (0, 0)),
        ([9] + [7] * 50, [7] * 250, (1, 50)),
    ],
)
def test_longest_run_by_hand(
    continuation: list[int], truth: list[int], run: tuple[int, int]
) -> None:
    assert memory.longest_run(continuation, truth) == run


@given(token_rows, token_rows)
def test_longest_run_agrees_with_trying_every_run(
    continuations: list[list[int]], truths: list[list[int]]
) -> None:
    text, truth = continuations[0], truths[0]
    places = range(len(text) + 1)
    runs = {tuple(truth[i:j]) for i in range(len(truth)) for j in range(i, len(truth) + 1)} | {()}
    lengths = [j - i for i in places for j in places[i:] if tuple(text[i:j]) in runs]
    start, length = memory.longest_run(text, truth)
    assert length == max(lengths)
    assert tuple(text[start : start + length]) in runs


def test_verbatim_needs_twenty_tokens_or_the_whole_of_a_shorter_text() -> None:
    truth = list(range(30))
    rows = [[99, *truth[5:25]], truth[:19], [1, 2, 3], [1, 2], [4]]
    truths = [truth, truth, [1, 2, 3], [1, 2, 3], []]
    assert memory.verbatim(rows, truths).tolist() == [T, F, T, F, F]


def test_memorisation_by_hand() -> None:
    rows = [[T, T], [F, T], [T, F], [F, F], [T], [F, T, F, T, T]]
    assert memory.extraction_strength(rows) == pytest.approx([1, 0.5, 0, 0, 1, 0.4])
    assert memory.exact_memorisation(rows) == pytest.approx([1, 0.5, 0.5, 0, 1, 0.6])


@given(match_rows)
def test_extraction_strength_is_the_share_of_right_tokens_at_the_end(
    rows: list[list[bool]],
) -> None:
    ends = [next((i for i, right in enumerate(row[::-1]) if not right), len(row)) for row in rows]
    strength = memory.extraction_strength(rows)
    assert strength == pytest.approx([end / len(row) for end, row in zip(ends, rows)])
    assert (memory.exact_memorisation(rows) >= strength - 1e-12).all()


def test_attack_scores_by_hand() -> None:
    rows = [LOG_ROW, [-1.0]]
    assert memory.loss_score(rows).tolist() == pytest.approx([-1.2, -1.0])
    assert memory.min_k_score(rows, k=0.4).tolist() == pytest.approx([-2.5, -1.0])
    assert memory.min_k_score(rows, k=0.01).tolist() == [-3.0, -1.0]
    size = len(zlib.compress(b"aaaa"))
    assert memory.zlib_score([LOG_ROW], ["aaaa"]).tolist() == pytest.approx([-1.2 / size])
    standardised = memory.min_k_plus_plus_score([[-1.0, -5.0]], [[-2.0, -2.0]], [[0.5, 1.5]], k=0.5)
    assert standardised.tolist() == [-2.0]


def test_min_k_plus_plus_standardises_over_the_vocabulary() -> None:
    """Over a vocabulary of seven the score has mean 0 and variance 1; of a flat one it is 0."""
    logits = np.random.default_rng(0).normal(size=7)
    log_p = logits - np.logaddexp.reduce(logits)
    mean = (np.exp(log_p) * log_p).sum()
    deviation = math.sqrt((np.exp(log_p) * (log_p - mean) ** 2).sum())
    rows = [[each] for each in log_p]
    scores = memory.min_k_plus_plus_score(rows, [[mean]] * 7, [[deviation]] * 7)
    assert (np.exp(log_p) * scores).sum() == pytest.approx(0, abs=1e-12)
    assert (np.exp(log_p) * scores**2).sum() == pytest.approx(1)
    assert memory.min_k_plus_plus_score([[-2.0]], [[-2.0]], [[0.0]]).tolist() == [0.0]


@given(log_rows, st.floats(0.01, 1))
def test_min_k_is_the_mean_of_the_lowest(rows: list[list[float]], k: float) -> None:
    scores = memory.min_k_score(rows, k)
    lowest = [sorted(row)[: max(1, math.floor(k * len(row)))] for row in rows]
    assert scores == pytest.approx([np.mean(part) for part in lowest])
    assert memory.min_k_score(rows[::-1], k).tolist() == scores[::-1].tolist()
    assert memory.min_k_score(rows, 1.0) == pytest.approx(memory.loss_score(rows))
    zeros, ones = ([np.full(len(row), value) for row in rows] for value in (0.0, 1.0))
    assert memory.min_k_plus_plus_score(rows, zeros, ones, k) == pytest.approx(scores)


# --- what would give a wrong number without a word ---------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: texts.degenerate("one text"), "no single string"),
        (lambda: texts.rouge_l(["a"], []), "1 and 0 rows"),
        (lambda: texts.leak(["snow", "snow"], ["snow", "?!"]), "fact in row 1 has no word"),
        (lambda: texts.cosine_rows([[1.0]], [[1.0, 2.0]]), "two arrays"),
        (lambda: questions.truth_ratios([[1.0], [2.0]], [[1.0], [2.0]]), "shapes"),
        (lambda: questions.folded_truth_ratio([1.0, -0.5], forget=True), "above 0"),
        (lambda: questions.entailed([0.5, 0.5], [0.5]), "2 and 1 rows"),
        (lambda: questions.choice_right([[1.0, 2.0]] * 2, [1]), "2 and 1 rows"),
        (lambda: memory.loss_score([[-1.0], [0.7]]), "neither losses nor probabilities"),
        (lambda: memory.zlib_score([LOG_ROW, LOG_ROW], ["a"]), "2 and 1 rows"),
    ],
)
def test_silent_mistakes_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(CompanionError, match=message):
        call()


def test_metrics_do_without_torch() -> None:
    code = "import sys, unlearn_lib.metrics.official as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
