"""The tiny models with mixtures of experts as GGUF files, and what transformers computes from them.

As `tiny_family_ggufs`, with experts in stacks: gate, up and down apart, as llama.cpp's converter
writes them. gpt-oss has its experts in MXFP4, as OpenAI's own files have.
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import MODEL_ARCH

from . import tiny_family_ggufs as families
from .common import FIXTURES
from .tiny_models import load

FILES = {
    "mixtral": ("mixtral", MODEL_ARCH.LLAMA, {}),
    "qwen2-moe": ("qwen2-moe", MODEL_ARCH.QWEN2MOE, {}),
    "qwen3-moe": ("qwen3-moe", MODEL_ARCH.QWEN3MOE, {}),
    "gpt-oss": ("gpt-oss", MODEL_ARCH.GPT_OSS, {"swiglu_limit": 7.0}),
}


def make(_arguments) -> None:
    """Writes a file and its expected logits for each entry of FILES."""
    for name, (source, arch, changes) in FILES.items():
        path = FIXTURES / "tiny-gguf" / f"{name}.gguf"
        stored = _write_gguf(path, load(FIXTURES / "tiny" / source, torch.float32), arch)
        model = load(FIXTURES / "tiny" / source, torch.float32, changes)
        _read_back(path, model, arch)
        families._write_expected(path, source, stored, model)


def _write_gguf(path, model, arch) -> dict[str, str]:
    config = model.config
    writer = GGUFWriter(path, families._arch_name(arch))
    writer.add_name(f"Understory test model {path.stem}")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    families._add_rope(writer, config, head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_local_experts if arch != MODEL_ARCH.QWEN2MOE else config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if arch == MODEL_ARCH.GPT_OSS:
        writer.add_expert_feed_forward_length(config.intermediate_size)
    elif arch != MODEL_ARCH.LLAMA:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == MODEL_ARCH.QWEN2MOE:
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    stored = {}
    for target, name, view in _pieces(model, arch):
        values = np.ascontiguousarray(view.detach().numpy())
        values = families._converted(name, values, arch, config)
        kind = _storage(target, values, arch)
        writer.add_tensor(target, quants.quantize(values, kind), raw_dtype=kind)
        stored[target] = kind.name
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _storage(target: str, values: np.ndarray, arch) -> Quantization:
    if target.endswith("_exps.weight"):
        return Quantization.MXFP4 if arch == MODEL_ARCH.GPT_OSS else Quantization.Q8_0
    if values.ndim == 1 or "ffn_gate_inp" in target or target.endswith("_exps.bias"):
        return Quantization.F32
    return Quantization.Q8_0


def _pieces(model, arch):
    """The tensors of the file: their names, Hugging Face's, and views of the model's parameters."""
    layers = model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        block, _, part = name.partition(".mlp.experts.")
        if part:
            yield from _experts(f"blk.{block.split('.')[-1]}", name, part, parameter, arch)
        elif name.endswith("shared_expert_gate.weight"):
            layer = name.split(".")[2]
            yield f"blk.{layer}.ffn_gate_inp_shexp.weight", name, parameter[0]
        elif name.endswith("sinks"):
            yield f"blk.{name.split('.')[2]}.attn_sinks.weight", name, parameter
        else:
            name = name.replace(".mlp.gate.weight", ".block_sparse_moe.gate.weight") if (
                arch == MODEL_ARCH.LLAMA
            ) else name
            # A layer without experts is named as in a model without.
            is_dense = any(f".mlp.{part}_proj." in name for part in ("gate", "up", "down"))
            names = MODEL_ARCH.QWEN2 if is_dense else arch
            yield families._gguf_name(name, names, layers), name, parameter


def _experts(block: str, name: str, part: str, parameter, arch):
    in_turns = arch == MODEL_ARCH.GPT_OSS
    kind = "bias" if part.endswith("_bias") else "weight"
    if part.startswith("down_proj"):
        turned = in_turns and kind == "weight"
        yield f"{block}.ffn_down_exps.{kind}", name, parameter.mT if turned else parameter
        return
    width = parameter.shape[-1 if in_turns else 1] // 2
    for place, which in enumerate(("gate", "up")):
        if in_turns:
            view = parameter[..., place::2]
            view = view.mT if kind == "weight" else view
        else:
            view = parameter[:, place * width : (place + 1) * width]
        yield f"{block}.ffn_{which}_exps.{kind}", name, view


def _read_back(path, model, arch) -> None:
    """Gives the model the weights that the file holds."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with torch.no_grad():
        for target, name, view in _pieces(model, arch):
            tensor = tensors[target]
            values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(view.shape)
            values = families._restored(name, values, arch, model.config)
            view.copy_(torch.from_numpy(values.astype(np.float32)))
