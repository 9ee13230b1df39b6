"""The tiny models of the families as GGUF files, and what transformers computes from them.

Names come from gguf-py's tables, metadata are those that llama.cpp's converter writes. Expected
logits are those of the original model with the weights that the file holds: read back, dequantized
and put in the order and under the names of Hugging Face.
"""

import json

import numpy as np
import torch
from gguf import GGMLQuantizationType as Quantization
from gguf import GGUFReader, GGUFWriter, RopeScalingType, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

from .common import FIXTURES, float32_numbers, versions, write_json
from .tiny_models import greedy, load

# The directory, llama.cpp's name, and what the file can't say, which is set as the file means it.
FILES = {
    "gemma2": ("gemma2", MODEL_ARCH.GEMMA2, {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3-wrapped", MODEL_ARCH.GEMMA3, {}),
    "ministral3": ("ministral3", MODEL_ARCH.MISTRAL3, {}),
    "phi3": ("phi3", MODEL_ARCH.PHI3, {}),
    "phi4-mini": ("phi4-mini", MODEL_ARCH.PHI3, {}),
    "granite": ("granite", MODEL_ARCH.GRANITE, {}),
    "smollm3": ("smollm3", MODEL_ARCH.SMOLLM3, {}),
    "olmo2": ("olmo2", MODEL_ARCH.OLMO2, {}),
    "olmo3": ("olmo3", MODEL_ARCH.OLMO2, {}),
    "glm4": ("glm4", MODEL_ARCH.GLM4, {}),
}

MINIMUM_MARGIN = 1e-3
"""Of the two best logits; the seed is chosen for the directory's model, where it is larger."""

REORDERED = {MODEL_ARCH.LLAMA, MODEL_ARCH.MISTRAL3, MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3}
"""Families whose query and key rows the converter reorders."""


def make(_arguments) -> None:
    """Writes a file and its expected logits for each entry of FILES."""
    for name, (source, arch, changes) in FILES.items():
        path = FIXTURES / "tiny-gguf" / f"{name}.gguf"
        stored = _write_gguf(path, load(FIXTURES / "tiny" / source, torch.float32), arch)
        model = load(FIXTURES / "tiny" / source, torch.float32, changes)
        _read_back(path, model, arch)
        _write_expected(path, source, stored, model)


def _write_gguf(path, model, arch) -> dict[str, str]:
    config = model.config.get_text_config()
    writer = GGUFWriter(path, _arch_name(arch))
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
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _add_rope(writer, config, head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    _add_particulars(writer, config, arch)
    stored = {}
    for name, parameter in _text_parameters(model):
        values = parameter.detach().numpy()
        target = _gguf_name(name, arch, config.num_hidden_layers)
        values = _converted(name, values, arch, config)
        kind = _storage(values)
        writer.add_tensor(target, quants.quantize(values, kind), raw_dtype=kind)
        stored[target] = kind.name
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _storage(values: np.ndarray) -> Quantization:
    if values.ndim == 1:
        return Quantization.F32
    return Quantization.F16 if values.shape[1] % 32 else Quantization.Q8_0


def _arch_name(arch) -> str:
    return MODEL_ARCH_NAMES[arch]


def _add_rope(writer: GGUFWriter, config, head_dim: int) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_attn_factors(rope["attention_factor"])
    elif rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretched = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors((1 + np.log(stretched) / np.log(original)) ** 0.5)
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)


def _add_particulars(writer: GGUFWriter, config, arch) -> None:
    if arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    elif arch == MODEL_ARCH.GRANITE:
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    elif arch == MODEL_ARCH.MISTRAL3:
        writer.add_attn_temperature_scale(config.rope_parameters["llama_4_scaling_beta"])
    elif getattr(config, "model_type", "") == "olmo3":
        kinds = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_sliding_window_pattern(kinds)


def _text_parameters(model):
    """Names and tensors of the text model; those of images are left out."""
    for name, parameter in model.named_parameters():
        if "vision" not in name and "multi_modal" not in name:
            yield name.replace("model.language_model.", "model."), parameter


def _gguf_name(name: str, arch, layers: int) -> str:
    names = get_tensor_name_map(arch, layers)
    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if target is None:
        raise ValueError(f"{name} has no name in {_arch_name(arch)}")
    return target


def _is_gemma(arch) -> bool:
    return arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)


def _heads(name: str, config) -> int | None:
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def _converted(name: str, values: np.ndarray, arch, config) -> np.ndarray:
    heads = _heads(name, config)
    if arch in REORDERED and heads:
        rows, columns = values.shape
        halves = values.reshape(heads, 2, rows // heads // 2, columns)
        values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
    if _is_gemma(arch) and name.endswith("norm.weight"):
        values = values + 1
    return values


def _restored(name: str, values: np.ndarray, arch, config) -> np.ndarray:
    heads = _heads(name, config)
    if arch in REORDERED and heads:
        rows, columns = values.shape
        pairs = values.reshape(heads, rows // heads // 2, 2, columns)
        values = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
    if _is_gemma(arch) and name.endswith("norm.weight"):
        values = values - 1
    return values


def _read_back(path, model, arch) -> None:
    """Gives the model the weights that the file holds."""
    config = model.config.get_text_config()
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with torch.no_grad():
        for name, parameter in _text_parameters(model):
            tensor = tensors[_gguf_name(name, arch, config.num_hidden_layers)]
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            values = _restored(name, values.reshape(parameter.shape), arch, config)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def _write_expected(path, source: str, stored: dict[str, str], model) -> None:
    tiny = json.loads((FIXTURES / "tiny" / source / "expected.json").read_text(encoding="utf-8"))
    prompts = [
        {
            "name": prompt["name"],
            "token_ids": prompt["token_ids"],
            "last_logits": float32_numbers(_last_logits(model, prompt)),
            "greedy": greedy(model, torch.tensor([prompt["token_ids"]]), MINIMUM_MARGIN),
        }
        for prompt in tiny["prompts"]
    ]
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
