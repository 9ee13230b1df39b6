"""The tiny gpt-oss with its experts in MXFP4, as OpenAI's own safetensors files have them.

`M_blocks` `[experts, outputs, inputs / 32, 16]` holds two numbers a byte, the even input in the low half, and
`M_scales` the exponents of powers of two; outputs of gate and up take turns. Expected are the logits of
transformers with the weights that its own decoder makes of these tensors.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from .common import FIXTURES, write_json
from .tiny_experts import tiny_experts
from .tiny_models import _write_expected

SOURCE = FIXTURES / "tiny" / "gpt-oss"
TARGET = FIXTURES / "tiny" / "gpt-oss-mxfp4"
SEED = 405
"""Of the prompts: none has a near-tie."""

MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def make(_arguments) -> None:
    """Writes the directory: its weights packed, and what the decoded ones compute."""
    TARGET.mkdir(parents=True, exist_ok=True)
    packed, decoded = {}, {}
    for name, weight in load_file(SOURCE / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = decoded[name] = weight
            continue
        blocks, scales = _pack(weight.float().mT)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = blocks, scales
        decoded[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
    _write_decoded(decoded)
    _write_expected(TARGET, replace(tiny_experts()["gpt-oss"], seed=SEED))
    config = json.loads((SOURCE / "config.json").read_text(encoding="utf-8"))
    write_json(TARGET / "config.json", {**config, "quantization_config": CONFIG})
    save_file(packed, TARGET / "model.safetensors", metadata={"format": "pt"})


def _write_decoded(weights: dict[str, torch.Tensor]) -> None:
    """What transformers reads: it needs a GPU for the packed tensors."""
    for name in ("config.json", "generation_config.json"):
        shutil.copy(SOURCE / name, TARGET / name)
    save_file(weights, Path(TARGET) / "model.safetensors", metadata={"format": "pt"})


def _pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds `[experts, outputs, inputs]` to the nearest numbers of a block."""
    groups = weight.reshape(*weight.shape[:-1], -1, 32)
    exponents = groups.abs().amax(-1).clamp(min=1e-30).log2().floor() - 2
    scaled = groups / exponents.exp2().unsqueeze(-1)
    nearest = (scaled.abs().unsqueeze(-1) - MAGNITUDES).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return blocks.contiguous(), (exponents + 127).to(torch.uint8)
