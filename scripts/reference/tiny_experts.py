"""The tiny models with mixtures of experts, and those that share parts with one that has.

More experts than any token of a short prompt goes through, so that some have no token; windows
shorter than the longest prompt.
"""

import torch
from transformers import (
    Gemma4TextConfig,
    GptOssConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from .tiny_families import PLAIN_ROPE, SIZES
from .tiny_model import TinyModel

GEMMA_4 = {
    **SIZES,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 12.0,
    "sliding_window": 24,
    "vocab_size_per_layer_input": SIZES["vocab_size"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000.0,
        },
    },
    # Keys beyond the class's fields, as real files have them.
    "global_head_dim": 16,
}


def tiny_experts() -> dict[str, TinyModel]:
    """The models by directory name."""
    return {
        "mixtral": TinyModel(
            config=MixtralConfig(
                **SIZES,
                num_local_experts=6,
                num_experts_per_tok=2,
                sliding_window=24,
                rope_parameters=PLAIN_ROPE,
            ),
            dtype=torch.bfloat16,
            seed=401,
            embedding_std=0.3,
        ),
        # The second layer is dense; a shared expert beside the others.
        "qwen2-moe": TinyModel(
            config=Qwen2MoeConfig(
                **SIZES,
                num_experts=6,
                num_experts_per_tok=3,
                moe_intermediate_size=32,
                shared_expert_intermediate_size=64,
                mlp_only_layers=[1],
                rope_parameters=PLAIN_ROPE,
            ),
            dtype=torch.bfloat16,
            seed=502,
            embedding_std=0.3,
        ),
        "qwen3-moe": TinyModel(
            config=Qwen3MoeConfig(
                **SIZES,
                head_dim=16,
                num_experts=12,
                num_experts_per_tok=4,
                moe_intermediate_size=32,
                norm_topk_prob=True,
                rope_parameters=PLAIN_ROPE,
            ),
            dtype=torch.bfloat16,
            seed=403,
            embedding_std=0.3,
        ),
        # Biases everywhere, sinks, gates that reach their bound.
        "gpt-oss": TinyModel(
            config=GptOssConfig(
                **SIZES,
                head_dim=16,
                num_local_experts=6,
                num_experts_per_tok=2,
                sliding_window=24,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                swiglu_limit=2.0,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "beta_fast": 4.0,
                    "beta_slow": 1.0,
                    "truncate": False,
                    "original_max_position_embeddings": 32,
                },
            ),
            dtype=torch.bfloat16,
            seed=404,
            embedding_std=0.3,
        ),
        # Inputs of each layer's own, KV of earlier layers in the last two, which are wider.
        "gemma4": TinyModel(
            config=Gemma4TextConfig(
                **{**GEMMA_4, "num_hidden_layers": 5},
                layer_types=[
                    "sliding_attention",
                    "full_attention",
                    "sliding_attention",
                    "sliding_attention",
                    "full_attention",
                ],
                hidden_size_per_layer_input=8,
                num_kv_shared_layers=2,
                use_double_wide_mlp=True,
            ),
            dtype=torch.bfloat16,
            seed=405,
            embedding_std=0.12,
        ),
        # Values that are keys, one KV head in full layers, experts beside the MLP.
        "gemma4-moe": TinyModel(
            config=Gemma4TextConfig(
                **GEMMA_4,
                layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                hidden_size_per_layer_input=0,
                attention_k_eq_v=True,
                num_global_key_value_heads=1,
                enable_moe_block=True,
                num_experts=6,
                top_k_experts=2,
                moe_intermediate_size=32,
            ),
            dtype=torch.bfloat16,
            seed=406,
            embedding_std=0.12,
        ),
    }
