"""Puts routers of others, unmodified, in front of two servers.

    python3 scripts/routers.py [NAME ..]

Names are those of `ROUTERS`; without one, all run. Checked of each: requests of one prefix stick to
one server, and both servers are used; a flush reaches both; a server that is killed costs its own
streams only, and the router goes on with the other.
"""

import http.client
import json
import socket
import sys
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from served import Running, Server, ask, check, environment

# A server that fails once is out.
WATCH = ["--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
# The wheel of each, and its program.
ROUTERS = {
    "smg": ("smg==1.13.0", ["smg", "launch"]),
    "sglang-router": ("sglang-router==0.3.2", ["sglang-router", "launch"]),
    "vllm-router": ("vllm-router==0.1.17", ["vllm-router"]),
}
PREFIXES = 6
TOKENS = 380


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def router(name, servers):
    requirement, command = ROUTERS[name]
    programs = environment(name, requirement)
    port = free_port()
    urls = [server.url for server in servers]
    flags = ["--host", "127.0.0.1", "--port", port, "--worker-urls", *urls]
    flags += ["--policy", "cache_aware", "--prometheus-port", free_port(), *WATCH]
    print(f"{name}: {' '.join(command + flags)}", flush=True)
    running = Running(str(programs / command[0]), *command[1:], *flags)
    running.url = f"http://127.0.0.1:{port}"
    body = completion("ready", 1)
    running.wait_for(lambda: answers(running.url, body))
    return running


def answers(url, body):
    try:
        return ask(f"{url}/v1/completions", body)[0] == 200
    except OSError:
        return False


def completion(prompt, tokens):
    body = {"model": "default", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    return {**body, "temperature": 0}


def prefix(number):
    # Unlike from the first letter on: routers compare texts from their beginning.
    return f"{chr(ord('A') + number)}. " + f"rule {number} of the house; " * 8


def asked(server):
    return server.series("understory_request_seconds_count")


def grown(before, after):
    """The one server of which a number has grown."""
    grew = [now > then for now, then in zip(after, before, strict=True)]
    check(sum(grew) == 1, before, after)
    return grew.index(True)


def sticks(running, servers):
    homes, streams = {}, []
    # A new prefix goes to the server with the least to do, so the first answers last a while.
    for number in range(PREFIXES):
        before = [server.load() for server in servers]
        streams.append(Stream(running.url, completion(prefix(number), TOKENS)))
        while streams[-1].events == 0:
            time.sleep(0.001)
        homes[number] = grown(before, [server.load() for server in servers])
    check(set(homes.values()) == {0, 1}, homes)
    for stream in streams:
        stream.join()
        check(stream.tokens == TOKENS, stream.tokens)
    for turn in range(8):
        for number, home in homes.items():
            before = [asked(server) for server in servers]
            body = completion(f"{prefix(number)} Turn {turn}.", 4)
            status, text = ask(f"{running.url}/v1/completions", body)
            check(status == 200, status, text)
            check(grown(before, [asked(server) for server in servers]) == home, number, turn)
            cached = json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]
            check(cached > 32, number, turn, cached)
    return homes


def flushes(running, servers, homes):
    status, text = ask(f"{running.url}/flush_cache", {})
    check(status == 200, status, text)
    for number, home in homes.items():
        body = completion(prefix(number), 1)
        usage = json.loads(ask(f"{servers[home].url}/v1/completions", body)[1])["usage"]
        check(usage["prompt_tokens_details"]["cached_tokens"] == 0, number, usage)


class Stream(threading.Thread):
    """Reads a streamed answer."""

    def __init__(self, url, body):
        super().__init__(daemon=True)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self.url, self.body = urlsplit(url), json.dumps(body)
        # Tokens are known at the end of an answer that did not break off.
        self.events, self.tokens = 0, None
        self.start()

    def run(self):
        connection = http.client.HTTPConnection(self.url.netloc, timeout=60)
        head = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", self.body, head)
        try:
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    self.events += 1
                    usage = json.loads(line.removeprefix(b"data: ")).get("usage") or {}
                    self.tokens = usage.get("completion_tokens", self.tokens)
        except (OSError, http.client.HTTPException):
            pass


def survives(running, servers, homes):
    streams = {
        (number, turn): Stream(running.url, completion(f"{prefix(number)}{turn}", TOKENS))
        for number in homes
        for turn in range(6)
    }
    end = time.monotonic() + 60
    while not all(stream.events > 3 for stream in streams.values()):
        check(time.monotonic() < end, [stream.events for stream in streams.values()])
        time.sleep(0.001)
    loads = [server.load() for server in servers]
    check(min(loads) > 0 and sum(loads) == len(streams), loads)
    servers[0].kill()
    for stream in streams.values():
        stream.join()
    broken = [key for key, stream in streams.items() if stream.tokens != TOKENS]
    check(len(broken) == loads[0], loads, broken)
    # It may take the router a moment to see that a server is gone.
    body = completion("after", 2)
    running.wait_for(lambda: all(answers(running.url, body) for _ in range(8)), 30)


def main():
    names = sys.argv[1:] or list(ROUTERS)
    for name in names:
        with ExitStack() as stack:
            servers = [
                stack.enter_context(Server("--served-model-name", "default")) for _ in range(2)
            ]
            running = stack.enter_context(router(name, servers))
            homes = sticks(running, servers)
            print(f"{name}: {PREFIXES} prefixes stick", flush=True)
            flushes(running, servers, homes)
            print(f"{name}: a flush reaches both servers", flush=True)
            survives(running, servers, homes)
            print(f"{name}: a killed server costs its own streams", flush=True)


if __name__ == "__main__":
    main()
