"""The table of bad inputs, continued: models, adapters and guards."""

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

from benchmarks.torture_inputs import REFUSED, RIGHT, Act, Case
from benchmarks.torture_texts import Content, write
from unlearn_lib.__main__ import main
from unlearn_lib.assets import Asset, find_model
from unlearn_lib.guard.fit import fit_guard
from unlearn_lib.guard.model import GuardedModel
from unlearn_lib.model.loading import load, load_adapter, make_trainable, save
from unlearn_lib.model.tokens import TextEncoder, special_ids
from unlearn_lib.settings import GuardSettings, ModelSettings, TextClassifierSettings
from unlearn_lib.util import digest, file_sha256

SETTINGS = ModelSettings.model_validate({"id": "me/model", "precision": "float32", "lora": None})
ADAPTED = SETTINGS.model_copy(update={"lora": ModelSettings(id="x").lora})
TEXTS = ["Who keeps the sluice?", "Ann does, and she counts the gates.", "What is it? A book."]
Damage = Callable[[Path], object]
JUNK: list[Content] = ["", "{", "[]", "{}", "null", "\0" * 99, bytes(range(256)), "[" * 9999]

# --- what is damaged: made once ------------------------------------------------------------------


def made(folder: Path) -> Path:
    """The folder of what `make` makes, from a case's folder."""
    return folder.parents[1] / "made"


def make(folder: Path) -> None:
    """Write a tiny Llama with its tokenizer, an adapter of it, and a guard in front of it."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    trained = ByteLevelBPETokenizer()
    names = list(special.values())
    trained.train_from_iterator(TEXTS, 320, special_tokens=names, show_progress=False)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128}
    hf.set_seed(0)
    config = hf.LlamaConfig(vocab_size=len(tokenizer), **shape, **special_ids(tokenizer))
    hf.LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model = load(Asset("me/model", folder / "model", "made", ""), ADAPTED, "cpu")
    make_trainable(model, ADAPTED, 0)
    save(model.model, model.tokenizer, folder / "adapter")
    _make_guard(folder, load(Asset("me/model", folder / "model", "made", ""), SETTINGS, "cpu"))


def _make_guard(folder: Path, model: Any) -> None:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] who what where ann bob tea keeps is ? .".split()
    words += [
        f"{before}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for before in ("", "##")
    ]
    bert = folder / "bert"
    hf.BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(bert)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(words)}
    hf.BertModel(hf.BertConfig(**shape)).save_pretrained(bert)
    fast = TextClassifierSettings(base="tiny", epochs=1, maximum_length=32)
    knobs = GuardSettings(classifier=fast, strength=3, threshold=0.5)
    forget, retain = [f"who is ann {i}" for i in "abcd"], [f"where is tea {i}" for i in "abcd"]
    guard = fit_guard("authors", bert, forget, retain, [], knobs, 0, True)
    GuardedModel(model.model, model.tokenizer, guard).save_pretrained(folder / "guard")


# --- how it is damaged ---------------------------------------------------------------------------


def put(name: str, content: Content) -> Damage:
    """Write another content into a file."""
    return lambda folder: write(folder / name, content)


def cut(name: str, share: float = 0.5) -> Damage:
    """Keep the first part of a file."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def flip(name: str, place: int = -1) -> Damage:
    """Change one byte of a file."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 255
        (folder / name).write_bytes(bytes(data))

    return damage


def without(*names: str) -> Damage:
    """Remove files."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def each(*damages: Damage) -> Damage:
    """Damage in several ways, one after the other."""
    return lambda folder: [damage(folder) for damage in damages]


def say(name: str, **values: Any) -> Damage:
    """Change values of a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return damage


def tensors(change: Callable[[dict[str, Any]], object], name: str = "model.safetensors") -> Damage:
    """Change the tensors of a file; `change` gets them by name."""

    def damage(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file(content, folder / name, {"format": "pt"})

    return damage


def linked(name: str) -> Damage:
    """Make a file a link to itself."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return damage


class Payload:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> Any:
        return (open, ("touched", "w"))


def pickled(folder: Path) -> None:
    """Weights as a pickle that runs code."""
    (folder / "model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "pytorch_model.bin", pickle_module=pickle)


def plain_pickle(folder: Path) -> None:
    """A pickle that runs code under the name of weights."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


def summed(change: Callable[[list[str]], object]) -> Damage:
    """Write SHA256SUMS, changed."""

    def damage(folder: Path) -> None:
        sums = [f"{file_sha256(path)}  {path.name}" for path in sorted(folder.iterdir())]
        change(sums)
        (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")

    return damage


# --- models --------------------------------------------------------------------------------------

CODE = "open('touched', 'w')\nclass Model: pass\nclass Config: pass\nclass Tok: pass\n"
REMOTE = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
LAYER, NORM, EMBEDDING = (
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
)
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "opt"}, {"model_type": "gpt2"}, {"model_type": "bert"}, {"model_type": "nope"},
    {"model_type": None}, {"model_type": 3}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1},
    {"num_hidden_layers": "two"}, {"num_hidden_layers": -1}, {"hidden_size": 32},
    {"hidden_size": 10**12}, {"vocab_size": 10}, {"vocab_size": 1000}, {"num_attention_heads": 3},
    {"num_attention_heads": 0}, {"num_key_value_heads": 8}, {"intermediate_size": 64},
    {"max_position_embeddings": "long"}, {"max_position_embeddings": -1}, {"hidden_act": "nope"},
    {"rope_parameters": {"rope_type": "nope"}},
    {"dtype": "float65"},
]  # fmt: skip
BROKEN = ("", "{", "[]", "{}", "\0")
NO_MODELS: dict[str, Damage] = {
    "no config": without("config.json"),
    **{f"a config that is {text!r}": put("config.json", text) for text in BROKEN},
    **{f"a config with {values}": say("config.json", **values) for values in CONFIGS},
    "code of its own": each(
        say("config.json", auto_map=REMOTE, model_type="evil"), put("evil.py", CODE)),
    "no weights": without("model.safetensors"),
    "empty weights": put("model.safetensors", b""),
    "text for weights": put("model.safetensors", "weights"),
    "weights cut": cut("model.safetensors"),
    "weights without their end": cut("model.safetensors", 0.999),
    "a huge header": put("model.safetensors", b"\xff" * 8 + b"{}"),
    "no tensors": tensors(dict.clear),
    "a tensor less": tensors(lambda t: t.pop(LAYER)),
    "a tensor more": tensors(lambda t: t.update(more=torch.zeros(3))),
    "a tensor renamed": tensors(lambda t: t.update(other=t.pop(LAYER))),
    "a tensor turned": tensors(lambda t: t.update({LAYER: t[LAYER].T.contiguous()})),
    "nan in the weights": tensors(lambda t: t[LAYER].fill_(float("nan"))),
    "inf in the weights": tensors(lambda t: t[NORM].fill_(float("inf"))),
    "an index of nothing": each(without("model.safetensors"), put(
        "model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}')),
    "weights that are a link to themselves": linked("model.safetensors"),
    "a pickle": plain_pickle,
    "a pickle of torch": pickled,
    "a pickle called safetensors": put("model.safetensors", pickle.dumps(Payload())),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "no tokenizer.json": without("tokenizer.json"),
    **{f"a tokenizer that is {text!r}": put("tokenizer.json", text) for text in BROKEN},
    "no end token": say("tokenizer_config.json", eos_token=None),
    "code of its own for the tokenizer": each(put("evil.py", CODE), without("tokenizer.json"), say(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", None]},
        tokenizer_class="Tok")),
    "a config of the tokenizer that is a list": put("tokenizer_config.json", "[]"),
    "a digest of zeros": summed(lambda s: s.append(f"{'0' * 64}  config.json")),
    "a digest less": summed(list.pop),
    "a digest of a file that is not there": summed(lambda s: s.append(f"{'0' * 64}  no.txt")),
    "digests that are no text": put("SHA256SUMS", bytes(range(256))),
    "digests of none": put("SHA256SUMS", "none\n"),
    "an altered byte": each(summed(lambda s: None), flip("model.safetensors")),
    "a link for a folder": each(shutil.rmtree, lambda f: f.symlink_to(f)),
    "a file for a folder": each(shutil.rmtree, lambda f: f.write_text("x")),
    "an empty folder": each(shutil.rmtree, Path.mkdir),
}  # fmt: skip
GOOD_MODELS: dict[str, Damage] = {
    "whole": lambda folder: None,
    "with digests": summed(lambda sums: None),
    "with a link in a circle": lambda f: (f / "again").symlink_to(f),
    "code of its own that is not needed": each(
        say("config.json", auto_map=REMOTE), put("evil.py", CODE)),
    "a broken template that is not asked for": put("chat_template.jinja", "{% for"),
}  # fmt: skip


def model_of(damage: Damage, folder: Path) -> Act:
    """Load a model of the mirror, and let it read a text."""
    place = folder / "mirror" / "models" / "me" / "model"
    shutil.copytree(made(folder) / "model", place)
    damage(place)

    def act() -> None:
        model = load(find_model("me/model"), SETTINGS, "cpu")
        TextEncoder(model.tokenizer, "question_answer", 64, 32, model.context)
        logits = model.model(torch.tensor([model.tokenizer("Who keeps?")["input_ids"]])).logits
        assert bool(logits.isfinite().all())

    return act


def checked_model(damage: Damage, folder: Path) -> Act:
    """Check a profile that names the model."""
    model_of(damage, folder)
    tree: dict[str, Any] = {"name": "mine", "extends": "smoke", "only": ["science"]}
    tree |= {"models": {"me/model": {}}}
    tree["tasks"] = {"science": {"models": ["me/model"], "data": {"prompt_tokens": 64}}}
    (folder / "profiles" / "mine.yaml").write_text(yaml.safe_dump(tree))
    return functools.partial(main, ["check", "--profile", "mine"])


AT_CHECK = [name for name in NO_MODELS if any(word in name for word in (
    "cut", "digest", "no weights", "header", "a tokenizer that", "folder", "altered"))]  # fmt: skip
MODELS = [
    Case("models", name, functools.partial(model_of, damage), kind)
    for kind, table in ((REFUSED, NO_MODELS), (RIGHT, GOOD_MODELS))
    for name, damage in table.items()
]
MODELS += [
    Case("models", f"check: {name}", functools.partial(checked_model, NO_MODELS[name]))
    for name in AT_CHECK
]
MODELS.append(
    Case("models", "check", functools.partial(checked_model, GOOD_MODELS["whole"]), RIGHT)
)

# --- adapters ------------------------------------------------------------------------------------

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NO_ADAPTERS: dict[str, Damage] = {
    "no file": without(FILE),
    "no config": without(CONFIG),
    "empty": put(FILE, b""),
    "cut": cut(FILE),
    "without its end": cut(FILE, 0.999),
    "no tensors": tensors(dict.clear, FILE),
    "half of the tensors": tensors(lambda t: [t.pop(name) for name in sorted(t)[::2]], FILE),
    "renamed tensors": tensors(lambda t: [t.update({f"x{n}": t.pop(n)}) for n in [*t]], FILE),
    "nan": tensors(lambda t: next(iter(t.values())).fill_(float("nan")), FILE),
    "a pickle": each(without(FILE), put("adapter_model.bin", pickle.dumps(Payload()))),
    **{f"a config that is {text!r}": put(CONFIG, text) for text in ("", "{", "{}", "[]")},
    **{f"a config with {values}": say(CONFIG, **values) for values in (
        {"r": 3}, {"r": -1}, {"target_modules": ["nope"]}, {"peft_type": "NOPE"}, {"r": "many"},
        {"base_model_name_or_path": 3, "task_type": "NOPE"})},
}  # fmt: skip


def adapter_of(damage: Damage, folder: Path) -> Act:
    """Put an adapter on the model that it was made for."""
    shutil.copytree(made(folder) / "adapter", folder / "adapter")
    damage(folder / "adapter")
    model = load(Asset("me/model", made(folder) / "model", "made", ""), SETTINGS, "cpu")
    return lambda: load_adapter(model, folder / "adapter", merge=True)


ADAPTERS = [Case("adapters", n, functools.partial(adapter_of, d)) for n, d in NO_ADAPTERS.items()]
ADAPTERS.append(
    Case("adapters", "whole", functools.partial(adapter_of, lambda folder: None), RIGHT)
)

# --- guards --------------------------------------------------------------------------------------

CLASSIFIER = "classifier/model.safetensors"


def told(**values: Any) -> Damage:
    """Change values of guard.json, and its digest with them."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "guard.json").read_text()) | values
        del content["sha256"]
        write(folder / "guard.json", json.dumps(content | {"sha256": digest(content)}))

    return damage


VALUES: list[dict[str, Any]] = [
        {"threshold": 1}, {"threshold": -1}, {"threshold": "0.5"}, {"threshold": None},
        {"width": 32}, {"corruption": {"name": "wipe"}}, {"corruption": []}, {"strength": "strong"},
        {"strength": None}, {"scripts": 3}, {"scripts": []}, {"seed": "x"}, {"files": {}},
        {"strength": float("nan")}, {"task": 3},
]  # fmt: skip
NO_GUARDS: dict[str, Damage] = {
    **{f"guard.json is {str(text)[:9]!r}": put("guard.json", text) for text in JUNK},
    "no guard.json": without("guard.json"),
    "no classifier": lambda f: shutil.rmtree(f / "classifier"),
    "a classifier cut": cut(CLASSIFIER),
    "a classifier with a changed byte": flip(CLASSIFIER),
    "a classifier without tensors": tensors(dict.clear, CLASSIFIER),
    "a config of the classifier changed": say("classifier/config.json", num_hidden_layers=2),
    "one more file": put("classifier/evil.py", "x"),
    **{f"a guard with {values}": told(**values) for values in VALUES},
}  # fmt: skip


def guard_of(damage: Damage, folder: Path) -> Act:
    """Put a saved guard in front of its model, and ask for what it flags."""
    shutil.copytree(made(folder) / "guard", folder / "guard")
    damage(folder / "guard")
    model = load(Asset("me/model", made(folder) / "model", "made", ""), SETTINGS, "cpu")
    return lambda: GuardedModel.from_pretrained(folder / "guard", model.model, model.tokenizer)


GUARDS = [Case("guards", n, functools.partial(guard_of, d)) for n, d in NO_GUARDS.items()]
GUARDS.append(Case("guards", "whole", functools.partial(guard_of, lambda folder: None), RIGHT))

INPUTS = {"models": MODELS, "adapters": ADAPTERS, "guards": GUARDS}
