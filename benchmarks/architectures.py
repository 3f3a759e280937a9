"""Print docs/architectures.md: how every causal architecture of transformers is measured here.

    python -m benchmarks.architectures > docs/architectures.md

A tiny random model of each is saved, loaded by `loading.load` and compared with the same model in
eager attention, one plain row at a time: logits of known answers, and greedy answers. Attention
windows are four tokens, so that prompts and answers exceed them.
"""

import contextlib
import inspect
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import ByteLevelBPETokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearn_lib.assets import Asset
from unlearn_lib.model import generate, loading
from unlearn_lib.model.packing import pack, packed_logits
from unlearn_lib.model.tokens import Example, special_ids
from unlearn_lib.settings import ModelSettings
from unlearn_lib.util import CompanionError

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 10_000_000
"""Parameters; a tiny configuration that stays above has parts of a fixed size."""
WIDTH = """hidden_size n_embd d_model emb_dim word_embed_proj_dim embedding_size d_embed dim_model
    intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff dff dim_ff
    rnn_hidden_size lru_width"""
TWO = """num_hidden_layers n_layers n_layer num_layers decoder_layers encoder_layers
    num_key_value_heads num_experts_per_tok moe_k"""
FOUR = """num_attention_heads n_head n_heads num_heads decoder_attention_heads
    encoder_attention_heads num_experts num_local_experts n_routed_experts
    sliding_window attention_chunk_size window_size attention_window_size"""
ONE = "n_group topk_group mamba_n_groups n_groups first_k_dense_replace"
SIXTEEN = """head_dim d_head kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim
    state_size mamba_d_head mamba_d_state swa_head_dim index_head_dim"""
THIRTY_TWO = "moe_intermediate_size shared_expert_intermediate_size"
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTH.split(), 64),
    **dict.fromkeys(TWO.split(), 2),
    **dict.fromkeys(FOUR.split(), 4),
    **dict.fromkeys(ONE.split(), 1),
    **dict.fromkeys(SIXTEEN.split(), 16),
    **dict.fromkeys(THIRTY_TWO.split(), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("rotary_dim", "mamba_n_heads"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
    "is_decoder": True,
}
LATENT = """axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash
    minicpm3 youtu"""
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT.split(), {"num_key_value_heads": 4}),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "dots1": {"n_shared_experts": 1},
    "reformer": {"axial_pos_embds": False},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), {"num_hidden_layers": 4}),
    **dict.fromkeys(("qwen4_exp_text", "lfm3", "recurrent_gemma"), {"num_hidden_layers": 4}),
    **dict.fromkeys(("kimi_linear", "bailing_hybrid"), {"num_hidden_layers": 4}),
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "longcat_flash": {
        "expert_ffn_hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_key_value_heads": 4,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320},
}
"""What some architectures need besides."""
TEXT = """What loading does with every causal architecture of transformers {version}, written by
`python -m benchmarks.architectures`. *Right*: a tiny random model, in float32, gives the logits and
greedy answers of plain rows in eager attention; with windows of four tokens, where it has windows.
*Refused*: it is not loaded, and the message says why. *Not built*: no tiny model of it can be made
from its configuration alone, so it was not tried; every model that is loaded is checked all the
same."""
EXAMPLES = [
    Example((11, 30, 42, 55, 61, 77, 80, 93), ((101, 140, 155), (160,), (171, 182, 193, 204, 215))),
    Example((11, 30, 231, 242, 250), ((261, 33, 275),)),
    Example((66, 45, 37, 29, 18, 118, 127, 136, 149, 151, 163, 172), ((181, 190), (44, 55, 66))),
]


def tiny_tokenizer() -> Any:
    """Make a tokenizer of 320 tokens or fewer."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    trained, names = ByteLevelBPETokenizer(), list(special.values())
    texts = [inspect.getsource(sys.modules[__name__])]
    trained.train_from_iterator(texts, 320, special_tokens=names, show_progress=False)
    return hf.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)


def tiny_model(kind: str, tokenizer: Any) -> Any:
    """Return a tiny random causal model of an architecture.

    Raises:
        Exception: whatever its classes raise over a tiny configuration.
    """
    config_class = hf.CONFIG_MAPPING[kind]
    names: set[str] = set()
    for each in config_class.__mro__:
        names |= set(getattr(each, "__annotations__", {}))
    sizes = {"vocab_size": len(tokenizer)} | special_ids(tokenizer) | SIZES | OWN.get(kind, {})
    config = config_class(**{name: sizes[name] for name in sizes if name in names})
    model_class = hf.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    with torch.device("meta"):
        size = sum(part.numel() for part in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"no tiny configuration: {size / 1e6:.0f} million parameters")
    hf.set_seed(0)
    return model_class._from_config(config).float().eval()


@torch.no_grad()
def _plain(model: Any, row: tuple[int, ...]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([row])).logits[0]
    return logits


def _differences(folder: Path, loaded: loading.LanguageModel) -> Iterator[str]:
    """What a loaded model gives that plain rows in eager attention do not."""
    try:
        plain = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    except (KeyError, ValueError):
        plain = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [(len(each.prompt), (*each.prompt, *own)) for each in EXAMPLES for own in each.answers]
    expected = torch.cat([_plain(plain, row)[start - 1 : -1] for start, row in rows])
    with torch.no_grad():
        logits = packed_logits(loaded.model, pack(EXAMPLES))
    distance = float((logits - expected).abs().max() / expected.std(-1).mean())
    if not distance < 2e-3:
        yield f"logits differ by {distance:.2g} standard deviations"
    prompts = [each.prompt for each in EXAMPLES]
    for prompt, answer in zip(prompts, generate.continuations(loaded, prompts, 6), strict=True):
        best = _plain(plain, (*prompt, *answer))[len(prompt) - 1 :].argmax(-1).tolist()
        whole = len(answer) == 6 or best[len(answer)] in loaded.ends
        if best[: len(answer)] != answer or not whole:
            yield "greedy answers differ"


def judged(kind: str, tokenizer: Any) -> tuple[str, str]:
    """Return `right`, `refused`, `wrong` or `not built`, and how or why."""
    try:
        model = tiny_model(kind, tokenizer)
    except Exception as error:
        return "not built", f"{str(error) or repr(error):.120}".splitlines()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = ModelSettings(id=kind, precision="float32", lora=None)
        try:
            loaded = loading.load(Asset(kind, folder, "benchmark", ""), settings, "cpu")
        except CompanionError as error:
            return "refused", str(error)
        differences = sorted(set(_differences(folder, loaded)))
        return (
            ("wrong", "; ".join(differences)) if differences else ("right", loaded.hardware["rows"])
        )


def main() -> None:
    """Print the document."""
    warnings.simplefilter("ignore")
    tokenizer = tiny_tokenizer()
    with contextlib.redirect_stdout(sys.stderr):
        rows = [(kind, *judged(kind, tokenizer)) for kind in ARCHITECTURES]
    verdicts = Counter(row[1] for row in rows)
    print(f"# Architectures\n\n{TEXT.format(version=hf.__version__)}\n")
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) + ".\n")
    print("| `model_type` | | how, or why not |\n|---|---|---|")
    for kind, verdict, detail in rows:
        print(f"| {kind} | {verdict} | {detail.replace('|', '/')} |")


if __name__ == "__main__":
    main()
