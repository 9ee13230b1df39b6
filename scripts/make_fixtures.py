#!/usr/bin/env python3
"""Makes the committed fixtures under tests/fixtures from transformers on the CPU.

    pip install -r scripts/requirements.txt
    python scripts/make_fixtures.py PART [PART ...] [--smollm2 FILE.gguf] [--threads N]

tests/fixtures/README.md says what each part writes, and scripts/README.md how to get the model.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

PARTS = {
    "tiny": "reference.tiny_models",
    "mxfp4": "reference.tiny_mxfp4",
    "tokenizers": "reference.tokenizer_fixtures",
    "gguf": "reference.tiny_ggufs",
    "blocks": "reference.blocks",
    "quantized": "reference.quantized",
    "chat": "reference.chat_templates",
    "sampling": "reference.sampling",
    "smollm2": "reference.smollm2",
    "gemma3": "reference.gemma3",
}


def main() -> None:
    """Runs the parts that were named, in the order of the table above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"])
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--gemma3", type=Path, help="gemma-3-270m-q4_k_m.gguf")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads for torch: sums are ordered by them"
    )
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    for part, module in PARTS.items():
        if part in arguments.parts or "all" in arguments.parts:
            import_module(module).make(arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
