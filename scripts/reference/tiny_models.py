"""Tiny models with random weights in Hugging Face's layout, and their logits.

Each directory under `tests/fixtures/tiny/` is what a hub repository of that family looks like:
config.json, generation_config.json and safetensors. Expected logits come from loading that very
directory with transformers and running it in float32 with eager attention, so a directory and
its expectations can't disagree.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from .common import FIXTURES, float32_numbers, versions, write_json
from .tiny_experts import tiny_experts
from .tiny_families import tiny_families
from .tiny_model import TinyModel

PROMPT_LENGTHS = {"one": 1, "seventeen": 17, "ninety": 90}
GREEDY_TOKENS = 16
MINIMUM_MARGIN = 5e-3
"""Two best logits are never closer, so that greedy tokens can be compared without exceptions."""


def tiny_models() -> dict[str, TinyModel]:
    """The models by directory name."""
    return {
        "llama-tied": TinyModel(
            config=LlamaConfig(
                vocab_size=384,
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=2,
            ),
            dtype=torch.float32,
            seed=111,
            embedding_std=0.25,
            generation={"eos_token_id": 2},
            classic_rope_spelling=True,
        ),
        # The scaling's original context of 64 puts the eight rotary frequencies on both sides
        # of, and inside, the band that is interpolated.
        "llama3-rope-untied": TinyModel(
            config=LlamaConfig(
                vocab_size=157,
                hidden_size=64,
                intermediate_size=112,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=1,
                max_position_embeddings=512,
                rms_norm_eps=1e-5,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=[1, 2],
            ),
            dtype=torch.bfloat16,
            seed=102,
            embedding_std=0.3,
            generation={
                "eos_token_id": [1, 2],
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.9,
            },
            shard_size="90KB",
            classic_rope_spelling=True,
        ),
        "qwen2": TinyModel(
            config=Qwen2Config(
                vocab_size=160,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=3,
                num_key_value_heads=1,
                max_position_embeddings=512,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                use_sliding_window=False,
                sliding_window=32,
                max_window_layers=3,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=1,
            ),
            dtype=torch.float16,
            seed=103,
            embedding_std=0.3,
            generation={
                "eos_token_id": [1, 0],
                "do_sample": True,
                "repetition_penalty": 1.1,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
            },
            classic_rope_spelling=True,
        ),
        "qwen3": TinyModel(
            config=Qwen3Config(
                vocab_size=160,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=512,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=1,
            ),
            dtype=torch.bfloat16,
            seed=114,
            embedding_std=0.3,
            generation={
                "eos_token_id": [1, 0],
                "do_sample": True,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
            },
        ),
        # Soft caps are low and the query scale is not 1/sqrt(head_dim), so that leaving any of
        # them out moves the logits far more than rounding does.
        "gemma2": TinyModel(
            config=Gemma2Config(
                vocab_size=160,
                hidden_size=48,
                intermediate_size=64,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                query_pre_attn_scalar=24,
                sliding_window=32,
                attn_logit_softcapping=5.0,
                final_logit_softcapping=8.0,
                max_position_embeddings=512,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                hidden_activation="gelu_pytorch_tanh",
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=1,
            ),
            dtype=torch.bfloat16,
            seed=245,
            embedding_std=0.12,
            generation={"eos_token_id": 1},
            classic_rope_spelling=True,
        ),
        **tiny_families(),
        **tiny_experts(),
    }


def make(_arguments) -> None:
    """Writes every directory and its expected.json."""
    for name, tiny in tiny_models().items():
        directory = FIXTURES / "tiny" / name
        _write_model(directory, tiny)
        _write_expected(directory, tiny)


def _write_model(directory: Path, tiny: TinyModel) -> None:
    _clear_weights(directory)
    model = _class_of(tiny.config).from_config(tiny.config, dtype=torch.float32)
    _randomize(model, tiny)
    model.generation_config = GenerationConfig(bos_token_id=0, **tiny.generation)
    model.to(tiny.dtype).save_pretrained(directory, max_shard_size=tiny.shard_size)
    if tiny.classic_rope_spelling:
        _use_classic_rope_spelling(directory / "config.json", tiny.dtype)
    for shard in sorted(directory.glob("*.safetensors")):
        # Rewritten so that the header's order, and so the bytes, depend on nothing but names.
        save_file(load_file(shard), shard, metadata={"format": "pt"})


def _clear_weights(directory: Path) -> None:
    """Removes what an earlier run with other shard sizes may have left behind."""
    directory.mkdir(parents=True, exist_ok=True)
    for stale in [*directory.glob("*.safetensors"), *directory.glob("*.index.json")]:
        stale.unlink()


def _randomize(model, tiny: TinyModel) -> None:
    """Draws weights large enough that no layer, bias or norm is negligible in the logits."""
    generator = torch.Generator().manual_seed(tiny.seed)
    is_gemma = model.config.model_type.startswith("gemma")
    is_gemma_4 = model.config.model_type.startswith("gemma4")
    # Gemma 4 keeps its factor of a layer as a buffer.
    factors = [named for named in model.named_buffers() if named[0].endswith("layer_scalar")]
    with torch.no_grad():
        for name, parameter in sorted([*model.named_parameters(), *factors]):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("layer_scalar", "router.per_expert_scale", "router.scale")):
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("sinks"):
                parameter.copy_(noise)
            elif name.endswith("_bias"):
                parameter.copy_(0.5 * noise)
            elif is_gemma_4 and "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif is_gemma and name.endswith(("model.norm.weight", "language_model.norm.weight")):
                # Gemma's embeddings are small, or each token would predict itself; its last norm
                # makes up for it. Gemma multiplies by one plus the weight.
                parameter.copy_(0.2 * noise + 1.0)
            elif "norm" in name:
                parameter.copy_(0.2 * noise + (0.0 if is_gemma else 1.0))
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(tiny.embedding_std * noise)
            else:
                fan_in = parameter.shape[-1]
                parameter.copy_(1.7 * noise / fan_in**0.5)


def _class_of(config: PreTrainedConfig):
    """Models of text and images are used for text alone."""
    has_images = hasattr(config, "vision_config")
    return AutoModelForImageTextToText if has_images else AutoModelForCausalLM


def _use_classic_rope_spelling(path: Path, dtype: torch.dtype) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        # Gemma 3 had a field for the base of windowed layers, and a pattern instead of a list.
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        config.pop("layer_types")
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config.pop("dtype")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_expected(directory: Path, tiny: TinyModel) -> None:
    single = load(directory, torch.float32)
    # Matrix products in float64; transformers keeps norms, rotary angles and softmax in float32.
    double = load(directory, torch.float64)
    generator = torch.Generator().manual_seed(tiny.seed + 1000)
    vocab_size = tiny.config.get_text_config().vocab_size
    prompts, noise, spread = [], 0.0, []
    for name, length in PROMPT_LENGTHS.items():
        token_ids = torch.randint(3, vocab_size, (1, length), generator=generator)
        with torch.no_grad():
            logits = single(token_ids).logits[0]
            exact = double(token_ids).logits[0]
        noise = max(noise, (logits.double() - exact).abs().max().item())
        spread.append(logits.std().item())
        prompt = {
            "name": name,
            "token_ids": token_ids[0].tolist(),
            "last_logits": float32_numbers(logits[-1]),
            "greedy": greedy(single, token_ids),
        }
        if name == "seventeen":
            prompt["all_logits"] = float32_numbers(logits)
        prompts.append(prompt)
    write_json(
        directory / "expected.json",
        {
            "made_with": versions("torch", "transformers"),
            "computed_in": "float32, eager attention, weights widened from the stored dtype",
            "max_abs_difference_to_float64_products": float(f"{noise:.2e}"),
            "logit_std": [round(value, 3) for value in spread],
            "prompts": prompts,
        },
    )


def load(directory: Path, dtype: torch.dtype, changes: dict | None = None):
    """The model of a directory, with some fields of its configuration changed."""
    config = AutoConfig.from_pretrained(directory)
    config.get_text_config().update(changes or {})
    # Faster ways to compute experts know no float64.
    has_experts = getattr(config.get_text_config(), "num_experts_per_tok", None) is not None
    has_experts |= getattr(config.get_text_config(), "num_experts", None) is not None
    experts = {"experts_implementation": "eager"} if has_experts else {}
    model = _class_of(config).from_pretrained(
        directory, config=config, dtype=dtype, attn_implementation="eager", **experts
    )
    return model.eval()


def greedy(model, token_ids: torch.Tensor, margin: float = MINIMUM_MARGIN) -> dict:
    """Greedy continuation without a KV cache, with the distance between the two best logits."""
    chosen, margins = [], []
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            best = model(token_ids, use_cache=False).logits[0, -1].topk(2)
            chosen.append(best.indices[0].item())
            margins.append(best.values[0] - best.values[1])
            if margins[-1] < margin:
                raise ValueError(f"near-tie {margins[-1]:.2e}: choose another seed")
            token_ids = torch.cat([token_ids, best.indices[:1].view(1, 1)], dim=1)
    return {"token_ids": chosen, "margins": float32_numbers(torch.stack(margins))}
