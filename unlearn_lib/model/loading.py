"""Load causal language models, add and save LoRA adapters, and name the original model.

The original model h_θo of the papers is never a second copy when LoRA is used: it is the same
weights with the adapter switched off (`reference`).
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers as hf
from filelock import FileLock
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from tokenizers import ByteLevelBPETokenizer

from unlearn_lib.assets import Asset, cache_folder, require_space
from unlearn_lib.model.attention import settle_attention
from unlearn_lib.model.packing import PACKED
from unlearn_lib.model.tokens import context_of, end_ids, load_tokenizer, special_ids
from unlearn_lib.model_settings import LoraSettings, ModelSettings, Precision
from unlearn_lib.util import CompanionError, digest, refuse_processes, say

TINY, TINY_CONTEXT = "embedded/tiny-opt", 512
LastAdapter = Literal["merged", "unquantised", "float32", "trainable"]

hf.utils.logging.disable_progress_bar()
hf.utils.logging.set_verbosity_error()


@dataclass
class LanguageModel:
    """A model with its tokenizer and a note of the hardware and precision asked for and got."""

    model: Any
    tokenizer: Any
    hardware: dict[str, str] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """The longest input in tokens; the tokenizer's limit where the model states none."""
        return context_of(self.model.config) or int(self.tokenizer.model_max_length)

    @functools.cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer (`tokens.end_ids`)."""
        return end_ids(self.tokenizer, getattr(self.model, "generation_config", None))


def choose_device(device: str) -> torch.device:
    """Return the device of a profile: `auto` takes a GPU when there is one.

    Raises:
        CompanionError: `cuda` is asked for and there is none, or there are several processes.
    """
    refuse_processes()
    available = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and available == "cpu":
        raise CompanionError(
            "The profile asks for a GPU and torch sees no GPU here: set 'device: auto' in it."
        )
    return torch.device(available if device == "auto" else device)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype to hold weights in: the one asked for where the hardware computes in it.

    bfloat16 or float16 on a processor without such arithmetic is emulated and slow, so float32
    is taken there, and the fallback is printed and recorded with every run.
    """
    on_gpu = device.type == "cuda"
    bfloat16 = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    native = {"float32": True, "float16": on_gpu, "bfloat16": bfloat16}[precision]
    if not native:
        say(f"{precision} is not native on this {device.type}; computing in float32 instead.")
    return getattr(torch, precision) if native else torch.float32


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Turn what the libraries say of files they cannot read into one sentence."""
    try:
        yield
    except CompanionError:
        raise
    except Exception as error:  # json, safetensors and transformers each raise their own kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(":. ")
        raise CompanionError(f"{what} cannot be read: {reason}; {remedy}.") from error


def _require_fit(lacking: Iterable[str], left_over: Iterable[str], plan: str) -> None:
    """Refuse weights that are not those which a model or an adapter has.

    What is lacking would be drawn at random, and what is left over would count for nothing.
    """
    lacking, left_over = sorted(lacking), sorted(left_over)
    if lacking or left_over:
        tensor, fault = (lacking[0], "lack") if lacking else (left_over[0], "have besides")
        count = len(lacking) + len(left_over)
        raise ValueError(f"{count} tensors do not fit {plan}: its weights {fault} '{tensor}'")


def load(asset: Asset, settings: ModelSettings, device: str = "auto") -> LanguageModel:
    """Load a causal language model and its tokenizer from the files of an asset.

    Args:
        asset: what `assets.find_model` or a run gave.
        settings: precision, quantisation and whether all weights will be trained (then the
            weights are held in float32 and autocast computes in the precision asked for).
        device: `auto`, `cpu` or `cuda`.

    Raises:
        CompanionError: no such device, files that transformers cannot read, a tokenizer
            without an end token, weights that do not fit the configuration, or as in
            `attention.settle_attention`.
    """
    place = choose_device(device)
    dtype = choose_precision(settings.precision, place)
    options: dict[str, Any] = {"trust_remote_code": False, "weights_only": True}
    options["dtype"] = torch.float32 if settings.lora is None else dtype
    if settings.quantization != "none":
        eight = settings.quantization == "8bit"
        options["dtype"] = torch.float16 if eight else torch.bfloat16
        options["device_map"] = place.type
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        config = hf.BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight, **four)
        options["quantization_config"] = config
    with _explained(f"The model '{asset.id}' from {asset.source}", "fetch or make it again"):
        tokenizer = load_tokenizer(asset)
        options["output_loading_info"] = True
        load_model = functools.partial(hf.AutoModelForCausalLM.from_pretrained, asset.folder)
        try:
            model, report = load_model(attn_implementation=PACKED, **options)
        except Exception:  # Falcon, GPT-J and GPT-Neo know no attention but their own
            model, report = load_model(**options)
        _require_fit(report["missing_keys"], report["unexpected_keys"], "config.json")
        tokens, rows = tokenizer.vocab_size, model.get_input_embeddings().weight.shape[0]
        if tokens > rows:  # but for tokens that a kind of tokenizer adds by itself (Qwen 2)
            raise ValueError(f"its tokenizer has {tokens} tokens, and its weights {rows}")
    for part in model.modules():  # bitsandbytes' NF4 repacked for a CPU is wrong under an adapter
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    if tokenizer.eos_token_id is None:
        raise CompanionError(
            f"The tokenizer of '{asset.id}' has no end token, so no answer would end; set "
            "'eos_token' in its tokenizer_config.json."
        )
    if settings.quantization == "none":
        model.to(place)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    hardware = {
        "device": place.type,
        "precision_asked": settings.precision,
        "precision_got": str(options["dtype"]).removeprefix("torch."),
        "quantization": settings.quantization,
        "weights_from": asset.source,
    }
    language_model = LanguageModel(model.eval(), tokenizer, hardware)
    # Answers are the model's own choices: its file may also punish repetition, or force tokens.
    own = special_ids(tokenizer) | {"eos_token_id": language_model.ends}
    model.generation_config = hf.GenerationConfig(**own)
    hardware["rows"] = settle_attention(model, tokenizer, language_model.context, asset.id)
    hardware["answers_end_at"] = " ".join(tokenizer.convert_ids_to_tokens(language_model.ends))
    return language_model


def load_chain(
    asset: Asset,
    folders: Sequence[Path],
    settings: ModelSettings,
    device: str = "auto",
    last: LastAdapter = "merged",
) -> LanguageModel:
    """Load what a chain of runs made of a model: base weights, adapters, or whole weights.

    A run that trained all weights replaces everything before it. Every adapter but the last is
    added to the weights before the next one is put on. Quantised weights would round much of it
    away, so there it stays beside them.

    Args:
        asset: the weights that the first run began with.
        folders: of the runs, in order; each holds `model`. None: the asset alone.
        last: what happens to the last adapter. `merged`: it is added to the weights (authors,
            continual, people; and before a new adapter is trained). `unquantised`: the same,
            unless the weights are quantised (book). `float32`: only to float32 weights, since
            half precision rounds the sum (harm). `trainable`: it is opened for training (book,
            `start: target`).

    Raises:
        CompanionError: as in `load` and `load_adapter`.
    """
    adapters: list[Path] = []
    for folder in (folder / "model" for folder in folders):
        if (folder / "adapter_model.safetensors").is_file():
            adapters.append(folder)
        else:
            asset, adapters = Asset(asset.id, folder, "run", folder.parent.name), []
    language_model = load(asset, settings, device)
    merges_last = {
        "merged": True,
        "unquantised": settings.quantization == "none",
        "float32": language_model.model.dtype == torch.float32,
        "trainable": False,
    }[last]
    for adapter in adapters:
        merge = merges_last or adapter != adapters[-1]
        load_adapter(language_model, adapter, last == "trainable" and not merge, merge)
    return language_model


def load_adapter(
    language_model: LanguageModel, folder: Path, trainable: bool = False, merge: bool = False
) -> None:
    """Put a saved adapter on a freshly loaded model.

    Args:
        folder: what `save` wrote.
        trainable: keep it in float32 and open it for training; else it is fixed and held in the
            model's precision.
        merge: make it part of the model, so that a new adapter can be put on top: it is added to
            the weights, or stays beside those that are quantised.

    Raises:
        CompanionError: the adapter file is missing, truncated, altered or of another model; or it
            is to be added to tied weights.
    """
    model = language_model.model
    with _explained(f"The adapter in {folder}", "delete that folder and run again"):
        with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
            names = file.keys()
            there = {f"{name} {file.get_slice(name).get_shape()}" for name in names}
        if trainable and getattr(model, "is_quantized", False):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        adapted = PeftModel.from_pretrained(
            model, folder, autocast_adapter_dtype=trainable, is_trainable=trainable
        )
        state = get_peft_model_state_dict(adapted)
        own = {f"{name} {list(tensor.shape)}" for name, tensor in state.items()}
        _require_fit(own - there, there - own, "adapter_config.json")
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("its weights hold nan or inf")
    language_model.model = _merged(adapted) if merge else adapted.eval()


def _merged(adapted: Any) -> Any:
    """Add an adapter to the weights; return the model without it.

    What an adapter adds to int8 or NF4 weights is below their steps and would be lost, so it
    stays beside them, in a hook that no later adapter, saving or `reference` touches.
    """
    _refuse_tied(adapted)
    for layer in (part for part in adapted.modules() if isinstance(part, LoraLayer)):
        base = layer.get_base_layer()
        if base.weight.is_floating_point():
            layer.merge()
            continue
        name = layer.active_adapters[0]
        parts = (layer.lora_A[name], layer.lora_B[name], layer.scaling[name])
        base.register_forward_hook(functools.partial(_add_product, *parts))
    return adapted.unload()


def _add_product(lora_a: Any, lora_b: Any, scaling: float, _: Any, inputs: Any, output: Any) -> Any:
    """Forward hook of a layer: what PEFT's own adapter computes."""
    product = lora_b(lora_a(inputs[0].to(lora_a.weight.dtype))) * scaling
    return output + product.to(output.dtype)


def _refuse_tied(adapted: Any) -> None:
    """Refuse an adapter on a weight that two layers share: adding it would change both."""
    names = defaultdict(list)
    for name, parameter in adapted.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    shared = [name for group in names.values() if len(group) > 1 for name in group]
    tied = [name.split(".")[-3] for name in shared if name.endswith(".base_layer.weight")]
    if tied:
        raise CompanionError(
            f"'lora.targets' names '{tied[0]}', whose weights another layer of this model shares "
            "(tied embeddings), so the adapter cannot be added to them: leave it out."
        )


def make_trainable(language_model: LanguageModel, settings: ModelSettings, seed: int) -> None:
    """Add a LoRA adapter in float32, drawn from `seed`, or open all weights for training.

    Raises:
        CompanionError: all weights of a quantised model, blocks that the model does not have, or
            an adapter on tied embeddings.
    """
    hf.set_seed(seed)
    model = language_model.model
    if settings.lora is None:
        if settings.quantization != "none":
            raise CompanionError(
                f"'{settings.id}' is quantised, so its weights cannot be trained; give it 'lora'."
            )
        model.requires_grad_(True)
    elif settings.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if settings.lora is not None:
        try:
            language_model.model = get_peft_model(model, _lora_config(settings.lora, model))
        except ValueError as error:  # no such projections
            raise CompanionError(f"'lora' does not fit '{settings.id}': {error}") from error
        _refuse_tied(language_model.model)


def _lora_config(settings: LoraSettings, model: Any) -> LoraConfig:
    blocks = model.config.num_hidden_layers
    first, last = settings.layers or (0, blocks - 1)
    if not 0 <= first <= last < blocks:
        raise CompanionError(
            f"'lora.layers' is {[first, last]}, but the model's blocks are 0 to {blocks - 1}."
        )
    outside = "|".join(str(block) for block in range(blocks) if not first <= block <= last)
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=rf".*\.({outside})\..*" if outside else None,
        task_type="CAUSAL_LM",
    )


@contextlib.contextmanager
def reference(model: Any, frozen: Any = None) -> Iterator[Any]:
    """Give the original model h_θo for a while, in evaluation mode and without gradients.

    Args:
        model: the model in training. With a LoRA adapter the adapter is switched off; there is
            no second copy of the weights.
        frozen: another model that stands for the original: a copy from before the first step when
            all weights are trained, or the base model when an adapter was merged into `model`.
    """
    with torch.no_grad(), contextlib.ExitStack() as undo:
        if frozen is None:
            undo.callback(model.train, model.training)
            undo.enter_context(model.disable_adapter())
            model.eval()
        yield model if frozen is None else frozen


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what training changed as safetensors: the adapter alone, or the whole model."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = None  # else the folder that the weights were loaded from
    model.save_pretrained(folder, safe_serialization=True)
    if not isinstance(model, PeftModel):
        tokenizer.save_pretrained(folder)


def tiny_opt(texts: Sequence[str], context: int = TINY_CONTEXT) -> Asset:
    """Make a tiny OPT with random weights and a byte-level BPE tokenizer of the texts.

    For profile smoke: seconds to train, and the real architecture of the paper's models. It is
    kept in the cache folder under a name that its texts decide, and is the same everywhere.
    """
    sha256 = digest(list(texts))
    folder = cache_folder() / f"tiny-opt-{sha256[:12]}"
    require_space(folder.parent, needed=2**24)
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer_config.json").is_file():  # the last file that is written
            _write_tiny_opt(texts, context, folder)
    return Asset(TINY, folder, "embedded", sha256)


def _write_tiny_opt(texts: Sequence[str], context: int, folder: Path) -> None:
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    trained = ByteLevelBPETokenizer()
    names = list(special.values())
    trained.train_from_iterator(texts, 1024, special_tokens=names, show_progress=False)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
    shape: dict[str, Any] = {"hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 256}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0}
    shape |= {"max_position_embeddings": context, **special_ids(tokenizer)}
    config = hf.OPTConfig(vocab_size=len(tokenizer), **shape)
    hf.set_seed(0)
    hf.OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
