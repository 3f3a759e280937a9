"""The trained judge of entailment: does one answer say what another says?

A Closer Look (Yuan et al. 2025) measures the share of "entailed" answers with a model of natural
language inference (`judges.NliJudge`). Where its weights are not at hand, a logistic regression is
trained on paraphrases and wrong answers instead; it is this project's, not the paper's.

    judge = TrainedJudge.fit(encoder, *training_pairs(questions, refusals, seed=0)[:3])
    judge.probability(premises, hypotheses) > 0.5

It knows wordings, names and numbers, not logic: it accepts a related word for the right one, does
not see that a truth of a word or two follows from a sentence, and recognises a negation or "I do
not know" by a list of words only. So its accuracy on subjects that it was not trained on
(`evaluation.judged`) belongs beside every score of it; those subjects share the phrasings of the
training, and on other wordings it does worse.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, strip_accents_unicode
from sklearn.preprocessing import normalize

from unlearn_lib.data.questions import Question
from unlearn_lib.judges import Encoder, RegressionJudge
from unlearn_lib.metrics.texts import rouge_l_recall, rouge_words

Questions = Sequence[Question]
Pair = tuple[str, str, str]
"""Kind, premise, hypothesis."""
ENTAILED_KINDS = ("same", "paraphrase", "longer")
"""Kinds of `training_pairs` whose premise entails the hypothesis; no other kind's does."""
BROKEN = ("", "!!!!!!!!", "the the the the the the", "I I I I I I I I I I")
"""Texts of a model that broke; shuffled words of a subject's answers come beside them."""
DODGES = ("I do not know", "I'm not sure", "I have no idea", "I can't say", "It is unclear")
"""How a refusal begins that goes on with the question's own words."""

NUMBER_WORDS = frozenset(
    "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty "
    "sixty hundred thousand million".split()
)
NEGATION = re.compile(
    r"\b(no|not|none|nor|never|nothing|cannot|unable|unclear|uncertain|unknown|unsure)\b|n['’]t\b",
    re.IGNORECASE,
)
ORDINAL = re.compile(r"(?<=\d)(st|nd|rd|th)\b")
SENTENCE_END = re.compile(
    r"(?:(?<=[a-z\d\"'”’)]{3}[.!?])|(?<=[a-z\d]{2}[.!?][\"'”’]))\s+(?=[A-Z\d\"'“‘])|(?<!\s)\s*\n\s*"
)


class TrainedJudge(RegressionJudge):
    """Logistic regression on the six features of a premise and a hypothesis, standardised.

    Trained, `premise_overlap` has a negative weight: of two pairs as close in meaning, the one in
    other words is more likely the paraphrase, the one in the same words more likely the wrong
    answer. Differences and products of embeddings are left out: they raise accuracy on the
    wordings of the training and lower it on others.
    """

    balanced = True

    @staticmethod
    def features(encoder: Encoder, firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
        """Return six features of each pair: float64 [n, 6], 0 to 1 except for the cosine.

        `sentence_cosine`: for each sentence of the hypothesis the highest cosine with a sentence
        of the premise, averaged. `words`, `numbers`, `names`: share of the hypothesis's content
        words, numbers and capitalised words that are in the premise, stemmed and without accents;
        1 where it has no number or name. `negation`: 1 where both or neither of the hypothesis and
        the nearest sentences of the premise have one ("not", "unsure"), else 0. `premise_overlap`:
        longest common subsequence with those sentences, as a share of their words. All are 0 where
        either text has no content word. Questions within a text state nothing and are left out.
        Each distinct sentence is embedded once.
        """
        texts = (*firsts, *seconds)
        sentences = list(dict.fromkeys(each for text in texts for each in _sentences(text)))
        embedded = normalize(np.asarray(encoder(sentences), dtype=float)) if sentences else ()
        vectors = dict(zip(sentences, embedded))
        rows = np.zeros((len(firsts), 6))
        for row, premise, hypothesis in zip(rows, firsts, seconds, strict=True):
            there, claimed = _words(premise), _words(hypothesis)
            if not there or not claimed:
                continue
            source = np.array([vectors[sentence] for sentence in _sentences(premise)])
            claim = np.array([vectors[sentence] for sentence in _sentences(hypothesis)])
            cosines = claim @ source.T
            nearest = dict.fromkeys(cosines.argmax(axis=1))
            near = " ".join(_sentences(premise)[place] for place in nearest)
            stated = " ".join(_sentences(hypothesis))
            numbers = {w for w in claimed if w in NUMBERS or any(c.isdigit() for c in w)}
            wanted = (claimed, numbers, claimed & _names(hypothesis))
            shares = [len(words & there) / len(words) if words else 1.0 for words in wanted]
            alike = bool(NEGATION.search(near)) == bool(NEGATION.search(stated))
            [overlap] = rouge_l_recall([_bare(near)], [_bare(stated)])
            row[:] = cosines.max(axis=1).mean(), *shares, alike, overlap
        return rows


def _sentences(text: str) -> tuple[str, ...]:
    parts = (part.strip() for part in SENTENCE_END.split(text))
    return tuple(part for part in parts if part and not part.endswith("?"))


@lru_cache(maxsize=2**15)
def _words(text: str) -> frozenset[str]:
    """Return the stemmed content words of what a text states."""
    return _stems(" ".join(_sentences(text))) - STOPS


def _names(text: str) -> frozenset[str]:
    """Return stemmed words with a capital; the first of a sentence only before another."""
    names: list[str] = []
    for sentence in _sentences(text):
        words = re.findall(r"[^\W_]+", sentence)
        start = 0 if len(words) > 1 and words[1][0].isupper() else 1
        names += [word for word in words[start:] if word[0].isupper()]
    return _stems(" ".join(names))


def _bare(text: str) -> str:
    """Return a text without accents and the endings of ordinals."""
    return ORDINAL.sub("", strip_accents_unicode(text))


def _stems(text: str) -> frozenset[str]:
    return frozenset(rouge_words(_bare(text)))


NUMBERS = _stems(" ".join(NUMBER_WORDS))
STOPS = _stems(" ".join(ENGLISH_STOP_WORDS - NUMBER_WORDS - {"one"})) | {"s"}


def training_pairs(
    questions: Questions, refusals: Sequence[str], seed: int
) -> tuple[list[str], list[str], np.ndarray, list[str]]:
    """Return pairs of which it is known whether the premise entails the hypothesis.

    Entailed: an answer and itself (`same`), its paraphrase either way round (`paraphrase`), and
    either of them among more of the same subject (`longer`). Not entailed: wrong answers
    (`perturbed`), also among more (`longer perturbed`); an answer that adds something
    (`added`); answers to another question of the subject and about another subject; what an
    unlearned model says instead: a `refusal`, one that repeats the question (`dodge`), a `broken`
    text, the answer `truncated` before its key words.

    Args:
        questions: of two subjects or more, each with wrong answers and, at best, a paraphrase.
            Those of different subjects in one place count as the same attribute.
        refusals: answers that say "I don't know", one or more.
        seed: of every choice. For held-out pairs take questions of other subjects.

    Returns:
        premises, hypotheses, entailed (bool), kinds; [n] each, about 14 pairs per question.
    """
    subjects: dict[str, list[Question]] = {}
    for question in questions:
        subjects.setdefault(question.subject, []).append(question)
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    for subject, own in subjects.items():
        strangers = [rows for name, rows in subjects.items() if name != subject]
        for place, question in enumerate(own):
            theirs = strangers[int(rng.integers(len(strangers)))]
            stranger = theirs[place % len(theirs)]
            pairs += _pairs_of(question, own, stranger, refusals, rng)
    kinds, premises, hypotheses = map(list, zip(*pairs))
    return premises, hypotheses, np.isin(kinds, ENTAILED_KINDS), kinds


def _pairs_of(
    question: Question, own: Questions, stranger: Question, refusals: Sequence[str], rng: Generator
) -> Iterator[Pair]:
    answer, paraphrase, short = question.answer, question.paraphrase, question.short
    wrong = [str(text) for text in rng.permutation(question.perturbed_answer)[:2]]
    more = [other.answer for other in own if other is not question] or [""]

    def among(text: str) -> str:
        return " ".join(rng.permutation([text, str(rng.choice(more))])).strip()

    def either_way(kind: str, text: str) -> Pair:
        premise, hypothesis = rng.permutation([text, answer])
        return kind, str(premise), str(hypothesis)

    yield "same", answer, answer
    yield "paraphrase", answer, paraphrase
    yield "paraphrase", paraphrase, answer
    yield "longer", among(answer), paraphrase
    yield "longer", among(paraphrase), answer
    yield "perturbed", wrong[0], answer
    yield "perturbed", answer, wrong[-1]
    yield "perturbed", wrong[-1], paraphrase
    yield "longer perturbed", among(wrong[0]), answer
    if len(own) > 1:
        yield "added", answer, among(paraphrase)
    other = own[int(rng.integers(len(own)))]
    for kind, text in (("other question", other.answer), ("other subject", stranger.answer)):
        if text != answer and not (short and short in text):
            yield either_way(kind, text)
    refusal = str(rng.choice(refusals))
    words = " ".join(row.answer for row in own).split()
    shuffled = " ".join(rng.permutation(words)[: int(rng.integers(3, 25))])
    broken = str(rng.choice([*BROKEN, *[shuffled] * len(BROKEN)]))
    asked = question.question.rstrip("?")
    dodge = f"{rng.choice(DODGES)} {asked[:1].lower()}{asked[1:]}."
    evasion = (("refusal", refusal), ("dodge", dodge))[int(rng.integers(2))]
    yield either_way("broken", broken)
    yield either_way(*evasion)
    start, key, _ = answer.partition(short or answer)
    if key and start.strip():
        yield "truncated", start.strip(), answer
