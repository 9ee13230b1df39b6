"""Asks a server what PyPI's clients of OpenAI and Anthropic can ask, and checks their own types.

    python scripts/clients.py http://127.0.0.1:30000
"""

import json
import sys
import threading
import time
import urllib.request

import anthropic
import openai

WORDS = [{"role": "user", "content": "Name three colours."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def check(condition, *shown):
    if not condition:
        raise SystemExit(f"failed: {shown}")


def models(client):
    names = [model.id for model in client.models.list()]
    check(names == ["default"], names)
    check(client.models.retrieve("default").object == "model")
    try:
        client.models.retrieve("no such model")
    except openai.NotFoundError as error:
        check(error.code == "model_not_found", error)
    else:
        check(False, "a model that is not there")


def chats(client):
    ask = {"model": "default", "messages": WORDS, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2)
    first, second = whole.choices
    check(first.message.content and first.message.content == second.message.content, whole)
    check(len(first.logprobs.content) == 24 and len(first.logprobs.content[0].top_logprobs) == 2, first)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    check(said == first.message.content, said, first)
    check(chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices, chunks[-1])
    with client.chat.completions.stream(**ask) as stream:
        pieces = []
        try:
            pieces.extend(event.delta for event in stream if event.type == "content.delta")
        except openai.LengthFinishReasonError as error:
            # The helper takes a cut answer for an error.
            check(error.completion.choices[0].message.content == said, error.completion)
        check("".join(pieces) == said, pieces)
    for name, value in {"max_tokens": -3, "temperature": 1000, "messages": []}.items():
        try:
            client.chat.completions.create(**{**ask, name: value})
        except openai.BadRequestError as error:
            check(error.param == name, error.body)
        else:
            check(False, name)


def completions(client):
    answer = client.completions.create(
        model="default", prompt=[[504, 1, 2], [7]], max_tokens=5, logprobs=1, echo=True, n=2, temperature=0)
    check([choice.index for choice in answer.choices] == [0, 1, 2, 3], answer)
    check(len(answer.choices[0].logprobs.tokens) == 8, answer.choices[0])
    check(answer.choices[0].logprobs.token_logprobs[0] is None, answer.choices[0])
    chunks = client.completions.create(model="default", prompt="One, two,", max_tokens=6, stream=True)
    check(chunks.response.headers["content-type"] == "text/event-stream")
    check(len("".join(chunk.choices[0].text for chunk in chunks)) > 0)


def structures(client):
    schema = {"type": "object", "properties": {"colours": {"type": "array", "items": {"enum": ["red", "blue"]},
              "minItems": 1, "maxItems": 3}}, "required": ["colours"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="default", messages=WORDS, max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}})
    check(json.loads(answer.choices[0].message.content)["colours"], answer)


def tools(client):
    ask = {"model": "default", "messages": WORDS, "tools": [TOOL], "max_tokens": 200, "temperature": 0}
    for choice, reason in {"required": "tool_calls", "named": "stop"}.items():
        named = {"type": "function", "function": {"name": "weather"}}
        asked = {**ask, "tool_choice": named if choice == "named" else choice, "parallel_tool_calls": False}
        whole = client.chat.completions.create(**asked).choices[0]
        call = whole.message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        check(call.function.name == "weather" and arguments["days"] in (1, 2, 3), call)
        check(whole.finish_reason == reason and whole.message.content is None, whole)
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        check(calls[0].id and calls[0].function.name == "weather" and calls[0].function.arguments == "", calls[0])
        check(all(call.id is None and call.index == 0 for call in calls[1:]), calls)
        check(json.loads("".join(call.function.arguments for call in calls)) == arguments, calls)
    cut = client.chat.completions.create(**{**ask, "tool_choice": "required", "max_tokens": 4}).choices[0]
    check(cut.finish_reason == "length", cut)
    none = client.chat.completions.create(**{**ask, "tool_choice": "none", "max_tokens": 8}).choices[0]
    check(none.message.tool_calls is None and none.message.content, none)


def embeddings(client):
    answer = client.embeddings.create(model="default", input=["a boat", "a ship"])
    check(len(answer.data) == 2 and len(answer.data[0].embedding) == 576, len(answer.data[0].embedding))


def responses(client):
    ask = {"model": "default", "input": "Name three colours.", "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(**ask, instructions="Be brief.")
    check(whole.output_text and whole.status in ("completed", "incomplete"), whole)
    kinds, said = [], ""
    with client.responses.stream(**ask) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                said += event.delta
    check(kinds[0] == "response.created", kinds)
    ends = [kind for kind in kinds if kind in ("response.completed", "response.incomplete", "response.failed")]
    check(len(ends) == 1 and kinds[-1] == ends[0] and said, kinds)
    function = TOOL["function"]
    flat = {"type": "function", "name": "weather", "parameters": function["parameters"], "strict": True}
    called = client.responses.create(**{**ask, "max_output_tokens": 200}, tools=[flat], tool_choice="required")
    call = next(item for item in called.output if item.type == "function_call")
    check(call.name == "weather" and json.loads(call.arguments)["days"], call)
    follow = [{"role": "user", "content": "a"}, call.to_dict(),
              {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    check(client.responses.create(**{**ask, "input": follow}).usage.output_tokens > 0)


def messages(url):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    ask = {"model": "default", "max_tokens": 16, "messages": WORDS, "system": "Be brief.",
           "extra_body": {"temperature": 0}}
    whole = client.messages.create(**ask)
    check(whole.content[0].type == "text" and whole.usage.output_tokens, whole)
    with client.messages.stream(**ask) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(said == whole.content[0].text and final.stop_reason == whole.stop_reason, said, whole)
    check(client.messages.count_tokens(model="default", messages=WORDS).input_tokens > 3)
    tool = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
    asked = {**ask, "max_tokens": 200, "tools": [tool], "tool_choice": {"type": "any"}}
    called = client.messages.create(**asked)
    use = next(block for block in called.content if block.type == "tool_use")
    check(use.name == "weather" and use.input["days"] in (1, 2, 3) and called.stop_reason == "tool_use", called)
    with client.messages.stream(**asked) as stream:
        check(stream.get_final_message().content[-1].input == use.input)
    result = [*WORDS, {"role": "assistant", "content": [use.model_dump()]},
              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]}]
    check(client.messages.create(**{**ask, "messages": result}).usage.output_tokens > 0)
    try:
        client.messages.create(**{**ask, "model": "no such model"})
    except anthropic.NotFoundError as error:
        check(error.body["error"]["type"] == "not_found_error", error.body)
    else:
        check(False, "a model that is not there")


def many_at_once(client):
    ask = {"model": "default", "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    counts = []

    def one(number):
        chunks = client.completions.create(
            prompt=f"Request number {number}:", stream=True, stream_options={"include_usage": True}, **ask)
        counts.append(list(chunks)[-1].usage.completion_tokens)

    threads = [threading.Thread(target=one, args=[number]) for number in range(24)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    check(counts == [12] * 24, counts)


def leaves(client, url):
    ask = {"model": "default", "messages": WORDS, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(**ask, stream=True)
    next(iter(stream))
    stream.close()
    try:
        client.with_options(timeout=0.3).chat.completions.create(**ask)
    except openai.APITimeoutError:
        pass
    end = time.monotonic() + 2
    while True:
        with urllib.request.urlopen(f"{url}/v1/loads") as answer:
            load = json.load(answer)["loads"][0]
        if load["num_running_reqs"] + load["num_waiting_reqs"] == 0:
            break
        check(time.monotonic() < end, load)
        time.sleep(0.05)


def main():
    url = sys.argv[1]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for case in (models, chats, completions, structures, tools, embeddings, responses, many_at_once):
        case(client)
        print(f"openai {openai.__version__}: {case.__name__} ok", flush=True)
    messages(url)
    print(f"anthropic {anthropic.__version__}: messages ok", flush=True)
    leaves(client, url)
    print("clients that leave free their requests", flush=True)


main()
