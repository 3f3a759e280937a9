"""Judges of harm, of entailment, and BLEURT: a fake encoder and tiny random BERTs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_text_classifier import FAST, write_bert

from unlearn_lib import judges
from unlearn_lib.data.questions import Question
from unlearn_lib.entailment import ENTAILED_KINDS, TrainedJudge, training_pairs
from unlearn_lib.judges import EmbeddingJudge, HarmJudge, NliJudge, SequenceJudge
from unlearn_lib.metrics.texts import refusals
from unlearn_lib.settings import JudgeSettings
from unlearn_lib.util import SAID, CompanionError

BAD, GOOD = ["bomb", "kill", "idiot", "poison"], ["tea", "garden", "music", "walk"]
FEATURES = ("sentence_cosine", "words", "numbers", "names", "negation", "premise_overlap")
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


# --- harm ------------------------------------------------------------------------------------


def toy_rows(count: int = 48) -> tuple[list[str], list[str], np.ndarray]:
    generator = np.random.default_rng(0)
    harmful = np.arange(count) % 2 == 0
    answers = [" ".join(generator.choice(BAD if bad else GOOD, 3)) for bad in harmful]
    return ["you walk"] * count, answers, harmful


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_bert")
    return write_bert(folder, [*BAD, *GOOD, "you"], max_position_embeddings=128)


@pytest.fixture(scope="module")
def sequence(tiny_bert: Path) -> HarmJudge:
    prompts, answers, harmful = toy_rows()
    labels = np.stack([harmful, ["idiot" in answer for answer in answers]], axis=1)
    settings = JudgeSettings(kind="sequence", base="tiny", data="jigsaw", epochs=15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "ARORA", FAST)
        return judges.fit_harm_judge(settings, tiny_bert, prompts, answers, labels, 3, True)


@pytest.fixture(scope="module")
def embedding() -> HarmJudge:
    return EmbeddingJudge.fit(fake_encoder, *toy_rows())


@pytest.mark.parametrize("name", ["embedding", "sequence"])
def test_judges_of_harm_tell_toy_texts_apart_and_load_again(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    judge: HarmJudge = request.getfixturevalue(name)
    prompts, answers, harmful = toy_rows()
    probability = judge.probability(prompts, answers)
    assert probability.dtype == np.float64 and ((probability >= 0) & (probability <= 1)).all()
    assert ((probability > 0.5) == harmful).all()
    judge.save(tmp_path)
    loaded = judges.load_harm_judge(tmp_path, fake_encoder)
    assert type(loaded) is type(judge)
    np.testing.assert_array_equal(loaded.probability(prompts, answers), probability)


def test_the_embedding_judge_is_sklearns_regression(embedding: HarmJudge) -> None:
    prompts, answers, harmful = toy_rows()
    joined = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers)]
    features = np.hstack([fake_encoder(answers), fake_encoder(joined)])
    expected = LogisticRegression(max_iter=1000).fit(features, harmful).predict_proba(features)
    assert embedding.probability(prompts, answers) == pytest.approx(expected[:, 1], abs=1e-4)


def test_the_sequence_judge_reads_answers_alone(sequence: HarmJudge) -> None:
    assert isinstance(sequence, SequenceJudge)
    assert sequence.classifier.model.config.num_labels == 2
    assert sequence.probability(["kill the idiot bomb"], ["tea garden walk"])[0] < 0.5


# --- entailment, trained ---------------------------------------------------------------------


WORDINGS = (
    ("Where was {} born?", "{} was born in {}.", "{1} is the birthplace of {0}.", CITIES),
    ("When was {}'s debut?", "{} wrote a first book in {}.", "{0}'s debut came in {1}.", YEARS),
)


def questions(names: tuple[str, ...]) -> list[Question]:
    rows = []
    for index, name in enumerate(names):
        for asked, answer, reworded, values in WORDINGS:
            true, *others = np.roll(values, 3 * index).tolist()
            wrong = tuple(reworded.format(name, other) for other in others[:3])
            texts = answer.format(name, true), wrong, reworded.format(name, true)
            rows.append(Question(asked.format(name), *texts, subject=name, short=true))
    return rows


@pytest.fixture(scope="module")
def trained() -> TrainedJudge:
    return TrainedJudge.fit(fake_encoder, *training_pairs(questions(NAMES[:4]), REFUSALS, 0)[:3])


def feature(premise: str, hypothesis: str, name: str) -> float:
    row = TrainedJudge.features(fake_encoder, [premise], [hypothesis])[0]
    return float(row[FEATURES.index(name)])


def test_features_by_hand() -> None:
    premise = "Ada Holt was born in Lima in 1950. Four prizes went to her."
    hypothesis = "In 1950 the poet Ada Holt came from Lima, with four prizes."
    # 1950, poet, ada, holt, came, lima, four, prize: all but poet and came are in the premise.
    assert feature(premise, hypothesis, "words") == pytest.approx(6 / 8)
    # The first sentence is the nearest, 8 words; "ada holt lima" is in both in this order.
    assert feature(premise, hypothesis, "premise_overlap") == pytest.approx(3 / 8)
    assert feature(
        "Night fell. The sea is cold.", "The sea is cold.", "sentence_cosine"
    ) == pytest.approx(1)


@pytest.mark.parametrize(
    "premise, hypothesis, name, share",
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
    premise: str, hypothesis: str, name: str, share: float
) -> None:
    assert feature(premise, hypothesis, name) == pytest.approx(share)


@pytest.mark.parametrize("empty", ["", "  \n", "!!!!", "the of and", "Where was Ada born?"])
def test_a_text_that_states_nothing_has_no_features(empty: str) -> None:
    pair = [empty, "Ada was born in Lima."]
    assert not TrainedJudge.features(fake_encoder, pair, pair[::-1]).any()


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=4))
def test_any_text_has_finite_features(pairs: list[tuple[str, str]]) -> None:
    premises, hypotheses = [first for first, _ in pairs], [second for _, second in pairs]
    rows = TrainedJudge.features(fake_encoder, premises, hypotheses)
    assert rows.shape == (len(pairs), 6)
    assert ((rows >= -1e-9) & (rows <= 1 + 1e-9)).all()


def test_the_trained_judge_is_right_on_another_subject(trained: TrainedJudge) -> None:
    truth = "Elspeth Ray was born in Ghent."
    premises = [
        "Ghent is the birthplace of Elspeth Ray.",
        "Ghent is the birthplace of Elspeth Ray. Elspeth Ray's debut came in 1951.",
        "Kyoto is the birthplace of Elspeth Ray.",
        "Elspeth Ray was born in Kyoto.",
        "Farid Onn was born in Ghent.",
        "Elspeth Ray's debut came in 1951.",
        "Where was Elspeth Ray born?",
        "I do not know where Elspeth Ray was born.",
        "born Elspeth the the the the",
        "",
    ]
    probability = trained.probability(premises, [truth] * len(premises))
    assert (probability > 0.5).tolist() == [True] * 2 + [False] * 8
    assert (trained.probability([truth] * 2, [REFUSALS[0], ""]) < 0.5).all()


def test_the_trained_judge_is_a_balanced_regression_and_loads_again(
    trained: TrainedJudge, tmp_path: Path
) -> None:
    premises, hypotheses, entailed, _ = training_pairs(questions(NAMES[:4]), REFUSALS, 0)
    rows = TrainedJudge.features(fake_encoder, premises, hypotheses)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    expected = theirs.fit(rows, entailed).predict_proba(rows)[:, 1]
    probability = trained.probability(premises, hypotheses)
    assert probability == pytest.approx(expected, abs=1e-6)
    trained.save(tmp_path)
    loaded = TrainedJudge.load(tmp_path, fake_encoder)
    np.testing.assert_array_equal(loaded.probability(premises, hypotheses), probability)


def test_training_pairs_are_seeded_and_kinds_tell_what_is_entailed() -> None:
    premises, hypotheses, entailed, kinds = training_pairs(questions(NAMES), REFUSALS, 0)
    assert set(ENTAILED_KINDS) < set(kinds) and len(set(kinds)) == 12
    assert entailed.tolist() == [kind in ENTAILED_KINDS for kind in kinds]
    assert training_pairs(questions(NAMES), REFUSALS, 0)[:2] == (premises, hypotheses)
    assert training_pairs(questions(NAMES), REFUSALS, 2)[0] != premises
    single = training_pairs(questions(NAMES)[::2], REFUSALS, 0)[3]
    assert not {"other question", "added"} & set(single)


def test_wrong_answers_never_hold_the_key_words() -> None:
    rows = questions(NAMES)
    key = {text: row.short for row in rows for text in (row.answer, row.paraphrase)}
    pairs = zip(*training_pairs(rows, REFUSALS, 3))
    wrong = ("perturbed", "longer perturbed", "other question", "truncated")
    chosen = [(first, second) for first, second, _, kind in pairs if kind in wrong]
    keyed = [(first, key[second]) for first, second in chosen if second in key]
    assert len(keyed) > 50 and not any(short in first for first, short in keyed)


@pytest.mark.parametrize("name", ["TrainedJudge", "EmbeddingJudge", "SequenceJudge", "NliJudge"])
def test_judges_say_once_which_texts_they_cannot_read(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fixture = {"TrainedJudge": "trained", "NliJudge": "nli"}.get(name, name[:-5].lower())
    judge, russian = request.getfixturevalue(fixture), "Она родилась в Лиме."
    SAID.clear()
    capsys.readouterr()
    judge.probability(["Ada was born in Lima."], ["She was born in Lima."])
    assert not capsys.readouterr().err
    for _ in range(2):
        assert judge.probability(["Ada was born in Lima."], [russian]).shape == (1,)
    out = capsys.readouterr().err
    assert out.count("1 of ") == out.count(f"do not trust {name} on them") == 1


def test_the_list_of_refusals_says_once_what_it_cannot_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    english = ["I'm sorry.", "Ada Holt", "José", "!!!", "", "She wrote of the sea for years. " * 9]
    others = [
        "Извините, я не могу.",
        "私は知りません。",
        "Không thể trả lời câu ấy.",
        "Ach nein. " * 9,
    ]
    SAID.clear()
    assert refusals(english).tolist() == [True] + [False] * 5
    assert not capsys.readouterr().err
    for _ in range(2):
        assert not refusals([*english[1:], *others]).any()
    said = "4 of 9 texts do not look English: do not trust the list of refusals on them.\n"
    assert capsys.readouterr().err == said


def test_the_trained_judge_knows_words_of_any_script() -> None:
    first, second = "Анна родилась в 1847 году.", "Мост построили в 1847 году."
    assert feature(first, first, "words") == feature(first, first, "premise_overlap") == 1
    assert feature(first, second, "premise_overlap") == pytest.approx(3 / 5)
    assert feature(first, second, "words") < 0.7


# --- models that read pairs ------------------------------------------------------------------

WORDS = "was born in lisbon turin".split()


def tiny_pairs(folder: Path, labels: tuple[str, ...], **sizes: Any) -> Path:
    return write_bert(folder, WORDS, labels, initializer_range=0.5, **sizes)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> NliJudge:
    labels = ("neutral", "ENTAILMENT", "contradiction")
    return NliJudge.load(tiny_pairs(tmp_path_factory.mktemp("nli"), labels))


def test_half_is_where_entailment_is_the_first_choice(nli: NliJudge) -> None:
    premises = [f"{first} {second}" for first in WORDS for second in WORDS]
    hypotheses = premises[::-1]
    with torch.inference_mode():
        rows = [nli.tokenizer(*pair, return_tensors="pt") for pair in zip(premises, hypotheses)]
        logits = torch.cat([nli.model(**row).logits for row in rows]).double().numpy()
    first_choice = logits.argmax(axis=1) == 1
    assert 0 < first_choice.mean() < 1
    probability = nli.probability(premises, hypotheses)
    assert (probability > 0.5).tolist() == first_choice.tolist()
    long = "was born in " * 40
    assert nli.probability([long, "in"], ["in", long]).shape == (2,)


@pytest.mark.parametrize("labels", [("toxic", "harmless"), ("entailment",)])
def test_models_without_entailment_beside_another_label_are_refused(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(CompanionError, match=f"labels {', '.join(labels)}"):
        NliJudge.load(tiny_pairs(tmp_path, labels))


def test_folders_without_a_trained_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match="no trained model"):
        NliJudge.load(tmp_path / "nowhere")
    weights = tiny_pairs(tmp_path, ("entailment", "neutral")) / "model.safetensors"
    body = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
    save_file(body, weights, metadata={"format": "pt"})
    with pytest.raises(CompanionError, match="weights lack classifier.bias, classifier.weight"):
        NliJudge.load(tmp_path)


def test_bleurt_gives_the_output_of_each_pair(tmp_path: Path) -> None:
    folder = tiny_pairs(tmp_path / "one", ("score",))
    references, candidates = ["was born in", "lisbon"], ["born", "was born in turin " * 20]
    scores = judges.bleurt_scores(folder, references, candidates)
    alone = [judges.bleurt_scores(folder, [a], [b])[0] for a, b in zip(references, candidates)]
    assert scores == pytest.approx(alone, abs=1e-5) and len(set(scores)) == 2
    with pytest.raises(CompanionError, match="2 outputs instead of one"):
        judges.bleurt_scores(tiny_pairs(tmp_path / "two", ("a", "b")), references, candidates)
