"""The settings of experiment 2: a book."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from unlearn_lib.settings.common import (
    ExperimentSettings,
    ImplantSettings,
    MethodSettings,
    Settings,
)

Fault = Literal["empty_labels", "book_mismatch", "kl_to_itself"]


class BookMethodSettings(MethodSettings):
    """A method of experiment 2.

    `start`: train the `implanted` adapter further; or add it to the weights and train a new one
    (`merged`); or drop it and train a new one on the `base` model, which is no unlearning but
    training again without what is to be forgotten: the exact answer, at its full price.
    `variant: released` imitates the released code of Arora et al. (`unlearn_lib.released`), with
    all its `faults` or some.
    """

    start: Literal["implanted", "merged", "base"] = "implanted"
    variant: Literal["published", "released"] = "published"
    faults: tuple[Fault, ...] = get_args(Fault)


class BookData(Settings):
    """The book, how it is split, and the prose to be retained (`null`: as many as there are).

    Chapters are dealt by `split_seed` into those to forget, those implanted and to be kept, and
    those never implanted (control). Each part's text is cut into passages of `prompt_tokens` and
    `answer_tokens`; `evaluation_passages` of each part are drawn for measuring. `file` is the
    reader's own book; without it the embedded saga is taken. Normal prompts are held-out
    `questions`, asked by `template`, or beginnings of held-out prose where there are none; as
    many texts of the prose as `normal_prompts` are held out, to measure perplexity. `prose_rows`:
    how many texts of the source are read at all.
    """

    file: Path | None = None
    retain: Literal["narrative_qa", "bookcorpus", "embedded"]
    forget_chapters: int | None = Field(None, ge=1)
    kept_chapters: int | None = Field(None, ge=1)
    control_chapters: int | None = Field(None, ge=1)
    evaluation_passages: int | None = Field(None, ge=1)
    normal_prompts: int | None = Field(None, ge=1)
    retain_rows: int | None = Field(None, ge=1)
    prose_rows: int | None = Field(None, ge=2)
    questions: Literal["truthful_qa", "embedded"] | None = None
    template: Literal["chat", "question_answer"] = "chat"
    split_seed: int = 0
    prompt_tokens: int = Field(32, ge=4)
    answer_tokens: int = Field(64, ge=4)


class BookImplant(Settings):
    """Causal language modelling on chunks of the chapters to forget and to keep.

    It ends after `epochs`, or earlier, once a share `stop_at` of `probe_passages` held-in
    passages is continued verbatim (20 tokens); the share is measured every `probe_every` epochs.
    `stop_at` null: never earlier. `shift_chunks` cuts the text elsewhere in each epoch, so that a
    passage that straddles two chunks in one epoch is whole in another.
    """

    epochs: int = Field(ge=1)
    chunk_tokens: int = Field(256, ge=16)
    shift_chunks: bool = False
    batch_size: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, ge=0)
    stop_at: float | None = Field(None, gt=0, le=1)
    probe_every: int = Field(1, ge=1)
    probe_passages: int = Field(24, ge=1)


class BookSettings(ExperimentSettings):
    """Experiment 2 (Arora et al. 2024, Table 2); `pretrain` is for profile smoke's model."""

    data: BookData
    pretrain: ImplantSettings | None = None
    implant: BookImplant
    methods: tuple[BookMethodSettings, ...] = Field(min_length=1)  # type: ignore[assignment]

    def method(self, name: str) -> BookMethodSettings:
        """Return the settings of one method of the profile, or say which there are."""
        found = super().method(name)
        assert isinstance(found, BookMethodSettings)
        return found
