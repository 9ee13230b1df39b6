"""SmolLM2-135M-Instruct out of the GGUF file, as transformers sees it, with its tokenizer put right."""

from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF_CONTROL_TOKEN = 3


def load_tokenizer(gguf: Path):
    """The tokenizer of the GGUF file.

    transformers' import loses two things that the file states: `tokenizer.ggml.pre = smollm`
    splits digits one by one before the byte-level step, and all tokens of the control type are
    special, not just the three that have a role.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    control = [token for token, kind in zip(tokens, types) if kind == GGUF_CONTROL_TOKEN]
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    if backend.get_vocab_size() != len(tokens):
        raise ValueError("a control token is missing from the vocabulary")
    return tokenizer


def load_model(gguf: Path, dtype: torch.dtype):
    """The model with dequantized weights, in eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()
