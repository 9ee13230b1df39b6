"""What is written down about a tiny model."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig


@dataclass
class TinyModel:
    """What is particular about one of the directories."""

    config: PreTrainedConfig
    dtype: torch.dtype
    seed: int
    embedding_std: float
    generation: dict = field(default_factory=dict)
    shard_size: str = "5GB"
    classic_rope_spelling: bool = False
    """Write `rope_theta` and `rope_scaling` as every config.json before transformers 5 has them."""
