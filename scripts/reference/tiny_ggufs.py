"""The tiny models again as GGUF files, written with gguf-py, and their logits.

What a reader has to get right is all there: llama.cpp's tensor names, the interleaved rows of
Llama's query and key projections, quantized blocks, the metadata and, in the Llama file, the
vocabulary. Expected logits are what transformers computes from the file itself.
"""

import json

import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH
from transformers import AutoConfig, AutoModelForCausalLM

from . import tiny_expert_ggufs, tiny_family_ggufs, tiny_gemma4_ggufs
from .common import FIXTURES, float32_numbers, versions, write_json

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}

LARGEST_WEIGHT_ERROR = 0.13
"""Of the largest weight of a tensor: Q4_0 has steps of an eighth of a block's largest value, and
cuts one off at the other end. Rows in the wrong order are off by more than the largest weight."""

# The first rule whose text occurs in the Hugging Face name decides, if a row is whole blocks.
FILES = {
    "llama-quantized": (
        "llama-tied",
        LlamaFileType.MOSTLY_Q4_0,
        [
            ("self_attn", Quantization.Q4_0),
            ("mlp", Quantization.Q4_1),
            ("embed_tokens", Quantization.Q8_0),
        ],
    ),
    "qwen2-f16": ("qwen2", LlamaFileType.MOSTLY_F16, [("", Quantization.F16)]),
    "qwen3-mixed": (
        "qwen3",
        LlamaFileType.MOSTLY_BF16,
        [
            ("o_proj", Quantization.Q8_0),
            ("down_proj", Quantization.Q4_0),
            ("", Quantization.BF16),
        ],
    ),
}


def make(arguments) -> None:
    """Writes tiny-gguf/: a file and its expected logits for each entry of FILES."""
    tiny_family_ggufs.make(arguments)
    tiny_expert_ggufs.make(arguments)
    tiny_gemma4_ggufs.make(arguments)
    for name, (source, file_type, rules) in FILES.items():
        original = AutoModelForCausalLM.from_pretrained(
            FIXTURES / "tiny" / source, dtype=torch.float32
        )
        path = FIXTURES / "tiny-gguf" / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = _write_gguf(path, name, source, original, file_type, rules)
        imported = _import(path, original.config)
        _check_import(original, imported)
        _write_expected(path, source, stored, imported)


def _write_gguf(path, name, source, model, file_type, rules) -> dict[str, str]:
    """Writes the file; returns how each tensor is stored."""
    config = model.config
    writer = GGUFWriter(path, config.model_type)
    writer.add_name(f"Understory test model {name}")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "llama":
        writer.add_rope_dimension_count(head_dim)
    if config.model_type == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _add_tokenizer(writer, source)
    stored = _add_tensors(writer, model, rules)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add_tokenizer(writer: GGUFWriter, source: str) -> None:
    """The tokenizer of the model's directory, if it has one."""
    directory = FIXTURES / "tiny" / source
    if not (directory / "tokenizer.json").exists():
        return
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    kinds = {
        added["content"]: TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        for added in tokenizer["added_tokens"]
    }
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary[settings["bos_token"]])
    writer.add_eos_token_id(vocabulary[settings["eos_token"]])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(settings["chat_template"])


def _add_tensors(writer: GGUFWriter, model, rules) -> dict[str, str]:
    config = model.config
    names = get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    stored = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if config.model_type == "llama" and ".q_proj." in name:
            values = _interleave_halves(values, config.num_attention_heads)
        elif config.model_type == "llama" and ".k_proj." in name:
            values = _interleave_halves(values, config.num_key_value_heads)
        kind = _storage(name, values, rules)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, quants.quantize(values, kind), raw_dtype=kind)
        stored[target] = kind.name
    return stored


def _interleave_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows of a head where Hugging Face rotates its two halves."""
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _storage(name: str, values: np.ndarray, rules) -> Quantization:
    if values.ndim == 1:
        return Quantization.F32
    kind = next(kind for part, kind in rules if part in name)
    block = 32 if kind.name.startswith("Q") else 1
    if values.shape[1] % block != 0:
        raise ValueError(f"{name}: rows of {values.shape[1]} are not whole {kind.name} blocks")
    return kind


def _import(path, original_config):
    """The model as transformers reads it, but for Qwen3's head size, which it doesn't read."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type == "qwen3":
        config.head_dim = original_config.head_dim
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        config=config,
        gguf_file=path.name,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    return model.eval()


def _check_import(original, imported) -> None:
    """The imported weights are the original ones but for their quantization."""
    expected = dict(original.named_parameters())
    for name, parameter in imported.named_parameters():
        scale = expected[name].abs().max()
        error = ((parameter - expected[name]).abs().max() / scale).item()
        if error > LARGEST_WEIGHT_ERROR:
            raise ValueError(f"{name} is off by {error:.3f} of its largest weight")


def _write_expected(path, source: str, stored: dict[str, str], model) -> None:
    tiny = json.loads((FIXTURES / "tiny" / source / "expected.json").read_text(encoding="utf-8"))
    prompts = []
    for prompt in tiny["prompts"]:
        prompts.append(
            {
                "name": prompt["name"],
                "token_ids": prompt["token_ids"],
                "last_logits": float32_numbers(_last_logits(model, prompt)),
            }
        )
    double = model.to(torch.float64)
    noise = max(
        (_last_logits(double, prompt) - torch.tensor(prompt["last_logits"])).abs().max().item()
        for prompt in prompts
    )
    write_json(
        path.with_suffix(".expected.json"),
        {
            "made_with": versions("gguf", "torch", "transformers"),
            "computed_in": "float32, eager attention, dequantized weights",
            "max_abs_difference_to_float64_products": float(f"{noise:.2e}"),
            "stored": stored,
            "prompts": prompts,
        },
    )


def _last_logits(model, prompt: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([prompt["token_ids"]])).logits[0, -1]
