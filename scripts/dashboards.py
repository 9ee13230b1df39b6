"""Has Prometheus scrape a server, and asks it for what dashboards show.

    python3 scripts/dashboards.py

Prometheus is the one on the path, or else Debian's package, unpacked into the cache. After some
traffic, each expression of `server/examples/grafana.json` must have a value that is a number, and
so must the expressions that SGLang's and vLLM's dashboards make of their own names: quantiles,
means and heat maps of histograms, rates of counters, gauges as they are.
"""

import json
import math
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from routers import completion, free_port
from served import CACHE, ROOT, Running, Server, ask, check, scratch

# Seconds over which Grafana would take rates.
INTERVAL = "20s"
SGLANG = {
    "gauges": "num_running_reqs num_queue_reqs gen_throughput cache_hit_rate token_usage num_used_tokens",
    "counters": "prompt_tokens_total generation_tokens_total num_requests_total",
    "histograms": "time_to_first_token_seconds e2e_request_latency_seconds inter_token_latency_seconds",
}
VLLM = {
    "gauges": "num_requests_running num_requests_waiting kv_cache_usage_perc",
    "counters": "prompt_tokens_total generation_tokens_total request_success_total",
    "histograms": "time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds "
    "request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds "
    "request_prompt_tokens request_generation_tokens request_max_num_generation_tokens",
}


def prometheus():
    found = shutil.which("prometheus")
    if found:
        return Path(found)
    folder = CACHE / "prometheus"
    program = folder / "usr" / "bin" / "prometheus"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet", "prometheus"], cwd=folder, check=True)
        package = next(folder.glob("prometheus_*.deb"))
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return program


def derived(prefix, names):
    """What a dashboard asks of names of these kinds."""
    own = '{model_name="$model"}'
    for name in names["gauges"].split():
        yield f"{prefix}:{name}{own}"
    for name in names["counters"].split():
        yield f"rate({prefix}:{name}{own}[$__rate_interval])"
        yield f"sum(increase({prefix}:{name}{own}[$__rate_interval]))"
    for name in names["histograms"].split():
        buckets = f"{prefix}:{name}_bucket{own}[$__rate_interval]"
        for part in (0.99, 0.95, 0.9, 0.5):
            yield f"histogram_quantile({part}, sum by(le) (rate({buckets})))"
        yield f"sum by(le) (increase({buckets}))"
        total, count = (
            f"rate({prefix}:{name}_{end}{own}[$__rate_interval])" for end in ("sum", "count")
        )
        yield f"avg({total} / {count})"


def expressions():
    board = json.loads((ROOT / "server" / "examples" / "grafana.json").read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    yield from (target["expr"] for target in targets)
    yield from derived("sglang", SGLANG)
    yield from derived("vllm", VLLM)


def values(url, expression):
    answer = json.loads(ask(f"{url}/api/v1/query?query={quote(expression)}")[1])
    check(answer["status"] == "success", expression, answer)
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def traffic(server):
    body = {**completion("Some traffic.", 24), "stream": True}
    for turn in range(6):
        status, text = ask(f"{server.url}/v1/completions", {**body, "prompt": f"Traffic {turn}."})
        check(status == 200, text)


def main():
    with Server("--served-model-name", "default") as server:
        folder, url = scratch(), f"http://127.0.0.1:{free_port()}"
        target = {"targets": [server.url.removeprefix("http://")]}
        job = {"job_name": "understory", "static_configs": [target]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
        # Its files are YAML, of which JSON is a part.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        flags.append(f"--web.listen-address={url.removeprefix('http://')}")
        with Running(str(prometheus()), *flags) as running:
            running.wait_for(lambda: is_up(url))
            # Rates need traffic between two scrapes.
            for _ in range(4):
                traffic(server)
                time.sleep(1.2)
            count = 0
            for expression in expressions():
                asked = expression.replace("$__rate_interval", INTERVAL).replace(
                    "$model", "default"
                )
                found = values(url, asked)
                check(any(math.isfinite(value) for value in found), asked, found)
                count += 1
            tokens = values(url, "increase(understory_generated_tokens_total[20s]) > 0")
            check(tokens, "no tokens were counted")
    print(f"Prometheus: {count} expressions have a value", flush=True)


def is_up(url):
    try:
        return values(url, 'up{job="understory"}') == [1]
    # While it starts, it answers with a sentence.
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    main()
