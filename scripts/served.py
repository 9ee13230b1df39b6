"""What the scripts share that run programs of others against `understory serve`: environments and servers.

Packages are kept in the directory that UNDERSTORY_CLIENTS names, or else in target/clients.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("UNDERSTORY_CLIENTS") or ROOT / "target" / "clients").resolve()
TINY = ROOT / "tests" / "fixtures" / "tiny" / "llama-tied"


def environment(name, *requirements, alone=(), python=sys.executable):
    """The folder of the programs of an environment that has the requirements, and those in
    `alone` without what they depend on."""
    path = CACHE / name
    if not shutil.which(python):
        raise SystemExit(f"{name} needs {python}")
    wanted = "\n".join([*requirements, "alone:", *alone])
    stamp = path / "requirements"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", "--without-pip", path], check=True)
        install = [uv(), "pip", "install", "--quiet", "--python", path / "bin" / "python"]
        if requirements:
            subprocess.run([*install, *requirements], check=True)
        if alone:
            subprocess.run([*install, "--no-deps", *alone], check=True)
        stamp.write_text(wanted)
    return path / "bin"


def uv():
    """An installer that takes seconds where pip takes minutes."""
    path = CACHE / "uv" / "bin" / "uv"
    if not path.exists():
        venv.create(path.parent.parent, with_pip=True)
        pip = [path.parent / "pip", "install", "--quiet", "uv==0.13.9"]
        subprocess.run(pip, check=True)
    return path


def wheel(requirement):
    """The file of a wheel, without what it depends on."""
    folder = CACHE / "wheels" / requirement
    if not list(folder.glob("*.whl")):
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*fetch, "--dest", folder, requirement], check=True)
    return next(folder.glob("*.whl"))


def binary():
    """The server's program: what UNDERSTORY_BINARY names, or else a debug build."""
    named = os.environ.get("UNDERSTORY_BINARY")
    if named:
        return Path(named).resolve()
    build = ["cargo", "build", "--quiet", "--locked", "-p", "understory-server"]
    subprocess.run(build, cwd=ROOT, check=True)
    return ROOT / "target" / "debug" / "understory"


def check(condition, *shown):
    if not condition:
        raise SystemExit(f"failed: {shown}")


def ask(url, body=None, timeout=60):
    """The status and the text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Running:
    """A program in the background, whose output goes to a file until it ends."""

    def __init__(self, *command, **options):
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)

    def wait_for(self, find, seconds=120):
        """What `find` finds, once it does."""
        end = time.monotonic() + seconds
        while True:
            found = find()
            if found:
                return found
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.process.args[0]} did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.log.unlink()


class Server(Running):
    """`understory serve` with a model, on a free port unless the flags name one."""

    def __init__(self, *flags, model=TINY):
        super().__init__(binary(), "serve", str(model), "--port", "0", *flags)
        self.url = self.wait_for(self._address)

    def _address(self):
        for line in self.log.read_text().splitlines():
            if line.startswith("listening on "):
                return line.removeprefix("listening on ")
        return None

    def load(self):
        """Requests that run or wait."""
        load = json.loads(ask(f"{self.url}/v1/loads")[1])["loads"][0]
        return load["num_running_reqs"] + load["num_waiting_reqs"]

    def series(self, name):
        """The sum of the samples of a metric, over all labels."""
        lines = ask(f"{self.url}/metrics")[1].splitlines()
        own = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        check(own, name)
        return sum(float(line.rsplit(" ", 1)[1]) for line in own)

    def wait_until_idle(self, seconds=10):
        end = time.monotonic() + seconds
        while self.load() > 0:
            check(time.monotonic() < end, "requests still run")
            time.sleep(0.05)


def scratch():
    """A folder that is emptied at the start."""
    path = CACHE / "scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
