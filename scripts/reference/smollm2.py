"""Greedy answers of SmolLM2-135M-Instruct, with enough logits to tell a near-tie from a mistake."""

import torch

from .common import FIXTURES, float32_numbers, versions, write_json
from .smollm2_files import load_model, load_tokenizer
from .smollm2_prompts import token_prompts

NEW_TOKENS = 64
PROMPT_TOP = 32
BATCH = 10
"""Prompts of similar length that decode together: weights are read once a step for all of them."""


def make(arguments) -> None:
    """Writes smollm2/greedy.json."""
    if arguments.smollm2 is None:
        raise SystemExit("this part needs --smollm2 FILE.gguf")
    prompts = token_prompts(load_tokenizer(arguments.smollm2))
    model = load_model(arguments.smollm2, torch.float32)
    model.generation_config.eos_token_id = None
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
        entry["max_absdifference_to_float64_products"] = float(f"{difference:.2e}")
        noise = max(noise, difference)
    write_json(
        FIXTURES / "smollm2" / "greedy.json",
        {
            "made_with": versions("gguf", "tokenizers", "torch", "transformers"),
            "model": arguments.smollm2.name,
            "computed_in": "float32, eager attention, dequantized weights, key-value cache",
            "max_absdifference_to_float64_products": float(f"{noise:.2e}"),
            "prompts": list(entries.values()),
        },
    )


def greedy(model, prompts: dict[str, tuple[str, list[int]]]) -> dict[str, dict]:
    """64 greedy tokens a prompt, whatever they are, with the two best logits of every step.

    The prompts run as one batch, padded on the left.
    """
    longest = max(len(token_ids) for _, token_ids in prompts.values())
    padding = [longest - len(token_ids) for _, token_ids in prompts.values()]
    rows = [[0] * pad + ids for pad, (_, ids) in zip(padding, prompts.values(), strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    with torch.no_grad():
        generated = model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    steps = torch.stack(generated.logits, dim=1)
    if steps.shape[1] != NEW_TOKENS:
        raise ValueError(f"stopped after {steps.shape[1]} tokens")
    return {
        name: {"name": name, "text": text, "token_ids": ids, **_summary(logits)}
        for (name, (text, ids)), logits in zip(prompts.items(), steps, strict=True)
    }


def _summary(logits: torch.Tensor) -> dict:
    """What is kept of one prompt's `[64, vocabulary]` logits."""
    best = logits.topk(2)
    top = logits[0].topk(PROMPT_TOP)
    return {
        "output_ids": best.indices[:, 0].tolist(),
        "runner_up_ids": best.indices[:, 1].tolist(),
        "top2_logits": float32_numbers(best.values),
        "min_margin": float32_numbers((best.values[:, 0] - best.values[:, 1]).min()),
        "prompt_top": {"ids": top.indices.tolist(), "logits": float32_numbers(top.values)},
    }


def difference_to_float64(model, entry: dict) -> float:
    """Largest difference of the recorded logits to one pass over prompt and answer.

    That pass has another order of sums as well, having no cache. Norms, rotary angles and softmax
    stay in float32 in transformers.
    """
    token_ids = entry["token_ids"] + entry["output_ids"][:-1]
    with torch.no_grad():
        logits = model(
            torch.tensor([token_ids]), use_cache=False, logits_to_keep=NEW_TOKENS
        ).logits[0]
    pairs = torch.tensor([entry["output_ids"], entry["runner_up_ids"]]).T
    recorded = torch.tensor(entry["top2_logits"], dtype=torch.float64)
    step_difference = (logits.gather(1, pairs) - recorded).abs().max()
    top = entry["prompt_top"]
    recorded_top = torch.tensor(top["logits"], dtype=torch.float64)
    return max(step_difference, (logits[0][top["ids"]] - recorded_top).abs().max()).item()
