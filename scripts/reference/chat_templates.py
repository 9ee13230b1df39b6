"""Conversations rendered through chat templates by transformers."""

from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from .common import FIXTURES, versions, write_json

TEMPLATES = Path(__file__).parent / "templates"

CONVERSATIONS = {
    "one-question": [{"role": "user", "content": "What is gravity?"}],
    "with-system": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "What is gravity?"},
    ],
    "turns": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi, how can I help?"},
        {"role": "user", "content": " Tell me a joke.\n\n"},
    ],
    "ends-with-assistant": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue"},
    ],
    "unicode": [
        {"role": "system", "content": "Répondez en français – s’il vous plaît."},
        {"role": "user", "content": "日本語 & <b>\"quotes\"</b> 👩‍👩‍👧‍👦 e\u0301 \\ / 'x' STOP"},
    ],
    "template-syntax-in-text": [
        {"role": "user", "content": "Write {{ name }} and {% if x %}y{% endif %} {# no #}"}
    ],
    "empty-content": [{"role": "user", "content": ""}],
    "thoughts": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"},
        {"role": "user", "content": "And 3 + 3?"},
        {"role": "assistant", "content": "6", "reasoning_content": "Three and three."},
    ],
    "tool-calls": [
        {"role": "user", "content": "How warm is it in Oslo and in Rome?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo", "unit": "°C"}},
                },
                {
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
            ],
        },
        {"role": "tool", "content": '{"temperature": -3}'},
        {"role": "tool", "content": '{"temperature": 17.5}'},
    ],
    "roles-do-not-alternate": [
        {"role": "user", "content": "One"},
        {"role": "user", "content": "Two"},
    ],
}

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Temperature of a city, e.g. "Zürich" <now>',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["°C", "°F"]},
            },
            "required": ["city"],
        },
    },
}

CHATS = [
    "one-question",
    "with-system",
    "turns",
    "ends-with-assistant",
    "unicode",
    "template-syntax-in-text",
    "empty-content",
]


def make(arguments) -> None:
    """Writes chat_templates.json."""
    if arguments.smollm2 is None:
        raise SystemExit("this part needs --smollm2 FILE.gguf")
    smollm2 = AutoTokenizer.from_pretrained(
        arguments.smollm2.parent, gguf_file=arguments.smollm2.name
    )
    chatml = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    llama = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    qwen = {"bos_token": None, "eos_token": "<|im_end|>"}
    templates = [
        _template("smollm2", smollm2.chat_template, chatml, _both(CHATS)),
        _template("chatml", _read("chatml"), chatml, _both(CHATS)),
        _template(
            "llama3",
            _read("llama3"),
            llama,
            _both([*CHATS, "roles-do-not-alternate"])
            + [{"conversation": "turns", "variables": {"date_string": "26 Jul 2024"}}],
        ),
        _template(
            "qwen3",
            _read("qwen3"),
            qwen,
            _both([*CHATS, "thoughts", "tool-calls"])
            + [
                {"conversation": "one-question", "variables": {"enable_thinking": False}},
                {"conversation": "one-question", "variables": {"enable_thinking": True}},
                {"conversation": "with-system", "tools": [WEATHER_TOOL]},
                {"conversation": "tool-calls", "tools": [WEATHER_TOOL, WEATHER_TOOL]},
            ],
        ),
        _template("whitespace", _read("whitespace"), chatml, _both(CHATS)),
    ]
    write_json(
        FIXTURES / "chat_templates.json",
        {
            "made_with": versions("jinja2", "transformers"),
            "conversations": CONVERSATIONS,
            "templates": templates,
        },
    )


def _read(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _both(names: list[str]) -> list[dict]:
    return [
        {"conversation": name, "add_generation_prompt": add}
        for name in names
        for add in (True, False)
    ]


def _template(name: str, template: str, special: dict, cases: list[dict]) -> dict:
    return {
        "name": name,
        "template": template,
        **special,
        "cases": [_render(template, special, case) for case in cases],
    }


def _render(template: str, special: dict, case: dict) -> dict:
    case = {"add_generation_prompt": True, "tools": None, "variables": {}, **case}
    defined = {key: token for key, token in special.items() if token is not None}
    try:
        rendered, _ = render_jinja_template(
            [CONVERSATIONS[case["conversation"]]],
            tools=case["tools"],
            chat_template=template,
            add_generation_prompt=case["add_generation_prompt"],
            **defined,
            **case["variables"],
        )
    except TemplateError as error:
        return {**case, "error": error.message}
    return {**case, "text": rendered[0]}
