"""Greedy continuations of Gemma 3 270M in Q4_K_M, recorded as those of SmolLM2 are.

The model is the base model: it continues texts. One prompt is longer than the window of its local
layers.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .common import FIXTURES, versions, write_json
from .smollm2 import difference_to_float64, greedy
from .smollm2_prompts import PLAIN, bundled_requests

LONG = {"long-100": 100, "long-300": 300, "long-700": 700}
MORE = {
    "letter": "Dear Sir or Madam,\n\nI am writing to apply for the position of",
}
BATCH = 8
LEAST_MARGIN = 10
"""By how many times the noise the best logit of every step must be ahead of the next."""


def make(arguments) -> None:
    """Writes gemma3/greedy.json."""
    if arguments.gemma3 is None:
        raise SystemExit("this part needs --gemma3 FILE.gguf")
    path = arguments.gemma3
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    prompts = _prompts(tokenizer)
    entries = {}
    by_length = sorted(prompts, key=lambda name: len(prompts[name][1]))
    for start in range(0, len(by_length), BATCH):
        batch = {name: prompts[name] for name in by_length[start : start + BATCH]}
        entries.update(greedy(model, batch))
        print(f"{len(entries)} of {len(prompts)} prompts", flush=True)

    double = model.to(torch.float64)
    noise = 0.0
    for entry in entries.values():
        difference = difference_to_float64(double, entry)
        entry["max_abs_difference_to_float64_products"] = float(f"{difference:.2e}")
        entry["continuation"] = tokenizer.decode(entry["output_ids"])
        noise = max(noise, difference)
    for entry in entries.values():
        if entry["min_margin"] < LEAST_MARGIN * noise:
            margin = entry["min_margin"]
            raise ValueError(f"{entry['name']}: a near-tie, {margin:.1e}, noise {noise:.1e}")
    write_json(
        FIXTURES / "gemma3" / "greedy.json",
        {
            "made_with": versions("gguf", "tokenizers", "torch", "transformers"),
            "model": path.name,
            "computed_in": "float32, eager attention, dequantized weights, key-value cache",
            "max_abs_difference_to_float64_products": float(f"{noise:.2e}"),
            "prompts": list(entries.values()),
        },
    )


def _prompts(tokenizer) -> dict[str, tuple[str, list[int]]]:
    """Text and ids of every prompt by name, with the begin token."""
    prompts = {name: (text, tokenizer.encode(text)) for name, text in (PLAIN | MORE).items()}
    systems = dict.fromkeys(messages[0]["content"] for messages in bundled_requests())
    prose = tokenizer.encode("\n\n".join(systems))
    for name, length in LONG.items():
        ids = prose[:length]
        text = tokenizer.decode(ids[1:])
        if tokenizer.encode(text) != ids:
            raise ValueError(f"{name}: cutting the text moved a token boundary")
        prompts[name] = (text, ids)
    return prompts
