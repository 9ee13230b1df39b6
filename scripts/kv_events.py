"""Has programs of others follow the cache events: Dynamo's indexer, and a subscriber of pyzmq and msgspec.

    python3 scripts/kv_events.py [--requests 1000]

Installs pyzmq, msgspec and ai-dynamo-runtime from PyPI into an environment of its own in the cache directory, starts
`kv_events_probe` (an engine with a tiny model) and `python -m dynamo.indexer`, and compares for each of many random
requests the cached length that the indexer foretells with the one that the engine then reports: with evictions,
namespaces (salts), a host tier, windowed layers, a cleared cache, and an indexer that is started anew in the middle.
"""

import argparse
import atexit
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIREMENTS = ["pyzmq==27.3.0", "msgspec==0.22.0", "ai-dynamo-runtime==1.6.1"]
PAGE = 16
INDEXER = "http://127.0.0.1:8190"
SALTS = ["", "alice", "bob"]


def environment():
    cache = os.environ.get("UNDERSTORY_CACHE") or pathlib.Path.home() / ".cache" / "understory"
    path = pathlib.Path(cache) / "environments" / "kv-events"
    python = path / "bin" / "python"
    stamp = path / "requirements"
    if not stamp.exists() or stamp.read_text() != "\n".join(REQUIREMENTS):
        venv.create(path, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        stamp.write_text("\n".join(REQUIREMENTS))
    return python


def post(path, body):
    request = urllib.request.Request(
        INDEXER + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


class Indexer:
    def __init__(self, python, endpoints, log):
        self.process = subprocess.Popen(
            [python, "-m", "dynamo.indexer", "--port", INDEXER.rsplit(":", 1)[1]], stdout=log, stderr=log
        )
        atexit.register(self.process.kill)
        for _ in range(300):
            try:
                post("/register", {"instance_id": 1, "model_name": "m", "block_size": PAGE, **endpoints})
                return
            except urllib.error.URLError:
                time.sleep(0.1)
        raise SystemExit("the indexer does not answer")

    def cached(self, tokens, salt, tier="longest_matched"):
        body = {"token_ids": tokens, "model_name": "m"}
        if salt:
            body["cache_salt"] = salt
        try:
            answer = post("/query", body)
        except urllib.error.HTTPError as error:
            # Nothing was ever stored for the model.
            if error.code == 404:
                return 0
            raise
        return answer.get("instances", {}).get("1", {}).get(tier, 0)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Probe:
    def __init__(self, host_tokens, model="llama-tied"):
        folder = pathlib.Path(tempfile.mkdtemp())
        shutil.copytree(ROOT / "tests/fixtures/tiny" / model, folder, dirs_exist_ok=True)
        if not (folder / "tokenizer.json").exists():
            size = json.loads((folder / "config.json").read_text())["vocab_size"]
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer(size)))
        config = {"publisher": "zmq", "endpoint": "tcp://127.0.0.1:0", "buffer_steps": 40}
        config["replay_endpoint"] = "tcp://127.0.0.1:0"
        command = ["cargo", "run", "--quiet", "--locked", "-p", "understory-server", "--example", "kv_events_probe", "--"]
        command += ["--model", str(folder), "--page-size", str(PAGE)]
        command += ["--kv-tokens", "1024", "--host-tokens", str(host_tokens)]
        command += ["--kv-events-config", json.dumps(config)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoints = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the engine ended")
        return json.loads(line)

    def run(self, tokens, salt, clear=False):
        self.process.stdin.write(json.dumps({"token_ids": tokens, "salt": salt, "clear": clear}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def tokenizer(size):
    """The tiny tokenizer, as far as a vocabulary goes: prompts are tokens, and texts are not read."""
    whole = json.loads((ROOT / "tests/fixtures/tiny/llama-tied/tokenizer.json").read_text())
    model = whole["model"]
    model["vocab"] = {text: number for text, number in model["vocab"].items() if number < size}
    model["merges"] = []
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < size]
    return whole


def prompt(draw):
    beginning = draw.randrange(5)
    common = PAGE * draw.randrange(9)
    tokens = [10 + (beginning * 13 + at) % 100 for at in range(common)]
    return tokens + [10 + draw.randrange(100) for _ in range(1 + draw.randrange(60))], draw.choice(SALTS)


def settle(indexer, tokens, salt, output, may_be_gone):
    """Waits until the indexer knows what a request has stored: it then knows all that came before. With windows, the
    engine may have had to evict it at once."""
    sequence = tokens + output[:-1]
    stored = len(sequence) // PAGE * PAGE
    deadline = time.time() + (1 if may_be_gone else 20)
    while indexer.cached(sequence, salt) < stored:
        if time.time() > deadline:
            if may_be_gone:
                return
            raise SystemExit(f"the indexer knows {indexer.cached(sequence, salt)} of {stored} tokens")
        time.sleep(0.005)


def compare(python, requests, host_tokens, log, model="llama-tied", has_windows=False):
    probe = Probe(host_tokens, model)
    indexer = Indexer(python, probe.endpoints, log)
    draw = random.Random(host_tokens + 1)
    hits = short = wrong = 0
    for number in range(requests):
        if number == requests // 2:
            indexer.stop()
            indexer = Indexer(python, probe.endpoints, log)
        tokens, salt = prompt(draw)
        # A subscriber that has just begun learns with the next batch what it missed.
        is_new = number in (0, requests // 2)
        clear = number == requests // 4
        # One token is computed anew, and pages are found whole.
        whole = (len(tokens) - 1) // PAGE * PAGE
        foretold = min(indexer.cached(tokens, salt), whole)
        on_device = min(indexer.cached(tokens, salt, "gpu"), whole)
        answer = probe.run(tokens, salt, clear)
        if not is_new and not clear:
            hits += foretold > 0
            # What is on the host alone may have to leave it while the engine makes room for loading it. Of windows,
            # whose pages leave earlier, the indexer is told and takes no notice.
            found = answer["cached_tokens"]
            short += found < foretold
            is_right = found == foretold or (bool(host_tokens or has_windows) and found < foretold)
            if not is_right or (found < on_device and not has_windows):
                wrong += 1
                print(f"request {number}: foretold {foretold}, found {answer['cached_tokens']}", file=sys.stderr)
        if not is_new:
            settle(indexer, tokens, salt, answer["output_ids"], may_be_gone=has_windows)
            continue
        wait_for_subscriber(indexer, probe, draw)
    indexer.stop()
    probe.stop()
    print(f"{model}, host tier of {host_tokens} tokens: {requests} requests, {hits} with cached tokens, "
          f"{short} found less than foretold, {wrong} foretold wrong")
    return wrong == 0 and hits > requests // 10 and short <= requests // 10


def wait_for_subscriber(indexer, probe, draw):
    """Sends requests until the indexer hears of one."""
    for _ in range(200):
        tokens, salt = prompt(draw)
        answer = probe.run(tokens, salt)
        sequence = tokens + answer["output_ids"][:-1]
        for _ in range(10):
            if indexer.cached(sequence, salt) >= len(sequence) // PAGE * PAGE > 0:
                return
            time.sleep(0.02)
    raise SystemExit("the indexer hears nothing")


SUBSCRIBER = """
import sys, time, msgspec, zmq
endpoint, replay = sys.argv[1:3]
context = zmq.Context()
live = context.socket(zmq.SUB)
live.connect(endpoint)
live.setsockopt_string(zmq.SUBSCRIBE, "")
live.setsockopt(zmq.RCVTIMEO, 20000)
asker = context.socket(zmq.REQ)
asker.connect(replay)
asker.setsockopt(zmq.RCVTIMEO, 20000)
print("ready", flush=True)
topic, number, payload = live.recv_multipart()
ts, events, rank = msgspec.msgpack.decode(payload)
assert topic == b"" and len(number) == 8 and abs(ts - time.time()) < 60 and rank == 0, (topic, ts, rank)
assert all(event["type"] in ("BlockStored", "BlockRemoved", "AllBlocksCleared") for event in events)
dealer = context.socket(zmq.DEALER)
dealer.connect(replay)
dealer.setsockopt(zmq.RCVTIMEO, 20000)
dealer.send_multipart([b"", (0).to_bytes(8, "big")])
batches = 0
while True:
    empty, topic, seq, payload = dealer.recv_multipart()
    if not payload:
        assert seq == (-1).to_bytes(8, "big", signed=True)
        break
    msgspec.msgpack.decode(payload)
    batches += 1
print(f"pyzmq and msgspec read a live batch and {batches} replayed ones")
"""


def subscribe(python):
    probe = Probe(0)
    command = [python, "-c", SUBSCRIBER, probe.endpoints["endpoint"], probe.endpoints["replay_endpoint"]]
    subscriber = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert subscriber.stdout.readline() == "ready\n"
    draw = random.Random(0)
    while subscriber.poll() is None:
        probe.run(*prompt(draw))
        time.sleep(0.05)
    print(subscriber.stdout.read(), end="")
    probe.stop()
    return subscriber.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="random requests for the indexer")
    arguments = parser.parse_args()
    python = environment()
    with open(ROOT / "target" / "kv_events_indexer.log", "w") as log:
        passed = subscribe(python)
        for host_tokens in (0, 2048):
            passed &= compare(python, arguments.requests // 2, host_tokens, log)
        passed &= compare(python, arguments.requests // 2, 0, log, "gemma2", has_windows=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
