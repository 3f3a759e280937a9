"""The tiny OPT of profile smoke: random weights, and a tokenizer of the texts it will read."""

import contextlib
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast, set_seed

from unlearn_lib.assets import Asset, cache_folder, require_space


def tiny_opt(texts: Sequence[str], context: int = 512) -> Asset:
    """Make a tiny OPT with random weights and a byte-level BPE tokenizer of the given texts.

    For profile smoke: seconds to train, and the real architecture of the paper's models. It is
    kept in the cache folder under a name that its texts decide, and is the same everywhere.
    """
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    folder = cache_folder() / f"tiny-opt-{digest[:12]}"
    if not (folder / "model.safetensors").is_file():
        require_space(folder.parent, needed=2**24)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as partial:
            target = Path(partial) / "whole"
            tokenizer = _byte_level_tokenizer(texts)
            set_seed(0)
            config = OPTConfig(
                vocab_size=len(tokenizer),
                hidden_size=96,
                word_embed_proj_dim=96,
                ffn_dim=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=context,
                dropout=0.0,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            OPTForCausalLM(config).save_pretrained(target)
            tokenizer.save_pretrained(target)
            with contextlib.suppress(OSError):  # another process was first
                target.rename(folder)
    return Asset("embedded/tiny-opt", folder, "embedded", digest)


def _byte_level_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(texts, 1024, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )
