"""A question with its right and wrong answers: the row of every question set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question, as in TOFU.

    Attributes:
        question, answer: what is asked, and the right answer.
        perturbed_answer: wrong answers in the form of the paraphrase; as many in every row of a
            set.
        paraphrased_answer: the right answer in other words; None where the answer itself stands
            for it (TOFU's real authors and world facts).
        subject: the author or person it is about; empty where unknown.
        short: the words that a right answer must hold; empty where unknown.
        original_answer: the right answer as a whole sentence, where `answer` is a name or a
            few words; None where `answer` is the sentence.
    """

    question: str
    answer: str
    perturbed_answer: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    subject: str = ""
    short: str = ""
    original_answer: str | None = None

    @property
    def paraphrase(self) -> str:
        """The right answer whose probability the truth ratio takes."""
        return self.paraphrased_answer or self.answer

    @property
    def statement(self) -> str:
        """The right answer as a sentence: what similarity and entailment are judged against."""
        return self.original_answer or self.answer
