"""Load causal language models, add and save LoRA adapters, and name the original model.

The original model h_θo of the papers is never a second copy when LoRA is used: it is the same
weights with the adapter switched off (`reference`).
"""

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    set_seed,
)
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from unlearn_lib.assets import Asset, check_safetensors
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import LoraSettings, ModelSettings

UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError)

logging.disable_progress_bar()
logging.set_verbosity_error()


PACKED = "packed"


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention (SDPA) that never multiplies tokens of one packed example with another's.

    Args:
        packed_lengths: `Packed.lengths` of a packed row; None for ordinary batches.
    """
    if packed_lengths is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shared = packed_lengths[0]
    keys, values = (tensor.split(packed_lengths, dim=2) for tensor in (key, value))
    outputs, start = [], 0
    for place, part in enumerate(query.split(packed_lengths, dim=2)):
        rows = attention_mask[:, :, start : start + part.shape[2]]
        mask = rows[..., start : start + part.shape[2]]
        seen_key, seen_value = keys[place], values[place]
        if place > 0 and shared > 0:
            mask = torch.cat((rows[..., :shared], mask), -1)
            seen_key = torch.cat((keys[0], seen_key), 2)
            seen_value = torch.cat((values[0], seen_value), 2)
        if part.shape[2] > 0:
            outputs.append(_attend(module, part, seen_key, seen_value, mask, **options))
        start += part.shape[2]
    return torch.cat(outputs, dim=1), None


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """Attention of one packed example, [1, n, heads, width].

    On a CPU in bf16 the products are written out, with scores and softmax in float32: for a few
    hundred tokens SDPA's fused kernel takes two to three times as long there, backward above all.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or options.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    key, value = (repeat_kv(part, query.shape[1] // part.shape[1])[0] for part in (key, value))
    bias = torch.zeros(mask.shape[1:]).masked_fill(~mask[0], -torch.inf)
    scores = torch.baddbmm(bias, query[0].float(), key.float().transpose(1, 2), alpha=scale)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(0, 1)[None]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


@dataclass
class LanguageModel:
    """A model with its tokenizer and a note of what was asked for and what was got."""

    model: Any
    tokenizer: Any
    hardware: dict[str, str] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """The longest input in tokens; the tokenizer's limit where the model states none."""
        stated = getattr(self.model.config, "max_position_embeddings", None)
        return int(stated or self.tokenizer.model_max_length)


def choose_device(asked: str) -> torch.device:
    """Return the device of a profile: `auto` takes a GPU when there is one.

    Raises:
        CompanionError: `cuda` was asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise CompanionError(
            "The profile asks for device 'cuda' and torch sees no GPU here; set 'device: auto' "
            "in the profile or run on a machine with a GPU."
        )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(found if asked == "auto" else asked)


def choose_precision(asked: str, device: torch.device) -> torch.dtype:
    """Return the dtype to hold weights in: the one asked for where the hardware computes in it.

    bfloat16 or float16 on a processor without such arithmetic is emulated and slow, so float32
    is taken there, and the fallback is printed and recorded with every run.
    """
    if asked == "float32":
        return torch.float32
    if device.type == "cuda":
        usable = asked == "float16" or torch.cuda.is_bf16_supported()
    else:
        usable = asked == "bfloat16" and torch.cpu._is_avx512_bf16_supported()
    if not usable:
        print(f"{asked} is not native on this {device.type}; computing in float32 instead.")
        return torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float16


def load(asset: Asset, settings: ModelSettings, device: str = "auto") -> LanguageModel:
    """Load a causal language model and its tokenizer from the files of an asset.

    Args:
        asset: what `assets.find_model` or a run gave.
        settings: precision, quantisation and whether all weights will be trained (then the
            weights are held in float32 and autocast computes in the precision asked for).
        device: `auto`, `cpu` or `cuda`.

    Raises:
        CompanionError: no such device, or files that transformers cannot read.
    """
    place = choose_device(device)
    dtype = choose_precision(settings.precision, place)
    options: dict[str, Any] = {"dtype": torch.float32 if settings.lora is None else dtype}
    if settings.quantization != "none":
        options = _quantised(settings.quantization, place)
    options["attn_implementation"] = PACKED
    try:
        tokenizer = AutoTokenizer.from_pretrained(asset.folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            asset.folder, trust_remote_code=False, weights_only=True, **options
        )
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0]
        raise CompanionError(f"The model '{asset.id}' from {asset.source}: {reason}") from error
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
    return LanguageModel(model.eval(), tokenizer, hardware)


def _quantised(kind: str, device: torch.device) -> dict[str, Any]:
    if kind == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
        return {"quantization_config": config, "dtype": torch.float16, "device_map": device.type}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"quantization_config": config, "dtype": torch.bfloat16, "device_map": device.type}


def make_trainable(language_model: LanguageModel, settings: ModelSettings, seed: int) -> None:
    """Add a LoRA adapter in float32, drawn from `seed`, or open all weights for training."""
    set_seed(seed)
    model = language_model.model
    if settings.lora is None:
        if settings.quantization != "none":
            raise CompanionError(
                f"'{settings.id}' is quantised, so its weights cannot be trained; give it 'lora'."
            )
        model.requires_grad_(True)
    elif settings.quantization != "none":
        model = _ready_for_training(model)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if settings.lora is None:
        return
    language_model.model = get_peft_model(model, _lora_config(settings.lora, model))


def _ready_for_training(quantised: Any) -> Any:
    return prepare_model_for_kbit_training(quantised, use_gradient_checkpointing=False)


def _lora_config(settings: LoraSettings, model: Any) -> LoraConfig:
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    layers = None
    if settings.layers is not None:
        last = model.config.num_hidden_layers - 1
        if not 0 <= settings.layers[0] <= settings.layers[1] <= last:
            raise CompanionError(
                f"'lora.layers' is {list(settings.layers)}, but the model's blocks are 0 to {last}."
            )
        layers = list(range(settings.layers[0], settings.layers[1] + 1))
        targets = _projections(model) if isinstance(targets, str) else targets
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


def _projections(model: Any) -> list[str]:
    """Names of all linear projections within the blocks: PEFT takes no `all-linear` for some."""
    linear = torch.nn.Linear, Conv1D
    names = [name for name, part in model.named_modules() if isinstance(part, linear)]
    return sorted({name.rsplit(".", 1)[-1] for name in names if re.search(r"\.\d+\.", name)})


@contextlib.contextmanager
def reference(model: Any, frozen: Any = None) -> Iterator[Any]:
    """Give the original model h_θo for a while, in evaluation mode and without gradients.

    Args:
        model: the model in training. With a LoRA adapter the adapter is switched off; there is
            no second copy of the weights.
        frozen: another model that stands for the original: the copy that `freeze_copy` made when
            all weights are trained, or the base model when an adapter was merged into `model`.
    """
    with torch.no_grad():
        if frozen is not None or not isinstance(model, PeftModel):
            yield frozen
            return
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was_training)


def freeze_copy(model: Any) -> Any:
    """Copy a fully trained model before its first step, or return None where LoRA needs none."""
    if isinstance(model, PeftModel):
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what training changed as safetensors: the adapter alone, or the whole model."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = None  # else the folder that the weights were loaded from
    model.save_pretrained(folder, safe_serialization=True)
    if not isinstance(model, PeftModel):
        tokenizer.save_pretrained(folder)


def stack(
    asset: Asset, folders: Sequence[Path], fresh: Callable[[Asset], LanguageModel]
) -> LanguageModel:
    """Load what runs made of a model: the last whole weights, with the adapters after them added.

    Args:
        asset: the weights that the first run began with.
        folders: of the runs, in order; each holds `model`.
        fresh: loads the files of an asset.
    """
    adapters: list[Path] = []
    for folder in folders:
        if (folder / "model" / "adapter_model.safetensors").is_file():
            adapters.append(folder)
        else:
            asset = Asset(asset.id, folder / "model", "run", folder.name)
            adapters = []
    found = fresh(asset)
    for folder in adapters:
        load_adapter(found, folder / "model", merge=True)
    return found


def load_adapter(
    language_model: LanguageModel, folder: Path, trainable: bool = False, merge: bool = False
) -> None:
    """Put a saved adapter on a freshly loaded model.

    Args:
        folder: what `save` wrote.
        trainable: keep it in float32 and open it for training; else it is fixed and held in the
            model's precision.
        merge: add it to the weights, so that a new adapter can be put on top.

    Raises:
        CompanionError: the adapter file is missing, truncated, altered or of another model.
    """
    try:
        check_safetensors(folder / "adapter_model.safetensors")
        if trainable and getattr(language_model.model, "is_quantized", False):
            language_model.model = _ready_for_training(language_model.model)
        adapted = PeftModel.from_pretrained(
            language_model.model, folder, autocast_adapter_dtype=trainable, is_trainable=trainable
        )
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0].rstrip(":. ")
        raise CompanionError(
            f"The adapter in {folder} cannot be put on this model: {reason}; delete that folder "
            "and run again."
        ) from error
    language_model.model = adapted.merge_and_unload() if merge else adapted.eval()
