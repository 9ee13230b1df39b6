"""Small checkpoints of every pre-quantized kind that is read, and what their weights decode to.

compressed-tensors and bitsandbytes quantize and expand with the libraries themselves
(`pip install compressed-tensors bitsandbytes`); MXFP4 expands with transformers. GPTQ and AWQ are
packed by their published layouts, as AutoGPTQ and AutoAWQ store them, since neither installs without
a GPU. `expected.safetensors` holds each weight as f32 under its plain name.
"""

import json

import torch
from safetensors.torch import save_file

from .common import FIXTURES

ROWS, COLUMNS, GROUP = 16, 128, 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def make(_arguments) -> None:
    """Writes quantized/: a directory for each kind."""
    for kind in KINDS:
        torch.manual_seed(7)
        directory = FIXTURES / "quantized" / kind.__name__.strip("_").replace("_", "-")
        directory.mkdir(parents=True, exist_ok=True)
        config, tensors, expected = kind()
        (directory / "config.json").write_text(
            json.dumps({"quantization_config": config}, indent=1) + "\n", encoding="utf-8"
        )
        save_file({n: t.contiguous() for n, t in tensors.items()}, directory / "model.safetensors")
        expected = {name: weight.float().contiguous() for name, weight in expected.items()}
        save_file(expected, directory / "expected.safetensors")


def _weight(rows=ROWS, columns=COLUMNS) -> torch.Tensor:
    return torch.randn(rows, columns) / 8


def _words(numbers: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Packs along `dim`, the first number in the lowest bits."""
    numbers = numbers.to(torch.int64).movedim(dim, 0)
    groups = numbers.reshape(-1, 32 // bits, *numbers.shape[1:])
    shifts = (torch.arange(32 // bits) * bits).reshape(1, -1, *[1] * (numbers.dim() - 1))
    words = (groups << shifts).sum(1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return words.movedim(0, dim)


def _gptq(bits, act_order, symmetric, version):
    groups = COLUMNS // GROUP
    g_idx = torch.arange(COLUMNS) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(COLUMNS)]
    scales = (torch.rand(groups, ROWS) / 16 + 0.01).half()
    quants = torch.randint(0, 2**bits, (COLUMNS, ROWS))
    zeros = torch.randint(1, 2**bits, (groups, ROWS))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    weight = (quants - zeros[g_idx]).float() * scales[g_idx].float()
    if act_order:
        weight = weight.half()
    tensors = {
        "m.qweight": _words(quants, bits, 0),
        "m.qzeros": _words(zeros - int(version == "gptq"), bits, 1),
        "m.scales": scales,
        "m.g_idx": g_idx.to(torch.int32),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}
    config["checkpoint_format"] = version
    return config, tensors, {"m.weight": weight.T}


def gptq():
    return _gptq(4, False, False, "gptq")


def gptq_symmetric():
    return _gptq(4, False, True, "gptq")


def gptq_act_order():
    return _gptq(4, True, False, "gptq")


def gptq_v2():
    return _gptq(4, False, False, "gptq_v2")


def gptq_8_bits():
    return _gptq(8, False, True, "gptq")


def awq():
    groups = COLUMNS // GROUP
    scales = (torch.rand(groups, ROWS) / 16 + 0.01).half()
    quants = torch.randint(0, 16, (COLUMNS, ROWS))
    zeros = torch.randint(0, 16, (groups, ROWS))
    weight = (quants - zeros.repeat_interleave(GROUP, 0)).float()
    weight *= scales.repeat_interleave(GROUP, 0).float()

    def pack(numbers):
        return _words(numbers.reshape(len(numbers), -1, 8)[..., AWQ_ORDER].flatten(1), 4, 1)

    tensors = {"m.qweight": pack(quants), "m.qzeros": pack(zeros), "m.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return config, tensors, {"m.weight": weight.T}


def _float8(weight, scale):
    return (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8_blocks():
    """Edge blocks are cut in both directions; one module was not converted."""
    rows, columns, block = 40, 160, 32
    weight = _weight(rows, columns)
    scales = torch.rand(-(-rows // block), -(-columns // 64)) / 100 + 0.001
    full = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(64, 1)[:, :columns]
    stored = _float8(weight, full)
    plain = torch.randn(4, 8).bfloat16()
    config = {
        "quant_method": "fp8",
        "weight_block_size": [block, 64],
        "modules_to_not_convert": ["plain"],
    }
    tensors = {"m.weight": stored, "m.weight_scale_inv": scales, "plain.weight": plain}
    return config, tensors, {"m.weight": stored.float() * full, "plain.weight": plain}


def fp8_tensor():
    """One scale for all; rows that are no whole blocks."""
    weight = _weight(6, 40)
    scale = torch.tensor(0.0123)
    stored = _float8(weight, scale)
    tensors = {"m.weight": stored, "m.weight_scale": scale}
    return {"quant_method": "fp8"}, tensors, {"m.weight": stored.float() * scale}


def mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 8, 4, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 8, 4), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)
    tensors = {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}
    return {"quant_method": "mxfp4"}, tensors, {"experts.down_proj": expected}


def _compressed(name, weights):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = QuantizationArgs(**weights)
    weight = _weight().bfloat16()
    extra = {}
    if name == "nvfp4-pack-quantized":
        groups = weight.float().reshape(ROWS, -1, 16)
        divisor = torch.tensor([448 * 6 / weight.float().abs().max()])
        scale = (groups.abs().amax(-1) / 6 * divisor).clamp(max=448)
        scale = scale.to(torch.float8_e4m3fn).float()
        zero = None
        extra["weight_global_scale"] = divisor
    elif arguments.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        scale, zero = calculate_qparams(low, high, arguments)
    else:
        groups = weight.reshape(ROWS, -1, arguments.group_size)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    state = {"weight": weight, "weight_scale": scale, **extra}
    if zero is not None and not arguments.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.load_from_registry(name)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressed = compressor.compress(dict(state), scheme)
    restored = compressor.decompress(dict(compressed), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": name,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return config, {f"m.{key}": value for key, value in compressed.items()}, {"m.weight": restored}


def compressed_fp8():
    return _compressed(
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    )


def compressed_int4():
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    return _compressed("pack-quantized", {**weights, "symmetric": True})


def compressed_int4_asymmetric():
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    return _compressed("pack-quantized", {**weights, "symmetric": False})


def compressed_int8():
    return _compressed(
        "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    )


def compressed_nvfp4():
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    return _compressed("nvfp4-pack-quantized", {**weights, "symmetric": True})


def _bitsandbytes(kind, nested, dtype):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = _weight(48, 128).to(dtype)
    packed, state = quantize_4bit(
        weight, blocksize=64, compress_statistics=nested, quant_type=kind
    )
    expected = dequantize_4bit(packed, state)
    tensors = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
    }
    return config, {"m.weight": packed, **tensors}, {"m.weight": expected}


def bitsandbytes_nf4():
    return _bitsandbytes("nf4", False, torch.float32)


def bitsandbytes_nf4_nested():
    return _bitsandbytes("nf4", True, torch.bfloat16)


def bitsandbytes_fp4():
    return _bitsandbytes("fp4", False, torch.bfloat16)


KINDS = [
    gptq,
    gptq_symmetric,
    gptq_act_order,
    gptq_v2,
    gptq_8_bits,
    awq,
    fp8_blocks,
    fp8_tensor,
    mxfp4,
    compressed_fp8,
    compressed_int4,
    compressed_int4_asymmetric,
    compressed_int8,
    compressed_nvfp4,
    bitsandbytes_nf4,
    bitsandbytes_nf4_nested,
    bitsandbytes_fp4,
]
