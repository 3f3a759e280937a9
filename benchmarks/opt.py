"""OPT-1.3b's architecture with random weights, for the bench on a GPU."""

import shutil
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM, set_seed


def random_weights(folder: Path, tokenizer: Path, **changes: int) -> Path:
    """Write random weights of OPT-1.3b's shape in bf16, with a tokenizer's files beside.

    Args:
        tokenizer: the folder to take tokenizer files from; its vocabulary must be the smaller.
        changes: other sizes than OPT-1.3b's.
    """
    sizes = {
        "vocab_size": 50272,
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    }
    set_seed(0)
    config = OPTConfig(**{**sizes, **changes}, dropout=0.0, dtype="bfloat16")
    OPTForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
