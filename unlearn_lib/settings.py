"""The blocks that a profile is made of: frozen, closed to unknown keys, every default stated."""

from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from unlearn_lib.model_settings import ChatSettings as ChatSettings
from unlearn_lib.model_settings import HubId, LoraSettings, Settings
from unlearn_lib.model_settings import ModelSettings as ModelSettings

Schedule = Literal["linear", "constant", "cosine"]
Subject = Literal["bio", "chem", "cyber", "economics", "law", "physics"]
Fault = Literal["empty_labels", "book_mismatch", "kl_to_itself"]
Noise = Literal["rand_noise_first_n", "rand_noise_rand_n", "rand_noise_top_k"]
Replacement = Literal["set_rand_noise_first_n", "zero_out_first_n", "zero_out_top_k"]
Flip = Literal["flip_sign_first_n", "flip_sign_top_k"]
Move = Literal["reverse_order", "shuffle"]
Addition = Literal["add_value_first_n", "add_value_top_k", "add_value_least_k"]
Subtraction = Literal["sub_value_first_n", "sub_value_top_k", "sub_value_least_k"]
CorruptionName = Literal[Noise, Replacement, Flip, Move, Addition, Subtraction]


class TrainingSettings(Settings):
    """What all training has: AdamW's step and how many steps it warms up."""

    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)


class MethodSettings(TrainingSettings):
    """How a registered method runs; the weights are the papers' epsilon 1, 2 and 3.

    `uses`: a key of `unlearn.methods.METHODS`; null: the method's name in the profile. Training
    stops, and the last good state is kept, when the cross-entropy of the forget answers passes
    `forget_loss_cap` (nats per token). `retain_batch_size` null: as many retain rows as forget
    rows. `accumulate`: a step goes through its rows in so many parts, which takes less memory and
    changes neither rows nor result (but for what `lora.dropout` draws). Refusals longer than
    `refusal_tokens` are no substitutes; the original model's own answers are cut after
    `own_tokens`. `gradient_clip` 0: none, as in the released loop. RMU steers the activations
    after block `layer` (from 0) to a random vector of length `steering`. Task book: `start`
    trains the target's adapter further, or adds it to the weights and trains a new one
    (`merged`), or trains a new one on the `base` model (retraining); `faults` imitates the
    released code of Arora et al. (`unlearn.released`).
    """

    uses: str | None = None
    label: str | None = None
    steps: int = Field(ge=1)
    batch_size: int = Field(2, ge=1)
    retain_batch_size: int | None = Field(None, ge=1)
    keep_batch_size: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)
    schedule: Schedule = "linear"
    gradient_clip: float = Field(0.0, ge=0)
    forget_weight: float = Field(1.0, ge=0)
    mismatch_weight: float = Field(1.0, ge=0)
    retain_weight: float = Field(1.0, ge=0)
    keep_weight: float = Field(1.0, ge=0)
    mismatch_answers: int = Field(5, ge=1)
    refusal_tokens: int = Field(40, ge=4)
    own_tokens: int = Field(60, ge=4)
    beta: float = Field(0.1, gt=0)
    layer: int = Field(7, ge=0)
    steering: float = Field(2.0, gt=0)
    forget_loss_cap: float = Field(100.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)
    start: Literal["target", "merged", "base"] = "target"
    faults: tuple[Fault, ...] = ()


class TeachSettings(TrainingSettings):
    """Teach a model what it is to know before it is asked to forget; `lora` null: all weights."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    lora: LoraSettings | None = None


class MemoriseSettings(TrainingSettings):
    """Causal language modelling on chunks of the chapters to forget and to keep.

    It ends after `epochs`, or once a share `stop_at` of `probe_passages` held-in passages is
    continued verbatim (20 tokens), measured every `probe_every` epochs; null: never earlier.
    `shift_chunks` cuts the text elsewhere in each epoch, so that a passage that straddles two
    chunks in one is whole in another.
    """

    epochs: int = Field(ge=1)
    chunk_tokens: int = Field(256, ge=16)
    shift_chunks: bool = False
    batch_size: int = Field(1, ge=1)
    schedule: Schedule = "linear"
    gradient_clip: float = Field(1.0, ge=0)
    stop_at: float | None = Field(None, gt=0, le=1)
    probe_every: int = Field(1, ge=1)
    probe_passages: int = Field(24, ge=1)


class Reading(Settings):
    """How text becomes tokens: the template of a question, the longest prompt and answer."""

    template: Literal["chat", "question_answer"] = "chat"
    prompt_tokens: int = Field(96, ge=4)
    answer_tokens: int = Field(64, ge=4)


class HarmData(Reading):
    """Which harmful and normal rows to use, and how many of them (`null`: all)."""

    forget: Literal["human_scored", "pku_saferlhf", "embedded"]
    retain: Literal["truthful_qa", "embedded"]
    forget_rows: int | None = Field(None, ge=1)
    evaluation_prompts: int | None = Field(None, ge=1)
    normal_prompts: int | None = Field(None, ge=1)
    retain_rows: int | None = Field(None, ge=1)
    held_out_share: float = Field(0.35, gt=0, lt=1)
    split_seed: int = 0
    harmful_from: float = Field(0.5, gt=0, le=1)
    harmless_below: float = Field(0.25, gt=0, le=1)
    prompt_tokens: int = Field(256, ge=8)
    answer_tokens: int = Field(96, ge=4)


class BookData(Reading):
    """The book, how it is split, and the prose to be retained (`null`: as many as there are).

    Chapters are dealt by `split_seed` into those to forget, those taught and to be kept, and those
    never taught. Each part is cut into passages of `prompt_tokens` and `answer_tokens`, of which
    `evaluation_passages` are measured. `file`: the reader's own book; null: the embedded saga.
    Normal prompts are held-out `questions`, asked by `template`, or beginnings of held-out prose;
    as many texts of the prose as `normal_prompts` are held out, to measure perplexity.
    `prose_rows`: how many texts of the source are read at all.
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
    split_seed: int = 0
    prompt_tokens: int = Field(32, ge=4)


class AuthorsData(Reading):
    """Whose questions are forgotten and kept (`null`: all rows there are).

    `source` embedded writes fictitious authors; their numbers are the `authors` settings. The hub's
    TOFU is split by `forget_split`. `files` are the reader's own `forget`, `retain` and, for
    questions never taught, `holdout`: JSON lines, relative to the project's folder. The first of
    `tasks` is what task authors forgets; all are taught, and task continual forgets one after
    another. `retain_rows`: how many rows to teach and keep; `evaluation_rows`: how many of each set
    but the forget set are asked; `rehearsal_rows`: how many of the other real authors and world
    facts are taught and kept too (0, as in TOFU: none), so that a small model keeps all else.
    """

    source: Literal["embedded", "locuslab/TOFU", "files"]
    forget: Path | None = None
    retain: Path | None = None
    holdout: Path | None = None
    forget_split: Literal["forget01", "forget05", "forget10"] = "forget01"
    tasks: int = Field(3, ge=1)
    authors_per_task: int = Field(2, ge=1)
    retain_authors: int = Field(6, ge=1)
    holdout_authors: int = Field(2, ge=0)
    questions_per_author: int = Field(10, ge=2)
    seed: int = 0
    retain_rows: int | None = Field(None, ge=1)
    evaluation_rows: int | None = Field(None, ge=2)
    rehearsal_rows: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _files_are_named(self) -> "AuthorsData":
        named = {name for name in ("forget", "retain", "holdout") if getattr(self, name)}
        if self.source != "files" and named:
            raise ValueError(f"'{min(named)}' is a file: set 'source' to 'files', or leave it out")
        if self.source == "files" and not named >= {"forget", "retain"}:
            raise ValueError("source 'files' needs 'forget' and 'retain', paths of questions")
        if self.source == "files" and self.tasks != 1:
            raise ValueError("the file 'forget' is one task; set 'tasks' to 1")
        return self


class PeopleData(Reading):
    """Known people to forget, neighbours to keep, and others to ask about.

    Only questions that the base model answers right count, and only people with `least_right` of
    them; 0: every question counts (smoke, whose model knows nobody). `rows`: how many are asked.
    """

    forget_people: int = Field(4, ge=1)
    neighbours: int = Field(4, ge=1)
    evaluation_neighbours: int = Field(4, ge=1)
    least_right: int = Field(3, ge=0)
    seed: int = 0
    rows: int | None = Field(None, ge=1)


class ScienceData(Reading):
    """Multiple choice: knowledge to forget and to keep (`null`: all rows there are).

    `source` embedded: an invented science, taught first. `wmdp`: the hub's WMDP `subjects`, which
    the model knows by itself, and MMLU to keep. `mmlu`: economics, law and physics of MMLU, and the
    fields next to them to keep. `form` likelihood: a choice counts by its text's
    probability; letters: the question lists the choices, and each counts by its letter's logit.
    """

    source: Literal["embedded", "wmdp", "mmlu"] = "embedded"
    form: Literal["likelihood", "letters"] = "likelihood"
    subjects: tuple[Subject, ...] = Field(("bio", "chem", "cyber"), min_length=1)
    rows: int | None = Field(None, ge=4)
    general_rows: int | None = Field(None, ge=4)
    rehearsal_rows: int = Field(0, ge=0)
    answer_tokens: int = Field(40, ge=4)


class JudgeSettings(Settings):
    """The judge of harm: embeddings with logistic regression, or a fine-tuned encoder.

    `data`: what it learns from, the graded answers of `data.forget`, or `jigsaw`, whose `train.csv`
    lies in the mirror unless `file` names it.
    """

    kind: Literal["embedding", "sequence"] = "embedding"
    base: HubId
    data: Literal["human_scored", "pku_saferlhf", "embedded", "jigsaw"]
    threshold: float = Field(0.5, gt=0, lt=1)
    epochs: int = Field(5, ge=1)
    rows: int | None = Field(None, ge=1)
    file: Path | None = None


class TextClassifierSettings(Settings):
    """How a guard's prompt classifier is fine-tuned; defaults are those of ECO's released script.

    `base` is an encoder. Classes are weighted by their number. A longer prompt than
    `maximum_length` tokens is judged in overlapping windows, the worst counting. `most`: at most
    so many prompts of each set but those for the threshold; null: all.
    """

    base: HubId
    epochs: float = Field(30, gt=0)
    learning_rate: float = Field(2e-5, gt=0)
    batch_size: int = Field(16, ge=1)
    weight_decay: float = Field(0.1, ge=0)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    maximum_length: int = Field(512, ge=8)
    most: int | None = Field(None, ge=25)


class CorruptionSettings(Settings):
    """What happens to the embeddings of a flagged prompt's chosen tokens.

    `tokens`: those of names, which the model `ner` finds, or every one but the prompt's last.
    `dims`: how many components of an embedding; null: all.
    """

    name: CorruptionName = "rand_noise_first_n"
    tokens: Literal["names", "every"] = "every"
    dims: int | None = Field(None, ge=1)
    ner: HubId | None = None

    @model_validator(mode="after")
    def _names_are_found_by_a_model(self) -> "CorruptionSettings":
        if (self.ner is None) == (self.tokens == "names"):
            raise ValueError("'tokens: names' and 'ner', a model that finds names, go together")
        return self


class SearchSettings(Settings):
    """Zeroth-order search of the strength; defaults are those of ECO's released script.

    It begins at the best of `start` and `other_starts`, and ends after `steps`, or once the
    objective is below `stop_below`. `logarithmic`: of the logarithm (base 10) of the strength, of
    which starts, `smallest` and `perturbation` then are. `questions`: prompts that it asks.
    """

    steps: int = Field(10, ge=1)
    learning_rate: float = Field(100.0, gt=0)
    start: float = 0.1
    other_starts: tuple[float, ...] = ()
    perturbation: float = Field(0.0999, gt=0)
    smallest: float = 0.1
    stop_below: float | None = None
    logarithmic: bool = False
    questions: int = Field(16, ge=2)

    @model_validator(mode="after")
    def _start_is_allowed(self) -> "SearchSettings":
        lowest = min((self.start, *self.other_starts))
        if lowest < self.smallest or (self.smallest <= 0 and not self.logarithmic):
            raise ValueError("'smallest' must be above 0 unless 'logarithmic', and above no start")
        return self


class GuardSettings(Settings):
    """ECO's guard: `strength` null searches it.

    `false_positive_rate`: what the threshold is calibrated for on held-out retain prompts;
    `threshold` sets it by hand. `general`: ordinary questions that it should let through.
    """

    classifier: TextClassifierSettings
    corruption: CorruptionSettings = CorruptionSettings()
    strength: float | None = Field(None, gt=0)
    search: SearchSettings = SearchSettings()
    threshold: float | None = Field(None, ge=0, lt=1)
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    general: Literal["truthful_qa", "embedded"] = "truthful_qa"
    label: str = "ECO (guard)"


class PromptingSettings(Settings):
    """The prompting baseline: `prefix` stands before every question."""

    prefix: str = (
        "You must not answer questions about {topic}. If you are asked about that, say that you "
        "do not know. Answer everything else as usual. "
    )
    label: str = "prompting"

    @field_validator("prefix")
    @classmethod
    def _only_the_topic_is_filled_in(cls, prefix: str) -> str:
        if {field for _, field, *_ in Formatter().parse(prefix)} - {None, "topic"}:
            raise ValueError("of braces only {topic} is filled in; write others twice")
        return prefix


class EvaluationSettings(Settings):
    """How models are asked and measured: greedy answers of `new_tokens`.

    `encoder`: the sentence encoder of similarity. `bleurt` (harm): a BLEURT model, measured too
    when its weights are there. `entailment` (questions): a natural-language-inference model, or
    `trained`: a small judge trained on `judge_authors` other authors. `min_k`: the share of tokens
    in the Min-K attacks. `scorer`: the model under whose fixed weights the perplexity of answers is
    measured; null: the base model. `attacked`: models whose forget questions are asked in every way
    that may pass a guard. `unrelated_prompts` are answered with and without a guard. `scaling`:
    hidden sizes of random models by which a guard's cost is measured against a model's size.
    """

    new_tokens: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    encoder: HubId
    bleurt: HubId | None = None
    entailment: Literal["trained"] | HubId = "trained"
    judge_authors: int = Field(40, ge=4)
    min_k: float = Field(0.4, gt=0, le=1)
    scorer: HubId | None = None
    attacked: tuple[str, ...] = ()
    unrelated_prompts: int = Field(0, ge=0)
    unrelated_tokens: int = Field(40, ge=1)
    scaling: tuple[Annotated[int, Field(ge=8, le=16_384, multiple_of=8)], ...] = ()
