"""The prompts that SmolLM2's greedy answers are recorded for."""

import json

from .common import REPOSITORY

PLAIN = {
    "one-token": "Hello",
    "capital": "The capital of France is",
    "story": "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
    "digits": "Count on: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "arithmetic": "12345 + 67890 =   80235\n1999 + 2026 =   4025\n3.14159 * 2 =  ",
    "python": (
        "def fibonacci(n):\n"
        '    """Return the n-th Fibonacci number."""\n'
        "    if n < 2:\n"
        "        return n\n"
        "    a, b = 0, 1\n"
        "    for _ in range(n - 1):\n"
    ),
    "rust": (
        "use std::collections::HashMap;\n\n"
        "/// Counts how often each word occurs.\n"
        "pub fn word_counts(text: &str) -> HashMap<&str, usize> {\n\tlet mut counts = HashMap::new();\n"
    ),
    "multilingual": (
        "English: Good morning. Deutsch: Guten Morgen, schöne Grüße. Français : Bonjour à tous. "
        "Ελληνικά: Καλημέρα. Русский: Доброе утро. 日本語: おはようございます。 中文：早上好。 "
        "العربية: صباح الخير. हिन्दी: सुप्रभात। Español:"
    ),
    "emoji": "Weather report 🌤️ for the family 👩‍👩‍👧‍👦: Monday ☔, Tuesday 🌞🌞, Wednesday 🇳🇴❄️,",
    "json": '{"name": "Ada", "born": 1815, "languages": ["en", "fr"], "address": {"city":',
    "table": "| city   | country | people    |\n| ------ | ------- | --------- |\n| Paris  | France  |",
    "whitespace": "First line   \n\n\n\tindented by a tab\r\n    indented by four spaces\n \n  ",
}

CHATS = {
    "chat-default-system": [{"role": "user", "content": "What is gravity, in one sentence?"}],
    "chat-turns": [
        {"role": "system", "content": "You answer briefly and name a number where you can."},
        {"role": "user", "content": "How many legs does a spider have?"},
        {"role": "assistant", "content": "A spider has 8 legs."},
        {"role": "user", "content": "And how many do ten spiders and 3 cats have together?"},
    ],
}

LONG = {"long-100": 100, "long-250": 250, "long-500": 500, "long-1000": 1000, "long-1500": 1500}


def bundled_requests() -> list[list[dict]]:
    """The messages of the prompts that come with the examples."""
    path = REPOSITORY / "examples" / "data" / "prompts.jsonl"
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def token_prompts(tokenizer) -> dict[str, tuple[str, list[int]]]:
    """Text and ids of every prompt by name, from 1 to 1,500 tokens."""
    texts = dict(PLAIN)
    requests = bundled_requests()
    for name, messages in {**CHATS, "chat-bundled": requests[0]}.items():
        texts[name] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
    prompts = {name: (text, tokenizer.encode(text)) for name, text in texts.items()}
    if len(prompts["one-token"][1]) != 1:
        raise ValueError("the shortest prompt must be a single token")

    prose = "\n\n".join(dict.fromkeys(messages[0]["content"] for messages in requests))
    prose_ids = tokenizer.encode(prose)
    for name, length in LONG.items():
        ids = prose_ids[:length]
        text = tokenizer.decode(ids)
        if len(ids) != length or tokenizer.encode(text) != ids:
            raise ValueError(f"{name}: cutting the text moved a token boundary")
        prompts[name] = (text, ids)
    return prompts
