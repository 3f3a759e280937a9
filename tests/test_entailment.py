"""Judges of entailment on toy subjects: a fake encoder and a tiny random BERT."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from unlearn_lib.classifiers.entailment import (
    ENTAILED_KINDS,
    FEATURES,
    EntailmentJudge,
    NliJudge,
    TrainedJudge,
    features,
    held_out,
    training_pairs,
)
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import METRICS

CITIES = ("Lisbon", "Turin", "Bergen", "Cusco", "Ghent", "Kyoto", "Lima", "Oslo")
YEARS = tuple(str(year) for year in range(1931, 1971, 5))
NAMES = ("Amara Vale", "Bertil Moor", "Celia Quist", "Dorian Fenn", "Elspeth Ray", "Farid Onn")
REFUSALS = ("I do not know that.", "That is beyond me.")


def fake_encoder(texts: list[str]) -> np.ndarray:
    """Counts of words in 256 buckets, the same in every process."""
    vectors = np.zeros((len(texts), 256), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().replace(".", " ").split():
            vectors[row, sum(ord(c) * 31**i for i, c in enumerate(word)) % 256] += 1
    return vectors


def questions(names: tuple[str, ...], shift: int = 0) -> list[Question]:
    rows = []
    for index, name in enumerate(names, start=shift):
        city, year = CITIES[index % 8], YEARS[index * 3 % 8]
        wrong_cities = [other for other in CITIES if other != city][:3]
        wrong_years = [other for other in YEARS if other != year][:3]
        rows += [
            Question(
                f"Where was {name} born?",
                f"{name} was born in {city}.",
                tuple(f"{other} is the birthplace of {name}." for other in wrong_cities),
                f"{city} is the birthplace of {name}.",
                name,
                city,
            ),
            Question(
                f"When did {name} publish a first book?",
                f"{name} published a first book in {year}.",
                tuple(f"The debut of {name} dates from {other}." for other in wrong_years),
                f"The debut of {name} dates from {year}.",
                name,
                year,
            ),
        ]
    return rows


@pytest.fixture(scope="module")
def trained() -> TrainedJudge:
    return TrainedJudge.fit(fake_encoder, *training_pairs(questions(NAMES[:4]), REFUSALS, 0)[:3])


def tiny_nli(folder: Path, labels: tuple[str, ...], **given: Any) -> Path:
    """A BERT with random weights and a word-level tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"was born in lisbon turin a b c d".split()]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=24, initializer_range=0.5,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder, **given)
    return folder


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> NliJudge:
    folder = tmp_path_factory.mktemp("nli")
    return NliJudge.load(tiny_nli(folder, ("neutral", "ENTAILMENT", "contradiction")), batch_size=2)


@pytest.fixture(params=["trained", "nli"])
def judge(request: pytest.FixtureRequest) -> EntailmentJudge:
    return request.getfixturevalue(request.param)


# --- what both promise -----------------------------------------------------------------------


def test_rows_are_judged_alone_whatever_their_order(judge: EntailmentJudge) -> None:
    premises = ["Amara was born in Lisbon.", "a b", "a b c d a b c d", ""]
    hypotheses = ["Amara was born in Turin.", "b a", "d", "Amara was born in Turin."]
    together = judge.probability(premises, hypotheses)
    alone = [float(judge.probability([p], [h])[0]) for p, h in zip(premises, hypotheses)]
    assert together.dtype == np.float64
    assert ((together >= 0) & (together <= 1)).all()
    assert together == pytest.approx(alone, abs=1e-5)
    assert judge.probability(premises[::-1], hypotheses[::-1]) == pytest.approx(
        alone[::-1], abs=1e-5
    )


def test_no_pairs_give_an_empty_array(judge: EntailmentJudge) -> None:
    assert judge.probability([], []).shape == (0,)
    assert judge.entails([], []).dtype == bool


def test_bad_calls_are_refused(judge: EntailmentJudge) -> None:
    with pytest.raises(ValueError, match="2 premises and 1 hypotheses"):
        judge.probability(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="threshold is 50"):
        judge.entails(["a"], ["a"], threshold=50)


def test_the_threshold_itself_counts_as_entailed(judge: EntailmentJudge) -> None:
    pair = ["Amara was born in Lisbon."], ["Amara was born in Turin."]
    probability = float(judge.probability(*pair)[0])
    assert judge.entails(*pair, threshold=probability)[0]
    assert not judge.entails(*pair, threshold=np.nextafter(probability, 2))[0]


# --- features --------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    premise = "Ada Holt was born in Lima in 1950. Four prizes went to her."
    hypothesis = "In 1950 the poet Ada Holt came from Lima, with four prizes."
    row = dict(zip(FEATURES, features(fake_encoder, [premise], [hypothesis])[0]))
    # 1950, poet, ada, holt, came, lima, four, prize: all but poet and came are in the premise.
    assert row["words"] == pytest.approx(6 / 8)
    assert row["numbers"] == 1
    assert row["names"] == 1
    # The first sentence is the nearest, 8 words; "ada holt lima" is in both in this order.
    assert row["premise_overlap"] == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    "premise, hypothesis, feature, share",
    [
        ("Ada was born in 1950.", "Ada was born in 1951.", "numbers", 0),
        ("Ada has three sisters.", "Ada has four sisters.", "numbers", 0),
        ("Ada was born on the 8th.", "Ada was born on the 8.", "numbers", 1),
        ("He met Bo Lund.", "He met Bo Berg.", "names", 1 / 2),
        ("Bo Lund wrote it.", "Cy Lund wrote it.", "names", 1 / 2),
        ("Readers like it.", "Critics like it.", "names", 1),
        ("Ada was never in Lima.", "Ada was in Lima.", "negation", 0),
        ("I don’t know where Ada was.", "Ada was in Lima.", "negation", 0),
        ("Ada was not in Lima.", "Lima never saw Ada.", "negation", 1),
        ("Nothing is known of Boris. Ada was in Lima.", "Ada was in Lima.", "negation", 1),
        ("Books by José Beltrán.", "Books by Jose Beltran.", "words", 1),
    ],
)
def test_features_see_numbers_names_and_negation(
    premise: str, hypothesis: str, feature: str, share: float
) -> None:
    row = dict(zip(FEATURES, features(fake_encoder, [premise], [hypothesis])[0]))
    assert row[feature] == pytest.approx(share)


@pytest.mark.parametrize("empty", ["", "  \n", "!!!!", "the of and", "Where was Ada born?"])
def test_a_text_that_states_nothing_has_no_features(empty: str) -> None:
    statement = "Ada was born in Lima."
    assert not features(fake_encoder, [empty, statement], [statement, empty]).any()


def test_more_sentences_in_the_premise_change_no_share() -> None:
    fact, more = "Ada was born in Lima.", "Bo wrote a long book about bees."
    alone, among = features(fake_encoder, [fact, f"{more} {fact}"], [fact, fact])
    np.testing.assert_allclose(alone, among)


def test_each_sentence_is_embedded_once() -> None:
    seen: Counter[str] = Counter()

    def counting(texts: list[str]) -> np.ndarray:
        seen.update(texts)
        return fake_encoder(texts)

    premises, hypotheses, _, _ = training_pairs(questions(NAMES), REFUSALS, 0)
    features(counting, premises, hypotheses)
    assert max(seen.values()) == 1
    assert len(seen) < len(premises) / 2


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=4))
def test_any_text_has_finite_features(pairs: list[tuple[str, str]]) -> None:
    found = features(fake_encoder, [p for p, _ in pairs], [h for _, h in pairs])
    assert found.shape == (len(pairs), len(FEATURES))
    assert np.isfinite(found).all()
    assert ((found >= -1e-9) & (found <= 1 + 1e-9)).all()


# --- the trained judge -----------------------------------------------------------------------


def test_the_trained_judge_is_right_on_another_subject(trained: TrainedJudge) -> None:
    truth = "Elspeth Ray was born in Ghent."
    premises = [
        truth,
        "Ghent is the birthplace of Elspeth Ray.",
        "Ghent is the birthplace of Elspeth Ray. Her debut dates from 1951.",
        "Kyoto is the birthplace of Elspeth Ray.",
        "Elspeth Ray was born in Kyoto.",
        "Farid Onn was born in Ghent.",
        "The debut of Elspeth Ray dates from 1951.",
        "Elspeth Ray was born in",
        "Where was Elspeth Ray born?",
        "I do not know that.",
        "I do not know where Elspeth Ray was born.",
        "born Elspeth the the the the",
        "",
    ]
    expected = [True] * 3 + [False] * 10
    assert trained.entails(premises, [truth] * len(premises)).tolist() == expected
    assert not trained.entails([truth] * 2, ["I do not know that.", ""]).any()


def test_fit_is_sklearns_regression_on_standardised_features(trained: TrainedJudge) -> None:
    premises, hypotheses, entailed, _ = training_pairs(questions(NAMES[:4]), REFUSALS, 0)
    read = features(fake_encoder, premises, hypotheses)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    expected = theirs.fit(read, entailed).predict_proba(read)[:, 1]
    assert trained.probability(premises, hypotheses) == pytest.approx(expected, abs=1e-6)


def test_save_and_load_give_equal_probabilities(trained: TrainedJudge, tmp_path: Path) -> None:
    premises, hypotheses, _, _ = training_pairs(questions(NAMES), REFUSALS, 1)
    folder = tmp_path / "new" / "judge"
    trained.save(folder)
    loaded = TrainedJudge.load(folder, fake_encoder)
    np.testing.assert_array_equal(
        loaded.probability(premises, hypotheses), trained.probability(premises, hypotheses)
    )
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    weights = load_file(next(folder.glob("*.safetensors")))
    assert weights["coefficients"].shape == (len(FEATURES),)


def test_load_refuses_what_is_no_whole_judge(trained: TrainedJudge, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole judge"):
        TrainedJudge.load(tmp_path / "nowhere", fake_encoder)
    trained.save(tmp_path)
    described = tmp_path / "classifier.json"
    description = json.loads(described.read_text())
    described.write_text(json.dumps(description | {"features": ["cosine"]}))
    with pytest.raises(ValueError, match="other features"):
        TrainedJudge.load(tmp_path, fake_encoder)
    described.write_text(json.dumps(description))
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="fit it anew"):
        TrainedJudge.load(tmp_path, fake_encoder)


def test_fit_refuses_one_class_and_differing_lengths() -> None:
    with pytest.raises(ValueError, match="of 2 pairs 2 are entailed"):
        TrainedJudge.fit(fake_encoder, ["a", "b"], ["a", "b"], [True, True])
    with pytest.raises(ValueError, match="pairs of both kinds"):
        TrainedJudge.fit(fake_encoder, [], [], [])
    with pytest.raises(ValueError, match="1 premises and 2 hypotheses"):
        TrainedJudge.fit(fake_encoder, ["a"], ["a", "b"], [True])
    with pytest.raises(ValueError, match="each of 2 texts"):
        TrainedJudge.fit(fake_encoder, ["a", "b"], ["a", "b"], [True])


# --- pairs -----------------------------------------------------------------------------------


def test_kinds_tell_what_is_entailed() -> None:
    premises, hypotheses, entailed, kinds = training_pairs(questions(NAMES), REFUSALS, 0)
    assert len(premises) == len(hypotheses) == len(entailed) == len(kinds)
    assert set(kinds) == {
        "same", "paraphrase", "longer", "perturbed", "longer perturbed", "added",
        "other question", "other subject", "refusal", "broken", "dodge", "truncated",
    }  # fmt: skip
    assert entailed.tolist() == [kind in ENTAILED_KINDS for kind in kinds]
    assert {type(text) for text in [*premises, *hypotheses, *kinds]} == {str}


def test_wrong_answers_never_hold_the_key_words() -> None:
    rows = questions(NAMES)
    key = {text: row.short for row in rows for text in (row.answer, row.paraphrase)}
    premises, hypotheses, _, kinds = training_pairs(rows, REFUSALS, 3)
    wrong = ("perturbed", "longer perturbed", "other question", "truncated")
    pairs = [pair for pair in zip(premises, hypotheses, kinds) if pair[2] in wrong]
    assert sum(hypothesis in key for _, hypothesis, _ in pairs) > 50
    for premise, hypothesis, _ in pairs:
        assert hypothesis not in key or key[hypothesis] not in premise


def test_pairs_are_seeded() -> None:
    first, again, other = (training_pairs(questions(NAMES), REFUSALS, seed) for seed in (1, 1, 2))
    assert first[0] == again[0]
    assert first[1] == again[1]
    assert first[0] != other[0]


def test_a_subject_with_one_question_has_no_other_question() -> None:
    kinds = training_pairs(questions(NAMES)[::2], REFUSALS, 0)[3]
    assert not {"other question", "added"} & set(kinds)
    assert "other subject" in kinds


def test_pairs_need_subjects_wrong_answers_and_refusals() -> None:
    rows = questions(NAMES)
    with pytest.raises(ValueError, match="1 subjects"):
        training_pairs(rows[:2], REFUSALS, 0)
    with pytest.raises(ValueError, match="0 refusals"):
        training_pairs(rows, (), 0)
    with pytest.raises(ValueError, match="Question 12 has no wrong answers"):
        training_pairs([*rows, Question("Who?", "Ada.", subject="Ada")], REFUSALS, 0)


# --- held out --------------------------------------------------------------------------------


def test_held_out_scores_are_sklearns(trained: TrainedJudge) -> None:
    premises, hypotheses, entailed, kinds = training_pairs(questions(NAMES[4:]), REFUSALS, 1)
    truth = entailed.copy()
    truth[::5] = ~truth[::5]
    scores = held_out(trained, premises, hypotheses, truth, kinds)
    assert {"judge_accuracy", "judge_auc"} <= set(METRICS)
    probability = trained.probability(premises, hypotheses)
    accuracy = scores["judge_accuracy"]
    assert accuracy.value == pytest.approx(accuracy_score(truth, probability >= 0.5))
    assert accuracy.low < accuracy.value < accuracy.high
    assert scores["judge_auc"].value == pytest.approx(roc_auc_score(truth, probability))
    chosen = [kind == "longer perturbed" for kind in kinds]
    kind = scores["judge_accuracy_longer_perturbed"]
    assert kind.n == sum(chosen)
    assert kind.value == pytest.approx(accuracy_score(truth[chosen], probability[chosen] >= 0.5))


def test_held_out_refuses_one_class_and_missing_kinds(trained: TrainedJudge) -> None:
    with pytest.raises(ValueError, match="pairs of both kinds"):
        held_out(trained, ["a"], ["a"], [True], ["same"])
    with pytest.raises(ValueError, match="2 pairs and 1 kinds"):
        held_out(trained, ["a", "b"], ["a", "c"], [True, False], ["same"])


# --- models of inference ---------------------------------------------------------------------


def test_half_is_where_entailment_is_the_first_choice(nli: NliJudge) -> None:
    words = "was born in lisbon turin a b c d".split()
    premises = [f"{first} {second}" for first in words for second in words]
    hypotheses = premises[::-1]
    with torch.inference_mode():
        rows = [nli.tokenizer(*pair, return_tensors="pt") for pair in zip(premises, hypotheses)]
        logits = torch.cat([nli.model(**row).logits for row in rows]).double().numpy()
    expected = logits.argmax(axis=1) == 1
    assert 0 < expected.mean() < 1
    assert nli.entails(premises, hypotheses).tolist() == expected.tolist()
    rival = np.maximum(logits[:, 0], logits[:, 2])
    sure = np.exp(logits[:, 1]) / (np.exp(logits[:, 1]) + np.exp(rival))
    assert nli.probability(premises, hypotheses) == pytest.approx(sure, abs=1e-5)


def test_long_pairs_are_cut_to_the_models_positions(nli: NliJudge) -> None:
    long = "a b c d " * 40
    assert nli.probability([long, "a"], ["a", long]).shape == (2,)


@pytest.mark.parametrize("labels", [("toxic", "harmless"), ("entailment",)])
def test_labels_without_entailment_are_refused(labels: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match=f"labels {', '.join(labels)}, none of them"):
        NliJudge.load(tiny_nli(tmp_path, labels))


def test_folders_without_a_whole_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match="no whole model of inference"):
        NliJudge.load(tmp_path / "nowhere")
    folder = tiny_nli(tmp_path, ("entailment", "neutral"))
    weights = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(CompanionError, match="weights lack classifier.bias, classifier.weight"):
        NliJudge.load(folder)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CompanionError, match="no whole model of inference"):
        NliJudge.load(folder)
