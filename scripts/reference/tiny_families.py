"""The tiny models of the families beyond Llama and Qwen.

Sizes are alike: rows of 32 or 64, which are whole blocks of any quantization that GGUF files of
narrow models have. What is particular about a family is large enough to move the logits: windows
are shorter than the longest prompt, multipliers far from one, rotary embedding stretched.
"""

import torch
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    Glm4Config,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Ministral3Config,
    Mistral3Config,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    SiglipVisionConfig,
    SmolLM3Config,
)
from transformers.models.pixtral import PixtralVisionConfig

from .tiny_model import TinyModel

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}


def tiny_families() -> dict[str, TinyModel]:
    """The models by directory name."""
    return {
        # Heads are wider than the residual stream, as in Nemo.
        "mistral": TinyModel(
            config=MistralConfig(
                **SIZES, head_dim=16, sliding_window=24, rope_parameters=PLAIN_ROPE
            ),
            dtype=torch.bfloat16,
            seed=301,
            embedding_std=0.3,
            classic_rope_spelling=True,
        ),
        "mistral-small-3": TinyModel(
            config=Mistral3Config(
                text_config=MistralConfig(
                    **SIZES, head_dim=16, sliding_window=None, rope_parameters=PLAIN_ROPE
                ),
                vision_config=PixtralVisionConfig(
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    image_size=8,
                    patch_size=4,
                ),
            ),
            dtype=torch.bfloat16,
            seed=302,
            embedding_std=0.3,
        ),
        # Query factors grow every 16 positions.
        "ministral3": TinyModel(
            config=Ministral3Config(
                **SIZES,
                head_dim=16,
                rope_parameters={
                    **YARN,
                    "original_max_position_embeddings": 16,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "llama_4_scaling_beta": 0.5,
                },
            ),
            dtype=torch.bfloat16,
            seed=503,
            embedding_std=0.3,
        ),
        # Six layers make one full one; the seventh is windowed again.
        "gemma3": TinyModel(
            config=Gemma3TextConfig(
                **{**SIZES, "num_hidden_layers": 7, "num_key_value_heads": 1},
                head_dim=16,
                query_pre_attn_scalar=24,
                sliding_window=20,
                rope_parameters={
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
            dtype=torch.bfloat16,
            seed=304,
            embedding_std=0.12,
            classic_rope_spelling=True,
        ),
        "gemma3-wrapped": TinyModel(
            config=Gemma3Config(
                text_config=Gemma3TextConfig(
                    **{**SIZES, "num_hidden_layers": 6},
                    head_dim=16,
                    query_pre_attn_scalar=16,
                    sliding_window=20,
                    rope_parameters={
                        "full_attention": {
                            "rope_type": "linear",
                            "factor": 8.0,
                            "rope_theta": 1e6,
                        },
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    },
                ),
                vision_config=SiglipVisionConfig(
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    image_size=8,
                    patch_size=4,
                ),
                image_token_index=95,
            ),
            dtype=torch.bfloat16,
            seed=305,
            embedding_std=0.12,
        ),
        "phi3": TinyModel(
            config=Phi3Config(**SIZES, sliding_window=24, rope_parameters=PLAIN_ROPE),
            dtype=torch.bfloat16,
            seed=306,
            embedding_std=0.3,
            classic_rope_spelling=True,
        ),
        # 6 of 8 dimensions are rotated. Prompts are on both sides of the original context.
        "phi4-mini": TinyModel(
            config=Phi3Config(
                **SIZES,
                original_max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0, 1.25, 1.5],
                    "long_factor": [1.0, 3.5, 8.0],
                    "original_max_position_embeddings": 64,
                    "partial_rotary_factor": 0.75,
                },
                tie_word_embeddings=True,
            ),
            dtype=torch.bfloat16,
            seed=307,
            embedding_std=0.25,
        ),
        "granite": TinyModel(
            config=GraniteConfig(
                **SIZES,
                embedding_multiplier=4.0,
                attention_multiplier=0.2,
                residual_multiplier=0.4,
                logits_scaling=0.75,
                rope_parameters=PLAIN_ROPE,
                tie_word_embeddings=True,
            ),
            dtype=torch.bfloat16,
            seed=308,
            embedding_std=0.25,
            classic_rope_spelling=True,
        ),
        # All layers attend, and no experts: the fields of recurrent layers mean nothing.
        "granite4-dense": TinyModel(
            config=GraniteMoeHybridConfig(
                **SIZES,
                shared_intermediate_size=96,
                num_local_experts=0,
                num_experts_per_tok=0,
                layer_types=["full_attention"] * SIZES["num_hidden_layers"],
                mamba_n_heads=2,
                position_embedding_type="rope",
                embedding_multiplier=4.0,
                attention_multiplier=0.2,
                residual_multiplier=0.4,
                logits_scaling=0.75,
                rope_parameters=PLAIN_ROPE,
                tie_word_embeddings=True,
            ),
            dtype=torch.bfloat16,
            seed=313,
            embedding_std=0.25,
        ),
        "smollm3": TinyModel(
            config=SmolLM3Config(
                **{**SIZES, "num_hidden_layers": 5},
                rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
            ),
            dtype=torch.bfloat16,
            seed=309,
            embedding_std=0.25,
            classic_rope_spelling=True,
        ),
        "olmo2": TinyModel(
            config=Olmo2Config(**SIZES, rope_parameters=PLAIN_ROPE),
            dtype=torch.bfloat16,
            seed=310,
            embedding_std=0.3,
            classic_rope_spelling=True,
        ),
        "olmo3": TinyModel(
            config=Olmo3Config(
                **{**SIZES, "num_hidden_layers": 5},
                sliding_window=20,
                rope_parameters={
                    "full_attention": {**YARN, "attention_factor": 1.3},
                    "sliding_attention": PLAIN_ROPE,
                },
            ),
            dtype=torch.bfloat16,
            seed=311,
            embedding_std=0.3,
        ),
        "glm4": TinyModel(
            config=Glm4Config(
                **SIZES,
                head_dim=16,
                rope_parameters={**PLAIN_ROPE, "partial_rotary_factor": 0.5},
            ),
            dtype=torch.bfloat16,
            seed=312,
            embedding_std=0.3,
        ),
    }
