"""Runs load generators and an evaluation of others, unmodified, against `understory serve`.

    python3 scripts/load_generators.py [NAME ..]

Names are those of the functions below, such as sglang_bench; without one, all run. Each has an
environment of its own. The server has the tiny model of the tests' fixtures: what counts is that
every request succeeds and every total is exact.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile

from served import TINY, Server, ask, check, environment, scratch, wheel

# Tokens of a request and of its answer.
INPUT = 48
OUTPUT = 24


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


# The wheel's client is an extension module that needs nothing of the rest of the wheel.
SGLANG_BENCH = """
import glob, importlib.util, sys
root = importlib.util.find_spec("sglang").submodule_search_locations[0]
name = f"_bench.cpython-{sys.version_info[0]}{sys.version_info[1]}-"
path, = glob.glob(f"{glob.escape(root)}/srt/rust_extensions/{name}*.so")
spec = importlib.util.spec_from_file_location("_bench", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.run_argv(["sglang-bench", *sys.argv[1:]])
"""


def sglang_bench(server):
    python = environment("sglang", alone=["sglang==0.5.23"]) / "python"
    requests = 500
    backends = ("sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat")
    cases = [(backend,) for backend in backends]
    cases += [(backend, "--disable-stream") for backend in backends]
    cases += [("sglang", "--return-logprob", "--top-logprobs-num", 2)]
    cases += [("sglang", "--flush-cache"), ("sglang", "--tokenize-prompt")]
    for backend, *flags in cases:
        result = scratch() / "result.jsonl"
        flags += ["--backend", backend, "--base-url", server.url, "--output-file", result]
        flags += ["--dataset-name", "random-ids", "--num-prompts", requests, "--disable-tqdm"]
        flags += ["--random-input-len", INPUT, "--random-output-len", OUTPUT]
        flags += ["--random-range-ratio", 1, "--max-concurrency", 64]
        run(python, "-c", SGLANG_BENCH, *flags)
        totals = json.loads(result.read_text())
        counts = (totals["completed"], totals["total_output_tokens"])
        check(counts == (requests, requests * OUTPUT), backend, flags, totals)
        if "--tokenize-prompt" in flags:
            check(totals["total_input_tokens"] == requests * INPUT, totals)
        print(f"sglang-bench {backend} {flags[0]}: {requests} requests", flush=True)


# The functions of `vllm bench serve` that send a request and read its stream. The command around them needs the
# whole of vllm with torch, which is left out.
VLLM_BENCH = """
import asyncio, importlib.util, json, sys
import aiohttp
path, url, requests, input, output = sys.argv[1:]
spec = importlib.util.spec_from_file_location("endpoint_request_func", path)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
paths = {"openai": "completions", "openai-chat": "chat/completions", "openai-responses": "responses",
         "openai-embeddings": "embeddings"}

async def all_of(backend):
    ask = module.ASYNC_REQUEST_FUNCS[backend]
    limit = asyncio.Semaphore(64)
    async with aiohttp.ClientSession() as session:
        async def one(number):
            words = " ".join(str(number + at) for at in range(int(input) // 4))
            body = {} if backend == "openai-embeddings" else {"temperature": 0, "ignore_eos": True}
            async with limit:
                return await ask(module.RequestFuncInput(
                    prompt=words, api_url=f"{url}/v1/{paths[backend]}", prompt_len=0, output_len=int(output),
                    model="default", extra_body=body, request_id=f"{backend}-{number}"), session)
        return await asyncio.gather(*map(one, range(int(requests))))

for backend in paths:
    answers = asyncio.run(all_of(backend))
    print(json.dumps({"backend": backend, "successful": sum(a.success for a in answers),
        "output": sum(a.output_tokens for a in answers), "input": sum(a.prompt_len for a in answers),
        "errors": [a.error for a in answers if a.error][:2]}))
"""


def vllm_bench(server):
    python = environment("vllm-bench", "aiohttp==3.14.4", "regex", "tqdm") / "python"
    path = scratch() / "endpoint_request_func.py"
    with zipfile.ZipFile(wheel("vllm==0.33.0")) as archive:
        path.write_bytes(archive.read("vllm/benchmarks/lib/endpoint_request_func.py"))
    requests = 500
    shown = run(python, "-c", VLLM_BENCH, path, server.url, requests, INPUT, OUTPUT)
    for line in shown.splitlines():
        totals = json.loads(line)
        is_text = totals["backend"] != "openai-embeddings"
        check(totals["successful"] == requests and totals["input"] > requests, totals)
        check(totals["output"] == (requests * OUTPUT if is_text else 0), totals)
        print(f"vllm bench serve, {totals['backend']}: {requests} requests", flush=True)


def guidellm(server):
    programs = environment("guidellm", "guidellm==0.8.1")
    result, requests = scratch() / "result.json", 100
    run(
        *(programs / "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={server.url}"),
        *("--profile", "kind=concurrent,streams=8"),
        *("--constraint", f"kind=max_requests,count={requests}"),
        *("--tokenizer", f"kind=hf_auto,model={TINY}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}"),
        *("--output", f"kind=json,path={result}"),
    )
    metrics = json.loads(result.read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    check(totals["successful"] == totals["total"] == requests, totals)
    output = metrics["output_token_count"]["successful"]["total_sum"]
    check(output == requests * OUTPUT, output)
    print(f"guidellm: {requests} requests", flush=True)


def aiperf(server):
    programs = environment("aiperf", "aiperf==0.13.0")
    folder, requests = scratch(), 100
    # It takes tokenizers from Hugging Face's hub alone, or from the hub's cache.
    revision = "0" * 40
    hub = folder / "hub" / "models--own--tiny"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(revision)
    (hub / "snapshots" / revision).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, hub / "snapshots" / revision)
    for endpoint in ("chat", "completions"):
        artifacts = folder / endpoint
        run(
            *(programs / "aiperf", "profile", "--ui", "none", "--url", server.url),
            *("-m", "default", "--tokenizer", "own/tiny", "--endpoint-type", endpoint),
            *("--streaming", "--concurrency", "8", "--request-count", requests),
            *("--synthetic-input-tokens-mean", INPUT, "--synthetic-input-tokens-stddev", 0),
            *("--output-tokens-mean", OUTPUT, "--output-tokens-stddev", 0),
            *("--extra-inputs", "ignore_eos:true", "--use-server-token-count"),
            *("--output-artifact-dir", artifacts),
            env={**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
        )
        totals = json.loads((artifacts / "profile_export_aiperf.json").read_text())
        counts = [totals[name]["avg"] for name in ("request_count", "total_output_tokens")]
        check(counts == [requests, requests * OUTPUT], counts, totals["error_summary"])
        print(f"aiperf, {endpoint}: {requests} requests", flush=True)


def inference_perf(server):
    programs = environment("inference-perf", "inference-perf==0.7.0", python="python3.12")
    folder = scratch()
    lengths = {
        name: {"min": length, "max": length, "mean": length, "std_dev": 0, "total_count": 100}
        for name, length in {"input_distribution": INPUT, "output_distribution": OUTPUT}.items()
    }
    config = {
        "load": {"type": "constant", "stages": [{"rate": 25, "duration": 4}], "num_workers": 1},
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "sglang", "model_name": "default", "base_url": server.url},
        "tokenizer": {"pretrained_model_name_or_path": str(TINY)},
        # Its random data are for completions alone.
        "data": {"type": "random", **lengths},
        "storage": {"local_storage": {"path": str(folder / "out")}},
        "report": {"request_lifecycle": {"summary": True, "per_request": True}},
    }
    config["server"]["ignore_eos"] = True
    # Its files are YAML, of which JSON is a part.
    (folder / "config.yml").write_text(json.dumps(config))
    run(programs / "inference-perf", "-c", folder / "config.yml")
    summary = json.loads((folder / "out" / "summary_lifecycle_metrics.json").read_text())
    count, failed = summary["successes"]["count"], summary["failures"]["count"]
    check(count > 50 and failed == 0, count, summary["failures"])
    for asked in json.loads((folder / "out" / "per_request_lifecycle_metrics.json").read_text()):
        check(f'"completion_tokens":{OUTPUT}' in asked["response"], asked)
    print(f"inference-perf: {count} requests", flush=True)


def lm_eval(server):
    programs = environment("lm-eval", "lm-eval[api]==0.4.13", "transformers==5.23.0")
    folder, choices = scratch(), [" red", " blue", " green"]
    rows = [
        {"question": f"Colour number {number} is", "choices": choices, "answer": number % 3}
        for number in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "colours.yaml").write_text(json.dumps(task))
    url = f"base_url={server.url}/v1/completions"
    run(
        *(programs / "lm_eval", "run", "--model", "local-completions", "--log_samples"),
        *("--model_args", f"model=default,{url},num_concurrent=8,tokenizer={TINY}"),
        *("--include_path", folder, "--tasks", "colours", "--output_path", folder / "out"),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")},
    )
    samples = next((folder / "out").rglob("samples_colours_*.jsonl")).read_text().splitlines()
    check(len(samples) == len(rows), len(samples))
    for line in samples:
        sample = json.loads(line)
        for choice, answer in zip(choices, sample["resps"], strict=True):
            own = log_likelihood(server, sample["doc"]["question"], choice)
            check(abs(float(answer[0][0]) - own) < 1e-3, answer, own)
    print(f"lm-eval local-completions: {len(rows)} questions", flush=True)


def log_likelihood(server, question, choice):
    """The log probability of a continuation, as another route tells it."""
    texts = (question, question + choice)
    tokens = [json.loads(ask(f"{server.url}/tokenize", {"prompt": t})[1])["tokens"] for t in texts]
    body = {
        "input_ids": tokens[1],
        "return_logprob": True,
        "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": 1},
    }
    meta = json.loads(ask(f"{server.url}/generate", body)[1])["meta_info"]
    return sum(entry[0] for entry in meta["input_token_logprobs"][len(tokens[0]) :])


def main():
    names = sys.argv[1:] or [case.__name__ for case in CASES]
    unknown = set(names) - {case.__name__ for case in CASES}
    check(not unknown, unknown)
    with Server("--served-model-name", "default") as server:
        for case in CASES:
            if case.__name__ in names:
                case(server)
                server.wait_until_idle()


CASES = [sglang_bench, vllm_bench, guidellm, aiperf, inference_perf, lm_eval]
main()
