"""Templates: no day in a prompt, answers as behind a prompt, what cannot be read is refused."""

import datetime
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from unlearn_lib import Experiment
from unlearn_lib import __main__ as command_line
from unlearn_lib.assets import Asset
from unlearn_lib.data import authors, people
from unlearn_lib.evaluation import candidates
from unlearn_lib.model.tokens import QUESTION, TextEncoder, load_tokenizer
from unlearn_lib.profile import PROFILES, load_profile
from unlearn_lib.settings import ChatSettings
from unlearn_lib.store import RunStore
from unlearn_lib.util import CompanionError

SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "### Question: Why is the sky blue?\n ### Answer: Air scatters blue light.",
    "[INST] Why is the sky blue? [/INST] Because of the air. See [the sky](sky).",
    "[INST] Who keeps the sluice? [/INST] Ann keeps it. a](b c](d e](f g](h i](j k](l m](n",
)
ANSWERS = ("Paris is it.", "1977, I think.", '"Ann" does.', "élan é", "(so they say)", "a")
LLAMA_2 = (
    "{% for turn in messages %}{% if turn.role == 'user' %}"
    "{{ bos_token + '[INST] ' + turn.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>\\nToday Date: " + date_string + "\\n\\n" + system_message + "</s>" }}
{%- for turn in messages %}{{- "<|" + turn.role + "|>\\n\\n" + turn.content|trim + "</s>" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|assistant|>\\n\\n" }}{%- endif %}"""
CLOCK = (
    "Today: {{ strftime_now('%Y-%m-%d %H') }}\n{% for turn in messages %}"
    "{{ turn.role }}: {{ turn.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
ZEPHYR = (
    "{% for turn in messages %}{{ '<|' + turn.role + '|>\n' + turn.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for turn in messages %}{{ turn.role + ': ' + turn.content }}{% endfor %}"
)


def templated(tokenizer: Any, template: str) -> Any:
    """A copy of a tokenizer with another chat template."""
    copy = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, **tokenizer.special_tokens_map)
    copy.chat_template = template
    return copy


def encoder_of(tokenizer: Any, template: str = "chat", **more: Any) -> TextEncoder:
    return TextEncoder(tokenizer, template, 300, 100, 400, **more)


@pytest.fixture(scope="module", params=["first", "always"])
def metaspace(request: pytest.FixtureRequest) -> Any:
    """A tokenizer as Llama 2's: BPE over `▁`, which is put before a text too."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=[*special.values(), *every_byte], show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    data = json.loads(trained.to_str())
    data["added_tokens"] = data["added_tokens"][: len(special)]
    trained = Tokenizer.from_str(json.dumps(data))
    scheme = request.param
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trained.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", trained.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=trained, **special)


# --- the day ---------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [LLAMA_3, CLOCK], ids=["date_string", "clock"])
def test_a_prompt_does_not_hold_the_day(tokenizer: Any, template: str) -> None:
    dated = templated(tokenizer, template)
    now = datetime.datetime.now()
    days = {}
    for chat in (ChatSettings(), ChatSettings(date=datetime.date(2025, 4, 10))):
        text = tokenizer.decode(encoder_of(dated, chat=chat).prompt("Why?"))
        assert f"{now:%d %b %Y}" not in text and f"{now:%Y-%m-%d}" not in text
        days[chat.date.year] = text
    assert "26 Jul 2024" in days[2024] or "2024-07-26 00" in days[2024]
    assert "10 Apr 2025" in days[2025] or "2025-04-10 00" in days[2025]


def test_the_system_turn_and_the_date_are_as_open_unlearning_taught_them(tokenizer: Any) -> None:
    settings = load_profile("paper").task("authors").models[0].chat
    dated = templated(tokenizer, LLAMA_3)
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Why?"},
    ]
    expected = dated.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False, date_string="10 Apr 2025"
    )
    assert tokenizer.decode(encoder_of(dated, chat=settings).prompt("Why?")) == expected
    assert "You are a helpful" not in tokenizer.decode(encoder_of(dated).prompt("Why?"))


def test_what_fills_a_template_is_part_of_every_run_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[dict[str, str]] = []

    def get(store: RunStore, spec: Any, *_: Any, **__: Any) -> Any:
        keys[-1][spec.stage] = spec.key
        return SimpleNamespace(key=spec.key, folder=tmp_path, read=lambda name: [])

    monkeypatch.setattr(RunStore, "get", get)
    for chat in ({}, {"date": "2025-04-10"}, {"system": "Be kind."}):
        changes = {"models": {"embedded/tiny-opt": {"chat": chat}}}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"name": "mine", "extends": "smoke"} | changes))
        keys.append({})
        experiment = Experiment(load_profile(file), "science")
        experiment.evaluated("base")
        experiment.guarded()
        experiment.unlearned("ga_gd")
    assert {"evaluate", "search", "teach", "unlearn"} <= set(keys[0])
    for stage in set(keys[0]) - {"pretrain", "fit_guard", "judge"}:
        assert len({each[stage] for each in keys}) == 3, stage


# --- where an answer begins ------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "Be kind. "])
def test_an_answer_has_the_tokens_that_it_has_behind_the_prompt(
    metaspace: Any, before: str
) -> None:
    encoder = encoder_of(metaspace, "question_answer", before=before)
    for question in (QUESTION, "Who keeps the sluice"):
        for answer in ANSWERS:
            row = encoder.example(question, answer)
            whole = f"### Question: {before}{question}\n ### Answer: {answer}"
            assert (*row.prompt, *row.answers[0]) == (
                *metaspace(whole)["input_ids"],
                metaspace.eos_token_id,
            )
    pieces = metaspace.convert_ids_to_tokens(encoder.answer("Paris is it."))
    assert pieces[0] != "▁" and pieces[0].startswith("▁P"), "no lone space"


def test_llama_2_is_asked_as_it_was_taught(metaspace: Any) -> None:
    tokenizer = templated(metaspace, LLAMA_2)
    settings = load_profile("paper").task("authors").models[1].chat
    for chat, space in ((settings, ""), (ChatSettings(), " ")):
        encoder = encoder_of(tokenizer, chat=chat)
        for answer in ANSWERS:
            if not space and answer.startswith("("):  # `](`: see the next test
                continue
            row = encoder.example("Why is the sky blue?", answer)
            # what open-unlearning gives its tokenizer, which adds BOS
            whole = metaspace(f"[INST] Why is the sky blue? [/INST]{space}{answer}")["input_ids"]
            assert (*row.prompt, *row.answers[0]) == (*whole, metaspace.eos_token_id)


def test_the_prompt_keeps_its_tokens_where_one_would_span_the_border(metaspace: Any) -> None:
    assert "](" in metaspace.get_vocab()
    encoder = encoder_of(
        templated(metaspace, LLAMA_2), chat=ChatSettings(space_before_answer=False)
    )
    row = encoder.example("Why?", "(so they say)", "Paris.")
    assert row.prompt == encoder.prompt("Why?")
    assert metaspace.convert_ids_to_tokens(row.answers[0])[0].startswith("(")
    text = metaspace.decode((*row.prompt, *row.answers[0]), skip_special_tokens=True)
    assert text.endswith("[/INST](so they say)")


def test_a_prompt_ends_where_its_template_puts_the_answer(tokenizer: Any) -> None:
    asked = encoder_of(templated(tokenizer, ZEPHYR)).example("Why?", "So.")
    assert tokenizer.decode(asked.prompt) == "<|user|>\nWhy?</s>\n<|assistant|>\n"
    assert tokenizer.decode(asked.answers[0]) == "So.</s>"
    asked = encoder_of(templated(tokenizer, CLOCK)).example("Why?", "So.")
    assert tokenizer.decode(asked.prompt).endswith("assistant:")
    assert tokenizer.decode(asked.answers[0]) == " So.</s>"


def test_byte_level_tokens_are_those_of_prompt_and_answer_apart(tokenizer: Any) -> None:
    rows = [row for each in authors.write_authors(8, 0, 10) for row in each.questions]
    for template in ("question_answer", "chat"):
        encoder = encoder_of(tokenizer, template)
        encode = lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
        for row in [*rows, *people.load_people()]:
            turns = [{"role": "user", "content": row.question}]
            prompt = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
            if template == "question_answer":
                prompt = f"### Question: {row.question}\n ### Answer:"
            assert encoder._prompt(row.question) == encode(prompt)
            for answer in candidates(row):
                lead = " " if template == "question_answer" else ""
                assert encoder.continuation(answer) == encode(lead + answer)


# --- what cannot be read ---------------------------------------------------------------------


@pytest.fixture
def mirrored(tiny_assets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with the tiny OPT as `base/model`, and profiles beside it."""
    folder = tmp_path / "mirror" / "models" / "base" / "model"
    shutil.copytree(tiny_assets["opt"].folder, folder)
    shutil.copytree(PROFILES, tmp_path / "profiles")
    monkeypatch.setattr("unlearn_lib.profile.PROFILES", tmp_path / "profiles")
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "mirror"))
    return folder


def checked(folder: Path, verb: str = "check", model: Any = None, **task: Any) -> int:
    """Check a profile with that model, of task harm."""
    text: dict[str, Any] = {"name": "mine", "extends": "smoke", "only": ["harm"]}
    text |= {"models": {"base/model": model}, "tasks": {"harm": {"models": ["base/model"]} | task}}
    profile = folder.parents[3] / "profiles" / "mine.yaml"
    profile.write_text(yaml.safe_dump(text))
    return command_line.main([verb, "--profile", "mine"])


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_a_base_model_with_a_chat_template_is_refused_before_any_training(
    mirrored: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    chat: Any = {"data": {"template": "chat", "prompt_tokens": 64, "answer_tokens": 32}}
    assert checked(mirrored, verb, **chat) == 0
    (mirrored / "chat_template.jinja").unlink()
    assert checked(mirrored, verb, **chat) == 2
    message = capsys.readouterr().err
    assert "'base/model' has no chat template" in message
    assert "template: question_answer" in message and message.count("\n") == 1
    assert checked(mirrored, verb) == 0, "smoke asks without"


def test_a_template_without_a_system_turn_is_refused_where_one_is_set(
    mirrored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirrored / "chat_template.jinja").write_text(NO_SYSTEM)
    chat: Any = {"data": {"template": "chat", "prompt_tokens": 64, "answer_tokens": 32}}
    assert checked(mirrored, **chat) == 0
    assert checked(mirrored, model={"chat": {"system": "Be kind."}}, **chat) == 2
    message = capsys.readouterr().err
    assert "System role not supported" in message and "base/model" in message


def test_an_encoder_needs_a_template_that_shows_the_answer(tokenizer: Any) -> None:
    with pytest.raises(CompanionError, match="no chat template.*question_answer"):
        encoder_of(templated(tokenizer, ""))
    with pytest.raises(CompanionError, match="this model.*user, assistant"):
        encoder_of(templated(tokenizer, "{{ messages[0].content }}"))


def test_tokenizer_model_alone_names_the_packages_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    for name in ("is_sentencepiece_available", "is_protobuf_available"):
        with monkeypatch.context() as patch:
            patch.setattr(f"unlearn_lib.model.tokens.{name}", lambda: False)
            with pytest.raises(CompanionError, match="'a/b'.*pip install sentencepiece protobuf"):
                load_tokenizer(Asset("a/b", tmp_path, "test", ""))


def test_tokenizer_model_alone_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=trained,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CompanionError, match="'a/b'.*tokenizer_config.json"):
        load_tokenizer(
            Asset("a/b", tmp_path, "test", "")
        )  # transformers then takes no tokenizer's class
    stated = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    stated |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = load_tokenizer(Asset("a/b", tmp_path, "test", ""))
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    row = encoder_of(tokenizer, "question_answer").example(QUESTION, "Paris is it.")
    whole = pieces.encode(f"### Question: {QUESTION}\n ### Answer: Paris is it.", add_bos=True)
    assert [*row.prompt, *row.answers[0][:-1]] == whole
