"""Profile paper's blocks with their real loading code: a mirror of tiny random stand-ins."""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers as hf
from safetensors.numpy import load_file
from test_data_book import novel
from test_data_harm import keep
from test_data_questions import plain, rows, write
from test_text_classifier import write_bert
from tokenizers.processors import TemplateProcessing

from unlearn_lib import assets
from unlearn_lib.data import harm, people, science, tofu
from unlearn_lib.experiment import Experiment
from unlearn_lib.model import generate
from unlearn_lib.model.tokens import special_ids
from unlearn_lib.profile import load_profile

pytestmark = pytest.mark.endtoend
OPT = "facebook/opt-1.3b"
TAUGHT = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
RETAIN = TAUGHT.replace("_full", "_retain99")
LLAMAS = (TAUGHT, RETAIN, "meta-llama/Meta-Llama-3-8B-Instruct", "HuggingFaceH4/zephyr-7b-beta")
MINI = "sentence-transformers/{}-MiniLM-L6-v2"
NLI, NER = "sileod/deberta-v3-base-tasksource-nli", "dslim/bert-base-NER"
BLEURT = "Elron/bleurt-base-512"
CUT = """
name: cut
extends: paper
device: cpu
guards: {eco: {classifier: {epochs: 0.05, maximum_length: 32}, search: {steps: 1}}}
tasks:
  harm:
    data: {evaluation_prompts: 6, normal_prompts: 4, retain_rows: 8}
    judge: {epochs: 1}
    methods: [arora, ga, ga_gd, ga_kl]
    method: {steps: 2}
    evaluation: {new_tokens: 4}
  book:
    data: {evaluation_passages: 4, normal_prompts: 4, prompt_tokens: 16, answer_tokens: 24}
    teach: {epochs: 1, warmup_steps: 1, probe_passages: 2}
    method: {steps: 2}
    overrides: {eco: {search: {questions: 2}}, retrain: {warmup_steps: 0}}
    evaluation: {new_tokens: 24}
  authors:
    data: {tasks: 2}
    methods: [ga_gd, me_gd, idk_ap, simnpo_gd, undial_gd, rmu]
    method: &small {steps: 2, batch_size: 2, warmup_steps: 0, learning_rate: 1.0e-3}
    overrides: {eco: {search: {questions: 2}}, simnpo_gd: {steps: 2}, undial_gd: {steps: 2}, rmu: {steps: 2}}
    evaluation: {new_tokens: 4, unrelated_prompts: 2, unrelated_tokens: 2, attacked: [target, eco], scaling: [32]}
  continual: {methods: [me_gd]}
  people:
    data: {rows: 60, forget_people: 2, neighbours: 2, evaluation_neighbours: 2}
    methods: [me_gd]
    method: *small
    overrides: {me_gd: {learning_rate: 5.0e-6}}
  subjects: {data: {rows: 100, general_rows: 100}}
  science:
    method: *small
    overrides: {rmu: {steps: 2}}
"""
Run = tuple[Experiment, pd.DataFrame]


def write_mirror(mirror: Path, tokenizer: Any) -> None:
    """Stand-ins of every model and data set of profile paper, laid out as the hub is."""
    shared = {"vocab_size": len(tokenizer), **special_ids(tokenizer)}
    shape = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 2048}
    hf.set_seed(0)
    opt = hf.OPTConfig(**shared, **shape, num_hidden_layers=2, ffn_dim=64, word_embed_proj_dim=32)
    hf.OPTForCausalLM(opt).save_pretrained(mirror / "models" / OPT)
    tokenizer.save_pretrained(mirror / "models" / OPT)
    begins: Any = hf.AutoTokenizer.from_pretrained(mirror / "models" / OPT)
    begins.backend_tokenizer.post_processor = TemplateProcessing("</s> $A", None, [("</s>", 2)])
    begins.save_pretrained(mirror / "models" / OPT)
    for name in LLAMAS:
        layers = {"num_hidden_layers": 8, "intermediate_size": 32}
        llama = hf.LlamaForCausalLM(hf.LlamaConfig(**shared, **shape, **layers))
        llama.save_pretrained(mirror / "models" / name)
        tokenizer.save_pretrained(mirror / "models" / name)
    words = ["stone", "kettle", "please", "break"]
    for name in ("bert-base-uncased", "roberta-base", NER):
        write_bert(mirror / "models" / name, words, max_position_embeddings=512)
    labels = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}
    config = hf.BertConfig.from_pretrained(mirror / "models" / NER, **labels)
    hf.BertForTokenClassification(config).save_pretrained(mirror / "models" / NER)
    kinds = ("entailment", "neutral", "contradiction")
    write_bert(mirror / "models" / NLI, words, kinds, max_position_embeddings=512)
    write_bert(mirror / "models" / BLEURT, words, ("score",), max_position_embeddings=512)
    encoder = mirror / "models" / MINI.format("paraphrase")
    encoder.parent.mkdir()
    encoder.symlink_to(assets.find_model(MINI.format("all")).folder)
    write_data(mirror / "datasets")


def write_data(folder: Path) -> None:
    """Data sets with the columns of the released ones."""
    numbers = range(30)
    pku: dict[str, Any] = {
        "prompt": [f"How do I break kettle {i}?" for i in numbers],
        "response_0": [f"Hit it with stone {i}." for i in numbers],
        "response_1": [f"Please leave kettle {i} alone." for i in numbers],
        "is_response_0_safe": [False] * 30,
        "is_response_1_safe": [True] * 30,
    }
    for name, part in (("train", slice(20)), ("test", slice(20, 30))):
        path = folder / f"PKU-Alignment/PKU-SafeRLHF/data/{name}-00000-of-00001.parquet"
        keep(path, {column: values[part] for column, values in pku.items()})
    comments = {"comment_text": [f"{('please', 'break')[i % 2]} {i}" for i in numbers]}
    flags = dict.fromkeys(harm.JIGSAW_LABELS, [i % 2 for i in numbers])
    keep(folder / harm.JIGSAW / "train.csv", comments | flags)
    prose = [" ".join(f"word{i * j % 97}" for j in range(90)) for i in range(1, 25)]
    keep(folder / "saibo/bookcorpus_compact_256/train-00000-of-00001.parquet", {"text": prose})
    forget, retain = rows("the forgotten", 12), rows("the kept", 60)
    for name, table in {
        "forget01_perturbed": forget[:4],
        "forget10_perturbed": forget,
        "retain99": plain([*retain, *forget[4:]]),
        "retain_perturbed": retain[:6],
        "real_authors_perturbed": rows("a real author", 4),
        "world_facts_perturbed": rows("the world", 4),
        "holdout01": plain(rows("the unheard", 4)),
    }.items():
        write(folder / tofu.TOFU / f"{name}.json", table)
    subjects = [f"{science.WMDP}/{name}" for name in science.SUBJECTS]
    subjects += [f"{science.MMLU}/{name}" for name, _ in science.SUBJECTS.values()]
    pairs = science.MMLU_FIELDS.values()
    subjects += [f"{science.MMLU}/{name}" for pair in pairs for part in pair for name in part]
    for subject in (*subjects, *(f"{science.MMLU}/{name}" for name in science.GENERAL_SUBJECTS)):
        asked: dict[str, Any] = {"question": [f"Which is {i} of {subject}?" for i in range(24)]}
        asked |= {"choices": [[f"{c}{i}" for c in "abcd"] for i in range(24)]}
        keep(folder / subject / "test-00000-of-00001.parquet", asked | {"answer": [1] * 24})


def knowing(model: Any, prompts: Any, new_tokens: int, batch_size: int) -> list[str]:
    """What a model answers that knows everybody of the embedded people."""
    return [f"{row.short}. That is all." for row in people.load_people()[: len(prompts)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[Path]:
    """The folder of the mirror, a book, and all results."""
    root: Path = tmp_path_factory.mktemp("paper")
    write_mirror(root / "mirror", tokenizer)
    (root / "cut.yaml").write_text(CUT)
    (root / "novel.txt").write_text(novel())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
        patch.setattr("unlearn_lib.profile.ROOT", root)
        patch.setenv("UNLEARN_MIRROR", str(root / "mirror"))
        yield root


@pytest.fixture(scope="module")
def ran(folder: Path) -> Callable[[str], Run]:
    """Run a task, once; task book with a book of the reader's own."""

    @functools.cache
    def run(task: str) -> Run:
        book = folder / "novel.txt" if task == "book" else None
        with pytest.MonkeyPatch.context() as patch:
            if task == "people":
                patch.setattr(generate, "answers", knowing)
            experiment = Experiment(load_profile(folder / "cut.yaml", book), task)
            return experiment, experiment.items()

    return run


def tensors(experiment: Experiment, name: str) -> dict[str, np.ndarray]:
    """The trained weights of a model."""
    (file,) = (experiment.chain(name)[-1].folder / "model").glob("*.safetensors")
    return load_file(file)


TASKS = ["harm", "book", "authors", "continual", "people", "science", "subjects"]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_from_a_mirror(task: str, ran: Callable[[str], Run]) -> None:
    experiment, items = ran(task)
    judges = {"harm_judge", "entailment_judge"}
    assert set(items["method"]) - judges == set(experiment.names())
    assert np.isfinite(items["value"]).all()
    for name in experiment.settings.methods:
        first, last = (experiment.chain(name)[place] for place in (0, -1))
        assert first.result["hardware"]["weights_from"] == "mirror" and last.result["steps"] == 2
        assert np.isfinite(experiment.history(name)["total"]).all()


def test_all_weights_are_trained(ran: Callable[[str], Run]) -> None:
    experiment, items = ran("harm")
    before = load_file(experiment.task.weights.folder / "model.safetensors")
    after = tensors(experiment, "arora")
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert before.keys() == after.keys() and len(changed) > len(before) / 2
    assert experiment.chain("arora")[-1].result["hardware"]["precision_asked"] == "bfloat16"
    bleurt = items[items["metric"] == "bleurt_original"]
    assert set(bleurt["method"]) == set(experiment.settings.methods) and len(bleurt) == 4 * 4


def test_the_book_is_held_in_8_bit_with_adapters_as_published(ran: Callable[[str], Run]) -> None:
    experiment, _ = ran("book")
    (run,) = experiment.taught()
    assert run.result["hardware"]["quantization"] == "8bit"
    for name in ("target", *experiment.settings.methods):
        parts = tensors(experiment, name)
        assert {re.sub(r".*\.(\w+)\.lora_[AB].*", r"\1", part) for part in parts} == {
            "q_proj",
            "v_proj",
        }
        assert {part.shape[0] for key, part in parts.items() if ".lora_A." in key} == {16}
    shares = {n: experiment.chain(n)[-1].result["empty_share"] for n in experiment.settings.methods}
    assert shares.pop("released") > 0 and not any(shares.values())


def test_a_book_of_the_reader_s_is_in_no_file_of_the_results(
    ran: Callable[[str], Run], folder: Path
) -> None:
    experiment, _ = ran("book")

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z]+", re.sub(r"\\[nrt]", " ", text).lower())
        return set(zip(*(words[start:] for start in range(41))))

    book = runs(" ".join(experiment.task.taught_texts))  # type: ignore[attr-defined]
    assert len(book) > 500
    for path in experiment.profile.results.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert not book & runs(path.read_text(encoding="utf-8", errors="replace")), path


def test_the_retain_model_is_the_given_counterpart(ran: Callable[[str], Run]) -> None:
    experiment, _ = ran("authors")
    assert not experiment.taught() and not experiment.taught("retain_model")
    for name, model in (("target", TAUGHT), ("retain_model", RETAIN)):
        origin = experiment.evaluated(name).provenance["data"]
        assert origin["weights"] == assets.find_model(model).sha256
        assert origin["entailment"] == assets.find_model(NLI).sha256
    assert experiment.judge is None


def test_the_next_part_goes_on_from_all_weights_of_the_one_before(
    ran: Callable[[str], Run],
) -> None:
    experiment, _ = ran("continual")
    first, second = experiment.chain("me_gd")
    assert second.record["parents"] == [first.key]
    weights = [run.record["settings"]["method"]["forget_weight"] for run in (first, second)]
    assert weights == [1.0, 1.0], "in task authors it is .1"


def test_people_are_those_whom_the_model_knows(ran: Callable[[str], Run]) -> None:
    experiment, _ = ran("people")
    task: Any = experiment.task
    assert len({row.subject for row in task.people.forget}) == 2
    assert all(row.answer == f"{row.short}." for row in task.forgotten(""))
    gold = {row.question: row.answer for row in people.load_people()}
    assert all(row.answer == gold[row.question] for part in task.sets("").values() for row in part)
    assert all(row.statement == f"{row.short}." for row in task.sets("")["forget"])
