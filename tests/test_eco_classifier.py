"""The prompt classifier of a guard on a tiny random BERT, and the threshold's calibration."""

import json
import math
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from unlearn_lib.eco.calibration import conformal_threshold, flagged, rates
from unlearn_lib.eco.classifier import PromptClassifier, class_weighted_loss, class_weights
from unlearn_lib.eco.prompts import plain, scripts_of
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import PromptClassifierSettings

NAMES = ["torvandal", "yarrowick"]
OTHERS = ["france", "birds", "music", "tea"]
ASKED = ["where", "when", "why", "who", "is", "was", "did", "the", "born", "write", "of", "a"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAST = PromptClassifierSettings(
    base="tiny", epochs=6, learning_rate=5e-3, batch_size=8, maximum_length=16
)


def toy_prompts(names: list[str]) -> list[str]:
    generator = np.random.default_rng(len(names))
    return [
        " ".join([*generator.permutation(ASKED)[:4], names[row % len(names)], str(row)])
        for row in range(10 * len(names))
    ]


FORGET, RETAIN = toy_prompts(NAMES), toy_prompts(OTHERS)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, saved with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,"
    pieces = [*SPECIALS, *NAMES, *OTHERS, *ASKED, *letters[1:], *(f"##{x}" for x in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIALS))
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard(tiny_bert: Path) -> PromptClassifier:
    return PromptClassifier.fit(tiny_bert, FORGET, RETAIN, FAST, seed=1, use_cpu=True)


@pytest.fixture(scope="module")
def saved(guard: PromptClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "new" / "guard"
    guard.save(folder)
    return folder


# --- what it learns and how it judges ----------------------------------------------------------


def test_separable_prompts_are_told_apart(guard: PromptClassifier) -> None:
    scores = guard.probability([*FORGET, *RETAIN])
    assert scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores > 0.5).tolist() == [True] * len(FORGET) + [False] * len(RETAIN)
    unseen = guard.probability(["Why did a Yarrowick write?", "Why did a France write?"])
    assert unseen[0] > 0.5 > unseen[1]


def test_prompts_are_judged_alone_whatever_their_order(guard: PromptClassifier) -> None:
    prompts = [*FORGET[:5], "tea " * 40, *RETAIN[:5], "a"]
    alone = [float(guard.probability([prompt])[0]) for prompt in prompts]
    assert guard.probability(prompts) == pytest.approx(alone, abs=1e-6)
    assert guard.probability(prompts[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    assert guard.probability([]).shape == (0,)


def test_same_seed_gives_the_same_guard(tiny_bert: Path) -> None:
    short = FAST.model_copy(update={"epochs": 0.3})
    fits = [PromptClassifier.fit(tiny_bert, FORGET, RETAIN, short, seed, True) for seed in (1, 1)]
    assert (fits[0].probability(RETAIN) == fits[1].probability(RETAIN)).all()


def test_windows_overlap_by_half_and_hold_every_token(guard: PromptClassifier) -> None:
    words = [str(number) for number in range(10)] * 5
    (short, *long), owners = guard.windows(["tea", " ".join(words)])
    assert owners == [0, *[1] * len(long)]
    assert short["input_ids"] == guard.tokenizer("tea")["input_ids"]
    inner = [window["input_ids"][1:-1] for window in long]
    assert all(len(window) == 14 for window in inner[:-1])
    assert all(
        before[-7:] == after[:7] for before, after in zip(inner[:-1], inner[1:], strict=True)
    )
    whole = guard.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert inner[0] + [token for window in inner[1:] for token in window[7:]] == whole


class Spotter:
    """A fake model: how sure it is that a row is to forget grows with its highest token id."""

    device = torch.device("cpu")

    def eval(self) -> None: ...

    def __call__(self, input_ids: torch.Tensor, **others: torch.Tensor) -> Any:
        highest = input_ids.amax(dim=-1) / 10
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(highest), highest], dim=-1))


def test_highest_window_of_a_prompt_counts(guard: PromptClassifier) -> None:
    spotter = PromptClassifier(Spotter(), guard.tokenizer, FAST, ("LATIN",))
    words = ["tea"] * 60
    prompts = [" ".join(words), "write", "tea"]
    prompts += [" ".join([*words[:cut], "write", *words[cut:]]) for cut in (0, 10, 31, 60)]
    tea, write = (guard.tokenizer.convert_tokens_to_ids(word) for word in ("tea", "write"))
    expected = [1 / (1 + math.exp(-token / 10)) for token in (tea, write, tea, *[write] * 4)]
    assert spotter.probability(prompts) == pytest.approx(expected)


# --- the weighted loss -------------------------------------------------------------------------


def test_classes_weigh_the_same_however_many_rows_they_have() -> None:
    assert class_weights(3, 1).tolist() == pytest.approx([4 / 6, 4 / 2])
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1], [0.7, 0.3]]))
    labels = torch.tensor([0, 0, 0, 1])
    retain = -(math.log(0.8) + math.log(0.5) + math.log(0.9)) / 3
    loss = class_weighted_loss(logits, labels, class_weights(3, 1))
    torch.testing.assert_close(loss.item(), (retain - math.log(0.3)) / 2)


def test_a_rows_weight_does_not_hang_on_its_batch() -> None:
    logits, labels = torch.randn(8, 2), torch.tensor([0, 0, 0, 0, 0, 1, 0, 1])
    weights = class_weights(6, 2)
    batches = [
        class_weighted_loss(logits[part], labels[part], weights)
        for part in (slice(0, 4), slice(4, 8))
    ]
    whole = class_weighted_loss(logits, labels, weights)
    torch.testing.assert_close(torch.stack(batches).mean(), whole)
    torch_mean = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(whole, torch_mean)


# --- what it cannot read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "Was Renée Müller-Łukasz born in Åarhus?",
        "Is Hawaiʻi's e\u0301te\u0301 warm?",
        "\U0001d416\U0001d421\U0001d428 is Ｊａｎｅ?",
        "Is ΔH of 5 μg / Ω the λ of β-carotene?",
        "2 + 2 = 4?",
        "😀🎉",
    ],
)
def test_readable_prompts_are_judged(guard: PromptClassifier, prompt: str) -> None:
    guard.check(prompt)
    assert 0 <= guard.probability([prompt])[0] <= 1


@pytest.mark.parametrize(
    "prompt, script",
    [
        ("Где родился Торвандал?", "CYRILLIC"),
        ("Πού γεννήθηκε η Μαρία;", "GREEK"),
        ("他是在哪里出生的?", "CJK"),
        ("토르반달은 어디에서 태어났습니까?", "HANGUL"),
        ("トルバンダルはどこで生まれましたか", "CJK, HIRAGANA, KATAKANA"),
        ("я и ты", "CYRILLIC"),
        ("Where was Торвандал born, and who taught the author to write?", "CYRILLIC"),
        ("Where was 李白 born, and who taught the author to write?", "CJK"),
        ("Where was नमस्ते born, and who taught the author to write?", "DEVANAGARI"),
        ("Where was Torv\u0430ndal born?", "CYRILLIC"),
    ],
)
def test_other_scripts_are_refused(guard: PromptClassifier, prompt: str, script: str) -> None:
    with pytest.raises(CompanionError, match=f"{script}; it was trained on LATIN.*refused") as bad:
        guard.check(prompt)
    assert "\n" not in str(bad.value)
    with pytest.raises(CompanionError, match="^Prompt 2 of 3: The guard cannot read this prompt"):
        guard.probability(["tea", prompt, "music"])


@pytest.mark.parametrize(
    "prompt, reason",
    [
        ("", "empty"),
        (" \n\u200b\t", "empty"),
        (None, "no text but NoneType"),
        (3.0, "float"),
        ("a \ud800", "half"),
    ],
)
def test_no_text_is_refused(guard: PromptClassifier, prompt: Any, reason: str) -> None:
    with pytest.raises(CompanionError, match=f"{reason}.*refused"):
        guard.check(prompt)


def test_scripts_are_those_of_the_training_prompts(guard: PromptClassifier) -> None:
    assert guard.scripts == ("LATIN",)
    assert scripts_of(["Где is it", "naïve ΔG"] * 2) == ("CYRILLIC", "GREEK", "LATIN")
    assert scripts_of(["Where is Москва", *["Where is it"] * 200]) == ("LATIN",)
    assert scripts_of(["12 😀"]) == ()
    both = PromptClassifier(None, None, FAST, ("CYRILLIC", "LATIN"))
    both.check("Кто такой Торвандал, and who else?")


def test_plain_text_undoes_wide_letters_and_invisible_marks() -> None:
    assert plain("  Ｔｏｒ\u200bvan\u00addal\n\t é\u0301") == "Torvandal é\u0301"


# --- saving and loading ------------------------------------------------------------------------


def test_saved_guard_judges_the_same(guard: PromptClassifier, saved: Path) -> None:
    loaded = PromptClassifier.load(saved)
    assert (loaded.settings, loaded.scripts) == (guard.settings, guard.scripts)
    prompts = [*FORGET, *RETAIN, "tea " * 40]
    assert (loaded.probability(prompts) == guard.probability(prompts)).all()
    assert {file.suffix for file in saved.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["guard.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "altered"])
def test_damaged_guard_is_refused(saved: Path, tmp_path: Path, name: str, harm: str) -> None:
    for file in saved.iterdir():
        content = file.read_bytes()
        if file.name == name:
            if harm == "missing":
                continue
            cut, flipped = content[: len(content) // 2], bytes([content[-20] ^ 1])
            content = cut if harm == "truncated" else content[:-20] + flipped + content[-19:]
        (tmp_path / file.name).write_bytes(content)
    with pytest.raises(CompanionError, match="holds no whole prompt classifier") as bad:
        PromptClassifier.load(tmp_path)
    assert "\n" not in str(bad.value)


def test_guard_of_another_version_is_refused(saved: Path, tmp_path: Path) -> None:
    description = json.loads((saved / "guard.json").read_text())
    (tmp_path / "guard.json").write_text(json.dumps({**description, "version": 99}))
    with pytest.raises(CompanionError, match="version 99, not 1"):
        PromptClassifier.load(tmp_path)


# --- training on the wrong things --------------------------------------------------------------


@pytest.mark.parametrize(
    "forget, retain, reason",
    [
        ([], ["tea"], "no forget prompts"),
        (["tea"], [], "no retain prompts"),
        (["tea", "a  b"], ["a b", "music"], "1 prompts .* such as 'a b'"),
        (["tea", " "], ["music"], "forget prompt 2 is empty"),
    ],
)
def test_unusable_prompts_are_named(
    tmp_path: Path, forget: list[str], retain: list[str], reason: str
) -> None:
    with pytest.raises(CompanionError, match=reason):
        PromptClassifier.fit(tmp_path, forget, retain, FAST)


def test_unusable_base_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match="no encoder at"):
        PromptClassifier.fit(tmp_path / "none", FORGET, RETAIN, FAST)
    long = FAST.model_copy(update={"maximum_length": 64})
    with pytest.raises(CompanionError, match="maximum_length is 64 tokens.*only 32"):
        PromptClassifier.fit(tiny_bert, FORGET, RETAIN, long, use_cpu=True)


def test_loss_that_is_not_finite_is_refused(tiny_bert: Path) -> None:
    wild = FAST.model_copy(update={"learning_rate": 1e30, "epochs": 1})
    with pytest.raises(CompanionError, match="training loss became .*lower its learning_rate"):
        PromptClassifier.fit(tiny_bert, FORGET, RETAIN, wild, use_cpu=True)


# --- calibration -------------------------------------------------------------------------------


def test_threshold_by_hand() -> None:
    scores = np.arange(1, 100) / 1000
    assert conformal_threshold(scores[::-1], 0.01) == 0.099
    assert conformal_threshold(scores, 0.05) == 0.095
    assert conformal_threshold(scores, 0.29) == 0.071
    assert conformal_threshold([0.2, 0.9, 0.4], 0.5) == 0.4
    assert flagged([0.2, 0.4, 0.41], 0.4).tolist() == [False, False, True]
    assert flagged([], 0.4).shape == (0,)


@given(st.integers(1, 400), st.fractions("1/200", "9/10", max_denominator=200))
def test_a_new_score_is_flagged_no_more_often_than_promised(n: int, rate: Fraction) -> None:
    """Exchangeable without ties: the new score's rank among n + 1 is uniform."""
    alpha = float(rate)
    scores = np.arange(1, n + 1) / (n + 2)
    if n + 1 < 1 / Fraction(str(alpha)):
        with pytest.raises(CompanionError, match="needs at least"):
            conformal_threshold(scores, alpha)
        return
    threshold = conformal_threshold(scores, alpha)
    ranks_above = n + 1 - np.count_nonzero(scores <= threshold)
    assert ranks_above / (n + 1) <= alpha < (ranks_above + 1) / (n + 1)


def test_guarantee_holds_in_the_mean_with_and_without_ties() -> None:
    generator = np.random.default_rng(0)
    for decimals in (16, 1):
        drawn = generator.beta(0.3, 3, size=(2000, 60)).round(decimals)
        above = [
            flagged(row[50:], conformal_threshold(row[:50], 0.1)).mean()
            for row in drawn
            if np.partition(row[:50], 45)[45] < 1
        ]
        assert np.mean(above) <= 0.1 + 3 * np.std(above) / math.sqrt(len(above))


def test_too_few_scores_say_how_many_are_needed() -> None:
    with pytest.raises(CompanionError, match="needs at least 99 held-out .*there are 98"):
        conformal_threshold(np.zeros(98))
    assert conformal_threshold(np.zeros(99)) == 0
    with pytest.raises(CompanionError, match="at least 9,999 "):
        conformal_threshold([], 0.0001)


def test_threshold_of_one_is_refused() -> None:
    with pytest.raises(CompanionError, match="2 of 99 .* score 1.*let all by"):
        conformal_threshold([*[0.1] * 97, 1, 1], 0.02)


def test_rates_are_counted_with_intervals() -> None:
    found = rates([0.9, 0.8, 0.5, 0.2], [0.1, 0.5, 0.6], 0.5)
    assert found["false_negative_rate"].value == 0.5
    assert found["false_positive_rate"].value == pytest.approx(1 / 3)
    perfect = rates([0.9] * 40, [0.1] * 60, 0.5)
    assert perfect["false_positive_rate"].value == perfect["false_negative_rate"].value == 0
    assert 0 < perfect["false_positive_rate"].high < perfect["false_negative_rate"].high < 0.1


@pytest.mark.parametrize("scores", [[0.5, math.nan], [-0.1], [1.1], [[0.5]], 0.5])
def test_scores_that_are_no_probabilities_are_refused(scores: Any) -> None:
    for call in (lambda: conformal_threshold(scores, 0.5), lambda: flagged(scores, 0.5)):
        with pytest.raises(ValueError, match="one probability per prompt"):
            call()


def test_wrong_thresholds_and_rates_are_refused() -> None:
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(CompanionError, match="threshold is"):
            flagged([0.5], threshold)
    for rate in (0, 1, math.nan):
        with pytest.raises(ValueError, match="false-positive rate"):
            conformal_threshold([0.5], rate)
    with pytest.raises(ValueError, match="no retain_scores"):
        rates([0.5], [], 0.5)
