"""The text classifier on a tiny random BERT: two classes and several labels."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from unlearn_lib.settings import TextClassifierSettings
from unlearn_lib.text_classifier import TextClassifier, class_weighted_loss, plain
from unlearn_lib.util import CompanionError

NAMES = ["torvandal", "yarrowick"]
OTHERS = ["france", "birds", "music", "tea"]
ASKED = ["where", "when", "why", "who", "is", "was", "did", "the", "born", "write", "of", "a"]
FAST = TextClassifierSettings(
    base="tiny", epochs=6, learning_rate=5e-3, batch_size=8, maximum_length=16
)


def write_bert(folder: Path, words: list[str], labels: tuple[str, ...] = (), **sizes: Any) -> Path:
    """Save a BERT of random weights with a WordPiece tokenizer; labels: with a head for them."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,"
    pieces = dict.fromkeys([*specials, *words, *letters, *(f"##{letter}" for letter in letters)])
    BertTokenizer({piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 32, "vocab_size": len(pieces)}
    head: dict[str, Any] = {"id2label": dict(enumerate(labels))} if labels else {}
    torch.manual_seed(0)
    config = BertConfig(**{**shape, "initializer_range": 0.2, **head, **sizes})
    model = BertForSequenceClassification(config)
    (model if labels else model.bert).save_pretrained(folder)
    return folder


def toy_texts(names: list[str]) -> list[str]:
    generator = np.random.default_rng(len(names))
    return [
        " ".join([*generator.permutation(ASKED)[:4], names[row % len(names)], str(row)])
        for row in range(10 * len(names))
    ]


TEXTS = [*toy_texts(NAMES), *toy_texts(OTHERS)]
TRUTH = np.arange(len(TEXTS)) < 20
LABELS = np.stack([TRUTH, np.array(["yarrowick" in text for text in TEXTS])], axis=1)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("tiny_bert"), [*NAMES, *OTHERS, *ASKED])


@pytest.fixture(scope="module")
def two_classes(tiny_bert: Path) -> TextClassifier:
    return TextClassifier.fit(tiny_bert, TEXTS, TRUTH, FAST, seed=1, use_cpu=True)


@pytest.fixture(scope="module")
def multi_label(tiny_bert: Path) -> TextClassifier:
    longer = FAST.model_copy(update={"epochs": 15})
    return TextClassifier.fit(tiny_bert, TEXTS, LABELS, longer, seed=1, use_cpu=True)


@pytest.fixture(params=["two_classes", "multi_label"])
def classifier(request: pytest.FixtureRequest) -> TextClassifier:
    return request.getfixturevalue(request.param)


def test_with_several_gpus_the_trainer_gets_one(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two its DataParallel would lose rows."""

    def trainer(model: Any, arguments: Any, **_: Any) -> Any:
        raise KeyError(arguments._n_gpu)

    two = SimpleNamespace(n_gpu=2, _n_gpu=2)
    faked = {"TrainingArguments": lambda **_: two, "Trainer": trainer}
    library = SimpleNamespace(AutoTokenizer=hf.AutoTokenizer, set_seed=hf.set_seed, **faked)
    monkeypatch.setattr("unlearn_lib.text_classifier.hf", library)
    with pytest.raises(KeyError, match="1"):
        TextClassifier.fit(tiny_bert, TEXTS, TRUTH, FAST, use_cpu=True)


def test_separable_texts_are_told_apart(classifier: TextClassifier) -> None:
    scores = classifier.probability(TEXTS)
    assert scores.dtype == np.float64 and ((scores >= 0) & (scores <= 1)).all()
    assert (scores > 0.5).tolist() == TRUTH.tolist()
    unseen = classifier.probability(["Why did a Yarrowick write?", "Why did a France write?"])
    assert unseen[0] > 0.5 > unseen[1]


def test_texts_are_judged_alone_whatever_their_order(classifier: TextClassifier) -> None:
    texts = [*TEXTS[:5], "tea " * 40, *TEXTS[-5:], "a"]
    alone = [float(classifier.probability([text])[0]) for text in texts]
    assert classifier.probability(texts) == pytest.approx(alone, abs=1e-6)
    assert classifier.probability(texts[::-1]) == pytest.approx(alone[::-1], abs=1e-6)
    assert classifier.probability([]).shape == (0,)


def test_probability_is_the_second_class_or_the_highest_sigmoid(
    two_classes: TextClassifier, multi_label: TextClassifier
) -> None:
    for classifier in (two_classes, multi_label):
        batch = classifier.tokenizer(TEXTS[0], return_tensors="pt")
        with torch.no_grad():
            logits = classifier.model(**batch).logits[0]
        expected = logits.softmax(0)[1] if classifier is two_classes else logits.sigmoid().max()
        assert classifier.probability(TEXTS[:1]) == pytest.approx(float(expected), abs=1e-6)


def test_the_seed_decides_the_training(tiny_bert: Path) -> None:
    short = FAST.model_copy(update={"epochs": 0.3})
    fits = [TextClassifier.fit(tiny_bert, TEXTS, TRUTH, short, seed, True) for seed in (1, 1)]
    first, again = (classifier.probability(TEXTS) for classifier in fits)
    assert (first == again).all()


def test_windows_overlap_by_half_and_hold_every_token(two_classes: TextClassifier) -> None:
    long = " ".join(str(number) for number in range(10) for _ in range(5))
    windows, owners = two_classes.windows(["tea", long])
    assert owners == [0, *[1] * (len(windows) - 1)]
    inner = [window["input_ids"][1:-1] for window in windows[1:]]
    assert all(len(window) == 14 for window in inner[:-1])
    assert all(before[-7:] == after[:7] for before, after in zip(inner, inner[1:]))
    whole = two_classes.tokenizer(long, add_special_tokens=False)["input_ids"]
    assert inner[0] + [token for window in inner[1:] for token in window[7:]] == whole


def test_the_highest_window_of_a_text_counts(classifier: TextClassifier) -> None:
    text = " ".join([*["tea"] * 20, "why did yarrowick write", *["music"] * 20])
    windows, _ = classifier.windows([text])
    assert len(windows) > 3
    alone = [classifier.tokenizer.decode(window["input_ids"][1:-1]) for window in windows]
    expected = max(float(classifier.probability([window])[0]) for window in alone)
    assert classifier.probability([text]) == pytest.approx(expected, abs=1e-6)


def test_classes_weigh_the_same_however_many_rows_they_have() -> None:
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1], [0.7, 0.3]]))
    truth = np.array([0, 0, 0, 1])
    loss = class_weighted_loss(truth)
    whole = loss(SimpleNamespace(logits=logits), torch.from_numpy(truth))
    first = -(math.log(0.8) + math.log(0.5) + math.log(0.9)) / 3
    assert float(whole) == pytest.approx((first - math.log(0.3)) / 2)
    halves = [
        loss(SimpleNamespace(logits=logits[part]), torch.from_numpy(truth[part]))
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_plain_text_undoes_wide_letters_and_invisible_marks() -> None:
    assert plain("  Ｔｏｒ\u200bvan\u00addal\n\t é\u0301") == "Torvandal é\u0301"


def test_a_saved_classifier_judges_the_same(classifier: TextClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "new")
    loaded = TextClassifier.load(tmp_path / "new")
    texts = [*TEXTS, "tea " * 40]
    assert loaded.settings == classifier.settings
    assert (loaded.probability(texts) == classifier.probability(texts)).all()
    assert {file.suffix for file in (tmp_path / "new").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("harm", ["missing", "truncated", "headless"])
def test_a_damaged_classifier_is_refused(
    two_classes: TextClassifier, tiny_bert: Path, tmp_path: Path, harm: str
) -> None:
    two_classes.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = (tiny_bert if harm == "headless" else tmp_path) / "model.safetensors"
    damaged = content.read_bytes()
    weights.unlink()
    if harm != "missing":
        weights.write_bytes(damaged[:-8] if harm == "truncated" else damaged)
    with pytest.raises(CompanionError, match="no trained model"):
        TextClassifier.load(tmp_path)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"maximum_length": 64}, "base reads 32 tokens: lower 'maximum_length'"),
        ({"learning_rate": 1e30, "epochs": 1}, "training loss became .*lower its learning_rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tiny_bert: Path, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CompanionError, match=reason):
        settings = FAST.model_copy(update=changed)
        TextClassifier.fit(tiny_bert, TEXTS, TRUTH, settings, use_cpu=True)


def test_it_moves_to_a_device_and_back_without_another_number(
    two_classes: TextClassifier, tmp_path: Path
) -> None:
    before = two_classes.probability(TEXTS)
    two_classes.to(torch.device("cpu"))
    assert two_classes.model.device == torch.device("cpu")
    assert np.array_equal(two_classes.probability(TEXTS), before)
    two_classes.save(str(tmp_path))
    loaded = TextClassifier.load(str(tmp_path))
    loaded.to(torch.device("meta"))
    assert loaded.model.device == torch.device("meta")
