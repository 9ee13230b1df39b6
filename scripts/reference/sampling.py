"""What transformers' logits processors keep of given logits, and with which probabilities."""

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .common import FIXTURES, float32_numbers, versions, write_json

NUDGE = 1e-4
"""A case is refused if moving top_p or min_p by this fraction changes what is kept: another order
of sums must not be able to change the answer."""

HISTORY = [0, 2, 2, 5, 7, 7, 7]

SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"top_p": 1.0},
    {"min_p": 0.02},
    {"min_p": 0.25},
    {"min_p": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 6},
    {"temperature": 3.0, "min_p": 0.1},
    {"top_k": 5, "top_p": 0.7},
    {"top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"repetition_penalty": 1.1, "temperature": 1.3, "top_k": 12, "top_p": 0.93, "min_p": 0.03},
]


def make(_arguments) -> None:
    """Writes sampling.json."""
    vectors = _vectors()
    write_json(
        FIXTURES / "sampling.json",
        {
            "made_with": versions("torch", "transformers"),
            "history": HISTORY,
            "vectors": {name: float32_numbers(logits) for name, logits in vectors.items()},
            "cases": [
                _case(name, logits, settings)
                for name, logits in vectors.items()
                for settings in SETTINGS
            ],
        },
    )


def _vectors() -> dict[str, torch.Tensor]:
    """Logits of several shapes; no two values of a vector are equal."""
    generator = torch.Generator().manual_seed(4242)
    return {
        "falling": torch.tensor([4.0, 3.1, 2.3, 1.6, 1.0, 0.5, 0.1, -0.2, -0.4, -0.5]),
        "peaked": torch.tensor([-3.0, 0.4, 12.5, -7.5, 1.2, 0.9, -1.1, 2.2, -0.3]),
        "almost-flat": 0.01 * torch.randn(16, generator=generator) + 1.0,
        "all-negative": -20.0 - 3.0 * torch.rand(12, generator=generator),
        "large": 12.0 * torch.randn(24, generator=generator),
        "wide": 2.0 * torch.randn(200, generator=generator),
    }


def _case(name: str, logits: torch.Tensor, settings: dict) -> dict:
    filtered = _process(logits, settings)
    for key in ("top_p", "min_p"):
        for factor in (1 - NUDGE, 1 + NUDGE):
            if key in settings and settings[key] * factor <= 1.0:
                nudged = _process(logits, {**settings, key: settings[key] * factor})
                if not torch.equal(nudged.isinf(), filtered.isinf()) and settings[key] < 1.0:
                    raise ValueError(f"{name} {settings}: too close to the edge of {key}")
    kept = filtered.isfinite().nonzero()[:, 0]
    return {
        "vector": name,
        "settings": settings,
        "kept": kept.tolist(),
        "logits": float32_numbers(filtered[kept]),
        "probabilities": float32_numbers(filtered.softmax(dim=-1)[kept]),
    }


def _process(logits: torch.Tensor, settings: dict) -> torch.Tensor:
    """Runs the processors that the settings name, in the order in which transformers runs them."""
    processors = LogitsProcessorList()
    if "repetition_penalty" in settings:
        processors.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "temperature" in settings:
        processors.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        processors.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        processors.append(TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        processors.append(MinPLogitsWarper(settings["min_p"]))
    return processors(torch.tensor([HISTORY]), logits[None])[0]
