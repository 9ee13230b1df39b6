"""SmolLM2-135M-Instruct from its GGUF file through transformers, its tokenizer put right."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_tokenizer(gguf: Path):
    """The tokenizer of the GGUF file.

    transformers' import doesn't know `tokenizer.ggml.pre = smollm`, which splits digits one by one
    before the byte-level step, so that is put back here.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def load_model(gguf: Path, dtype: torch.dtype):
    """The model with dequantized weights, in eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()
