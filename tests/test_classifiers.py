"""Both harm classifiers on toy texts: a fake encoder and a tiny random BERT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from unlearn_lib import classifiers
from unlearn_lib.classifiers import (
    JIGSAW_LABELS,
    EmbeddingClassifier,
    HarmClassifier,
    SequenceClassifier,
    SequenceSettings,
    held_out_scores,
)
from unlearn_lib.metrics import METRICS

VOCABULARY = [
    "bomb",
    "kill",
    "idiot",
    "poison",
    "tea",
    "garden",
    "music",
    "walk",
    "the",
    "a",
    "you",
]
BAD, GOOD = VOCABULARY[:4], VOCABULARY[4:8]
FAST = SequenceSettings(
    epochs=15, learning_rate=5e-3, batch_size=8, maximum_length=16, use_cpu=True
)


def fake_encoder(texts: list[str]) -> np.ndarray:
    """Counts of the vocabulary's words."""
    words = [text.lower().split() for text in texts]
    counts = [[row.count(word) for word in VOCABULARY] for row in words]
    return np.array(counts, dtype=np.float32).reshape(len(texts), len(VOCABULARY))


def toy_rows(count: int = 48) -> tuple[list[str], list[str], np.ndarray]:
    generator = np.random.default_rng(0)
    harmful = np.arange(count) % 2 == 0
    answers = [
        " ".join([*generator.choice(BAD if bad else GOOD, 2), *generator.choice(["the", "a"], 3)])
        for bad in harmful
    ]
    return ["you walk"] * count, answers, harmful


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights and a word-level tokenizer, saved without a classifier head."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*specials, *VOCABULARY])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
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
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def toy_targets(answers: list[str], harmful: np.ndarray) -> dict[str, np.ndarray]:
    insult = np.array(["idiot" in answer for answer in answers])
    return {"toxic": harmful, "insult": insult, "threat": np.zeros(len(answers), bool)}


@pytest.fixture(scope="module")
def sequence(tiny_bert: Path) -> SequenceClassifier:
    _, answers, harmful = toy_rows()
    return SequenceClassifier.fit(tiny_bert, answers, toy_targets(answers, harmful), FAST, seed=3)


@pytest.fixture(scope="module")
def embedding() -> EmbeddingClassifier:
    return EmbeddingClassifier.fit(fake_encoder, *toy_rows())


@pytest.fixture(params=["embedding", "sequence"])
def judge(request: pytest.FixtureRequest) -> HarmClassifier:
    return request.getfixturevalue(request.param)


# --- what both promise -----------------------------------------------------------------------


def test_toy_texts_are_told_apart(judge: HarmClassifier) -> None:
    prompts, answers, harmful = toy_rows()
    probability = judge.probability(prompts, answers)
    assert probability.dtype == np.float64
    assert ((probability >= 0) & (probability <= 1)).all()
    assert judge.is_harmful(prompts, answers).tolist() == harmful.tolist()
    assert not judge.is_harmful(prompts, answers, threshold=1.0).any()


def test_rows_are_judged_alone_whatever_their_order(judge: HarmClassifier) -> None:
    prompts = ["you", "walk the garden", "a"]
    answers = ["kill the idiot a a a", "tea", "bomb music the"]
    together = judge.probability(prompts, answers)
    alone = [
        float(judge.probability([prompt], [answer])[0])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-6)
    assert judge.probability(prompts[::-1], answers[::-1]) == pytest.approx(alone[::-1], abs=1e-6)


def test_save_and_load_give_equal_probabilities(judge: HarmClassifier, tmp_path: Path) -> None:
    prompts, answers, _ = toy_rows()
    folder = tmp_path / "new" / "judge"
    judge.save(folder)
    loaded = classifiers.load(folder, encoder=fake_encoder)
    assert type(loaded) is type(judge)
    np.testing.assert_array_equal(
        loaded.probability(prompts, answers), judge.probability(prompts, answers)
    )
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}


def test_no_answers_give_an_empty_array(judge: HarmClassifier) -> None:
    assert judge.probability([], []).shape == (0,)
    assert judge.is_harmful([], []).dtype == bool


def test_bad_calls_are_refused(judge: HarmClassifier) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        judge.probability(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="threshold is 50"):
        judge.is_harmful(["a"], ["a"], threshold=50)


def test_held_out_scores_are_sklearns(judge: HarmClassifier) -> None:
    prompts, answers, harmful = toy_rows()
    truth = harmful.copy()
    truth[:6] = ~truth[:6]
    scores = held_out_scores(judge, prompts, answers, truth)
    probability = judge.probability(prompts, answers)
    assert set(scores) == {"classifier_auc", "classifier_accuracy"} <= set(METRICS)
    assert scores["classifier_auc"].value == pytest.approx(roc_auc_score(truth, probability))
    accuracy = scores["classifier_accuracy"]
    assert accuracy.value == pytest.approx(accuracy_score(truth, probability > 0.5))
    assert accuracy.low < accuracy.value < accuracy.high
    with pytest.raises(ValueError, match="harmless"):
        held_out_scores(judge, prompts, answers, np.ones(len(answers), bool))


# --- embeddings ------------------------------------------------------------------------------


def test_embedding_classifier_is_sklearns_regression() -> None:
    prompts, answers, harmful = toy_rows()
    ours = EmbeddingClassifier.fit(fake_encoder, prompts, answers, harmful, regularisation=0.3)
    joined = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    features = np.hstack([fake_encoder(answers), fake_encoder(joined)])
    theirs = LogisticRegression(C=0.3, max_iter=1000).fit(features, harmful)
    assert ours.probability(prompts, answers) == pytest.approx(
        theirs.predict_proba(features)[:, 1], abs=1e-4
    )


@pytest.mark.parametrize("flag", [True, False])
def test_embedding_classifier_needs_both_classes(flag: bool) -> None:
    with pytest.raises(ValueError, match="rows of both kinds"):
        EmbeddingClassifier.fit(fake_encoder, ["a"] * 3, ["b"] * 3, [flag] * 3)
    with pytest.raises(ValueError, match="rows of both kinds"):
        EmbeddingClassifier.fit(fake_encoder, [], [], [])


def test_embedding_classifier_refuses_odd_flags_and_another_encoder(
    embedding: EmbeddingClassifier, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="each of 2 texts"):
        EmbeddingClassifier.fit(fake_encoder, ["a", "b"], ["a", "b"], [True])
    embedding.save(tmp_path)
    other = classifiers.load(tmp_path, encoder=lambda texts: np.ones((len(texts), 3)))
    with pytest.raises(ValueError, match="encoder gives 3 numbers"):
        other.probability(["a"], ["b"])
    with pytest.raises(ValueError, match="needs an encoder"):
        classifiers.load(tmp_path)


def test_sentence_encoder_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sentence encoder at"):
        classifiers.sentence_encoder(tmp_path / "nowhere")


def test_sentence_encoder_from_a_local_folder(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    words = Transformer(str(tiny_bert))
    SentenceTransformer(modules=[words, Pooling(32)], device="cpu").save(str(tmp_path))
    encode = classifiers.sentence_encoder(tmp_path)
    embeddings = encode(["tea", "the bomb you kill", "tea"])
    assert embeddings.shape == (3, 32)
    np.testing.assert_allclose(embeddings[0], embeddings[2], atol=1e-6)
    assert encode([]).shape == (0, 32)


# --- fine-tuned sequences --------------------------------------------------------------------


def test_sequence_defaults_are_the_papers() -> None:
    defaults = SequenceSettings()
    assert (defaults.epochs, defaults.learning_rate) == (5, 5e-5)
    assert (defaults.batch_size, defaults.maximum_length) == (32, 128)
    assert not defaults.judge_prompt
    assert len(JIGSAW_LABELS) == 6


def test_probability_is_the_highest_sigmoid(sequence: SequenceClassifier) -> None:
    answer = "kill the idiot"
    batch = sequence.tokenizer(answer, return_tensors="pt")
    with torch.no_grad():
        sigmoids = sequence.model(**batch).logits.sigmoid()[0]
    assert sigmoids.shape == (3,)
    probability = sequence.probability([""], [answer])[0]
    assert probability == pytest.approx(float(sigmoids.max()), abs=1e-6)


def test_labels_come_from_the_data(sequence: SequenceClassifier) -> None:
    assert sequence.labels == ("toxic", "insult", "threat")
    assert sequence.model.config.id2label == {0: "toxic", 1: "insult", 2: "threat"}
    assert sequence.model.config.problem_type == "multi_label_classification"


def test_training_is_reproducible_and_seeded(tiny_bert: Path) -> None:
    prompts, answers, harmful = toy_rows(16)
    short = SequenceSettings(epochs=1, batch_size=8, maximum_length=16, use_cpu=True)
    first, again, other = (
        SequenceClassifier.fit(tiny_bert, answers, {"toxic": harmful}, short, seed=seed)
        for seed in (1, 1, 2)
    )
    expected = first.probability(prompts, answers)
    np.testing.assert_array_equal(again.probability(prompts, answers), expected)
    assert not np.array_equal(other.probability(prompts, answers), expected)


def test_the_question_counts_only_where_asked(sequence: SequenceClassifier) -> None:
    with_prompt = SequenceClassifier(
        sequence.model,
        sequence.tokenizer,
        sequence.labels,
        SequenceSettings(maximum_length=16, judge_prompt=True),
    )
    assert not sequence.is_harmful(["kill the idiot bomb"], ["tea"])[0]
    assert with_prompt.is_harmful(["kill the idiot bomb"], ["tea"])[0]


def test_texts_are_encoded_in_one_way(sequence: SequenceClassifier) -> None:
    spaced, plain = sequence.encode(["The  TEA,\n you", "the tea, you"])
    assert spaced == plain
    assert len(sequence.encode(["tea " * 90])[0]["input_ids"]) == 16


def test_a_pretrained_head_of_another_size_is_replaced(
    sequence: SequenceClassifier, tmp_path: Path
) -> None:
    sequence.save(tmp_path)
    _, answers, harmful = toy_rows(8)
    short = SequenceSettings(epochs=1, batch_size=8, maximum_length=16, use_cpu=True)
    judge = SequenceClassifier.fit(tmp_path, answers, {"toxic": harmful}, short)
    assert judge.model.config.id2label == {0: "toxic"}


def test_sequence_classifier_refuses_bad_data(tiny_bert: Path, tmp_path: Path) -> None:
    def fit(targets: dict, folder: Path = tiny_bert, settings: SequenceSettings = FAST) -> None:
        SequenceClassifier.fit(folder, ["tea", "bomb"], targets, settings)

    with pytest.raises(ValueError, match="rows of both kinds"):
        fit({"toxic": [True, False], "insult": [False, True]})
    with pytest.raises(ValueError, match="no labels"):
        fit({})
    with pytest.raises(ValueError, match="'insult'"):
        fit({"toxic": [True, False], "insult": [True]})
    with pytest.raises(ValueError, match="no model at"):
        fit({"toxic": [True, False]}, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="only 32 positions"):
        fit({"toxic": [True, False]}, settings=SequenceSettings(use_cpu=True))


def test_a_diverged_training_is_refused(tiny_bert: Path) -> None:
    _, answers, harmful = toy_rows(16)
    wild = SequenceSettings(
        epochs=3, learning_rate=1e30, maximum_length=16, batch_size=8, use_cpu=True
    )
    with pytest.raises(ValueError, match="lower its learning rate"):
        SequenceClassifier.fit(tiny_bert, answers, {"toxic": harmful}, wild)


# --- folders that are not whole --------------------------------------------------------------


def test_load_refuses_what_is_not_whole(judge: HarmClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole classifier"):
        classifiers.load(tmp_path / "nowhere", encoder=fake_encoder)
    judge.save(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="no whole classifier"):
        classifiers.load(tmp_path, encoder=fake_encoder)


def test_load_refuses_a_fresh_head_and_unknown_kinds(
    tiny_bert: Path, sequence: SequenceClassifier, tmp_path: Path
) -> None:
    sequence.save(tmp_path)
    headless = next(tiny_bert.glob("*.safetensors"))
    (tmp_path / "model.safetensors").write_bytes(headless.read_bytes())
    with pytest.raises(ValueError, match="weights lack.*classifier"):
        classifiers.load(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({"kind": "oracle"}))
    with pytest.raises(ValueError, match="unknown kind 'oracle'"):
        classifiers.load(tmp_path)
