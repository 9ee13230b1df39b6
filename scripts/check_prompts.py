#!/usr/bin/env python3
"""Checks that examples/data/prompts.jsonl is the workload that the examples say it is.

    python scripts/check_prompts.py --smollm2 FILE.gguf

Eight groups of eight requests share a system prompt of 250 to 450 tokens each, the user's turns
are short, groups take turns in file order, and at least three quarters of all prompt tokens are
shared prefixes. Token counts are SmolLM2's.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reference.common import REPOSITORY  # noqa: E402
from reference.smollm2_files import load_tokenizer  # noqa: E402

GROUPS = 8
REQUESTS_PER_GROUP = 8
SYSTEM_TOKENS = range(250, 451)
USER_TOKENS = range(15, 61)
MINIMUM_SHARED = 0.75


def main() -> None:
    """Exits with a message that names the first line that breaks the rules."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, required=True)
    tokenizer = load_tokenizer(parser.parse_args().smollm2)
    path = REPOSITORY / "examples" / "data" / "prompts.jsonl"
    requests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(requests) != GROUPS * REQUESTS_PER_GROUP:
        sys.exit(f"{len(requests)} requests instead of {GROUPS * REQUESTS_PER_GROUP}")

    groups: dict[str, list[list[int]]] = {}
    for number, request in enumerate(requests, start=1):
        system, user = request["messages"]
        _check_tokens(tokenizer, number, system, "system", SYSTEM_TOKENS)
        _check_tokens(tokenizer, number, user, "user", USER_TOKENS)
        text = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, tokenize=False
        )
        groups.setdefault(system["content"], []).append(tokenizer.encode(text))
        if list(groups).index(system["content"]) != (number - 1) % GROUPS:
            sys.exit(f"line {number}: groups don't take turns")
    if any(len(prompts) != REQUESTS_PER_GROUP for prompts in groups.values()):
        sys.exit("groups are not of equal size")

    total = sum(len(prompt) for prompts in groups.values() for prompt in prompts)
    shared = sum(_common_prefix(prompts) * len(prompts) for prompts in groups.values())
    computed_once = sum(_common_prefix(prompts) for prompts in groups.values())
    print(f"{total} prompt tokens, {shared} ({shared / total:.1%}) in shared prefixes,")
    print(
        f"{(shared - computed_once) / total:.1%} need not be computed when each prefix is computed once"
    )
    if shared < MINIMUM_SHARED * total:
        sys.exit(f"less than {MINIMUM_SHARED:.0%} shared")


def _check_tokens(tokenizer, number: int, message: dict, role: str, allowed: range) -> None:
    count = len(tokenizer.encode(message["content"]))
    if message["role"] != role or count not in allowed:
        sys.exit(
            f"line {number}: {message['role']} message of {count} tokens, wanted {role} in {allowed}"
        )


def _common_prefix(prompts: list[list[int]]) -> int:
    length = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


if __name__ == "__main__":
    main()
