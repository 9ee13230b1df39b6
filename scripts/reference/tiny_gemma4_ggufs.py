"""The tiny models of Gemma 4 as GGUF files, and what transformers computes from them.

As `tiny_family_ggufs`. llama.cpp's converter gives sizes of full layers the names that others have for all
layers, lists the numbers in which layers differ, and keeps which frequencies of a full layer are rotated in
a tensor of divisors. Gates and ups of experts are one stack.
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import MODEL_ARCH

from . import tiny_family_ggufs as families
from .common import FIXTURES
from .tiny_models import load

FILES = ("gemma4", "gemma4-moe")

UNROTATED = 1e30
"""The divisor of the frequency of a pair that is not rotated."""

EXPERT_SCALES = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}
"""Names that the converter gives by hand."""


def make(_arguments) -> None:
    """Writes a file and its expected logits for each entry of FILES."""
    for name in FILES:
        path = FIXTURES / "tiny-gguf" / f"{name}.gguf"
        model = load(FIXTURES / "tiny" / name, torch.float32)
        stored = _write_gguf(path, model)
        _read_back(path, model)
        families._write_expected(path, name, stored, model)


def _write_gguf(path, model) -> dict[str, str]:
    config = model.config
    writer = GGUFWriter(path, families._arch_name(MODEL_ARCH.GEMMA4))
    writer.add_name(f"Understory test model {path.stem}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    is_windowed = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_sliding_window_pattern(is_windowed)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input or 0)
    layers = [model.model.layers[index] for index in range(config.num_hidden_layers)]
    widths = [layer.mlp.gate_proj.out_features for layer in layers]
    writer.add_feed_forward_length(widths if len(set(widths)) > 1 else widths[0])
    _add_heads(writer, config, layers, is_windowed)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    stored = {}
    for target, values in _pieces(model):
        values = values.detach().numpy()
        kind = _storage(target, values)
        writer.add_tensor(target, quants.quantize(values, kind), raw_dtype=kind)
        stored[target] = kind.name
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add_heads(writer: GGUFWriter, config, layers, is_windowed: list[bool]) -> None:
    full, windowed = (
        next(layer for layer, found in zip(layers, is_windowed) if found == kind)
        for kind in (False, True)
    )
    full_dim, windowed_dim = full.self_attn.head_dim, windowed.self_attn.head_dim
    writer.add_key_length(full_dim)
    writer.add_value_length(full_dim)
    writer.add_key_length_swa(windowed_dim)
    writer.add_value_length_swa(windowed_dim)
    heads = [
        layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
        for layer in (windowed, full)
    ]
    if heads[0] == heads[1]:
        writer.add_head_count_kv(heads[0])
    else:
        writer.add_head_count_kv([heads[0] if kind else heads[1] for kind in is_windowed])
    rope = config.rope_parameters
    writer.add_rope_dimension_count(full_dim)
    writer.add_rope_dimension_count_swa(windowed_dim)
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    rotated = int(full_dim * rope["full_attention"]["partial_rotary_factor"] / 2)
    divisors = [1.0] * rotated + [UNROTATED] * (full_dim // 2 - rotated)
    writer.add_tensor("rope_freqs.weight", np.array(divisors, dtype=np.float32))


def _storage(target: str, values: np.ndarray) -> Quantization:
    if values.ndim == 1 or "ffn_gate_inp" in target:
        return Quantization.F32
    return Quantization.F16 if values.shape[-1] % 32 else Quantization.Q8_0


def _pieces(model):
    """The tensors of the file: their names, and the model's parameters and buffers."""
    layers = model.config.num_hidden_layers
    tied = {"lm_head.weight"}
    for name, values in model.state_dict(keep_vars=True).items():
        if name in tied:
            continue
        part = name.split(".", 3)[-1]
        if part in EXPERT_SCALES:
            yield f"blk.{name.split('.')[2]}.{EXPERT_SCALES[part]}", values
            continue
        is_bare = part == "layer_scalar" or ".experts." in name
        yield families._gguf_name(f"{name}.weight" if is_bare else name, MODEL_ARCH.GEMMA4, layers), values


def _read_back(path, model) -> None:
    """Gives the model the weights that the file holds."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with torch.no_grad():
        for target, values in _pieces(model):
            tensor = tensors[target]
            found = quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
            values.copy_(torch.from_numpy(found.astype(np.float32)))
