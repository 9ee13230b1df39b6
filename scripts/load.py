"""Has many idle, slow and broken clients at once beside one that must be served.

    python3 scripts/load.py

The server is a process of its own, whose memory, threads and open files are read from /proc: all
must be what they were once the clients have gone. Streams and aborts by the thousand are a test of
the server's, `UNDERSTORY_LOAD=full cargo test --release -p understory-server --test load`.
"""

import json
import os
import resource
import socket
import time
from urllib.parse import urlsplit

from routers import completion
from served import Server, ask, check

IDLE = 10_000
SLOW = 50
MEBIBYTE = 1 << 20


class Watched(Server):
    def uses(self):
        root = f"/proc/{self.process.pid}"
        with open(f"{root}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return {
            "memory": int(fields["VmRSS"].split()[0]) // 1024,
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"{root}/fd")),
        }

    def connect(self):
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=90)

    def serves(self):
        """Seconds until somebody else has an answer."""
        begin = time.monotonic()
        status, text = ask(f"{self.url}/v1/completions", completion("Is anybody there?", 8))
        check(status == 200, status, text)
        return time.monotonic() - begin

    def settles(self, before, memory):
        """All is as before, up to so many MiB."""
        end = time.monotonic() + 30
        while True:
            now = self.uses()
            is_settled = now["files"] <= before["files"] and now["threads"] <= before["threads"] + 4
            if is_settled and now["memory"] <= before["memory"] + memory:
                check(self.load() == 0)
                check(self.series("understory_http_requests_open") == 1)
                return now
            check(time.monotonic() < end, before, now)
            time.sleep(0.2)


def answer(connection):
    """The first line of an answer."""
    data = b""
    while chunk := connection.recv(4096):
        data += chunk
    return data.split(b"\r\n")[0].decode()


def idle(server, kept):
    """Connections that ask nothing. Of what they need, the allocator keeps so many MiB."""
    before = server.uses()
    connections = [server.connect() for _ in range(IDLE)]
    end = time.monotonic() + 30
    while server.uses()["files"] < before["files"] + IDLE:
        check(time.monotonic() < end, "connections that are not accepted")
        time.sleep(0.1)
    during, seconds = server.uses(), server.serves()
    check(seconds < 5, seconds)
    each = (during["memory"] - before["memory"]) * 1024 / IDLE
    for connection in connections:
        connection.close()
    server.settles(before, kept)
    print(f"{IDLE} idle connections: {each:.1f} KiB each, others are answered in {seconds:.2f} s")


def slow(server):
    """Heads and bodies that come byte by byte, and never end."""
    before = server.uses()
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n"
    heads = [server.connect() for _ in range(SLOW)]
    bodies = [server.connect() for _ in range(SLOW)]
    for connection in bodies:
        connection.sendall(f"{head}\r\n".encode())
    begin, longest, open_ones = time.monotonic(), 0.0, [*heads, *bodies]
    while open_ones and time.monotonic() < begin + 30:
        for connection in list(open_ones):
            try:
                at = int((time.monotonic() - begin) * 4) % len(head)
                connection.sendall(head[at].encode() if connection in heads else b" ")
            except OSError:
                open_ones.remove(connection)
        longest = max(longest, server.serves())
        time.sleep(0.2)
    check(not open_ones, len(open_ones), "slow clients are still there")
    check(longest < 5, longest)
    took = time.monotonic() - begin
    for connection in (*heads, *bodies):
        connection.close()
    server.settles(before, 32)
    print(
        f"{2 * SLOW} slow clients are given up within {took:.0f} s, others are answered in {longest:.2f} s"
    )


def large(server):
    """Bodies as long as the limit, longer ones, and ones of which half comes."""
    before = server.uses()
    limit = 64 * MEBIBYTE
    frame = len(json.dumps({"prompt": ""}))
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n"
    most = 0
    for number in range(12):
        connection = server.connect()
        body = json.dumps({"prompt": "x" * (limit - frame)}).encode()
        connection.sendall(head.format(len(body)).encode())
        connection.sendall(body)
        most = max(most, server.uses()["memory"])
        line = answer(connection)
        check(line.startswith("HTTP/1.1 400"), number, line)
        connection.close()
    connection = server.connect()
    connection.sendall(head.format(limit + 1).encode())
    check(answer(connection).startswith("HTTP/1.1 413"))
    halves = [server.connect() for _ in range(12)]
    for connection in halves:
        connection.sendall(head.format(8 * MEBIBYTE).encode())
        connection.sendall(b" " * (4 * MEBIBYTE))
    seconds = server.serves()
    check(seconds < 5, seconds)
    for connection in halves[::2]:
        connection.close()
    for connection in halves[1::2]:
        check(answer(connection).startswith("HTTP/1.1 408"))
        connection.close()
    # The allocator keeps some of what was freed.
    after = server.settles(before, 256)
    print(
        f"bodies of 64 MiB: at most {most} MiB, {after['memory']} MiB afterwards, {before['memory']} before"
    )


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    check(hard > IDLE + 500, hard, "open files are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    patience = [
        "--timeout-keep-alive",
        "8",
        "--timeout-body",
        "8",
        "--served-model-name",
        "default",
    ]
    with Watched(*patience) as server:
        server.serves()
        slow(server)
        large(server)
    with Watched("--served-model-name", "default") as server:
        server.serves()
        # What the allocator keeps for its arenas grows twice, and then no more.
        for kept in (256, 128, 32):
            idle(server, kept)


if __name__ == "__main__":
    main()
