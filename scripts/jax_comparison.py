#!/usr/bin/env python3
"""Compares steps on XLA's CPU plugin with the same steps of the same model written in JAX.

    python3.12 scripts/jax_comparison.py [ROUNDS]

Needs cargo, and Python 3.12 (or 3.11, with an older jax) with pip; the `jax` package is installed
into the cache directory (see jax_environment.py). Takes a few minutes; 20 rounds by default.

One process runs the executor of backend-xla and JAX's modules, lowered here and compiled by the same
plugin, on the same device; this one runs JAX with the XLA of jaxlib, on as many threads. No flag of
XLA is set for any of them. They take turns, one step each, so that whatever else the machine does
meets all of them. What is printed are medians and minima over the rounds, and the ratios; the
script fails if a step's median is beyond TARGET times JAX's on the same plugin.

The model has SmolLM2-135M's shape: f32, paged KV of 16 tokens a page that is donated, 512 positions
a sequence, 32 sequences. Attention over pages is written in two ways, all pages of a row gathered at
once and a loop over blocks with an online softmax, and the faster one counts for each step.
"""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax_environment

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax_environment.activate(jax_environment.cache_directory())

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import Array, lax  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 20
STEPS = ["decode-8", "decode-32", "prefill-256"]
# The farthest that log probabilities of both may be apart.
TOLERANCE = 1e-3
# A step should take no more than this many times as long as JAX's.
TARGET = 1.1
# The contenders.
OURS = "Understory"
SAME_PLUGIN = "JAX on the same plugin"
JAXLIB = "JAX on jaxlib"

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 30, 576, 9, 3, 64
INTERMEDIATE, VOCABULARY = 1536, 49152
PAGE_SIZE, CONTEXT, SLOTS = 16, 512, 32
TABLE = CONTEXT // PAGE_SIZE
PAGES = SLOTS * TABLE
PREFILL_OUTPUTS = 8
# Pages that a turn of the loop over blocks reads of each row: 128 positions.
BLOCK_PAGES = 8

# Of a layer, in the program's order. Matrices are [inputs, outputs].
LAYER = {
    "input_norm": (HIDDEN,),
    "q": (HIDDEN, HEADS * HEAD_DIM),
    "k": (HIDDEN, KV_HEADS * HEAD_DIM),
    "v": (HIDDEN, KV_HEADS * HEAD_DIM),
    "o": (HEADS * HEAD_DIM, HIDDEN),
    "post_norm": (HIDDEN,),
    "gate": (HIDDEN, INTERMEDIATE),
    "up": (HIDDEN, INTERMEDIATE),
    "down": (INTERMEDIATE, HIDDEN),
}
WEIGHTS = [(VOCABULARY, HIDDEN), *list(LAYER.values()) * LAYERS, (HIDDEN,)]
KV = (PAGES + 1, PAGE_SIZE, 2 * KV_HEADS, HEAD_DIM)


def rms_norm(x: Array, weight: Array) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight


def rope(x: Array, cosine: Array, sine: Array) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def attend_gathered(query: Array, kv: Array, table: Array, positions: Array) -> Array:
    """query [rows, tokens, heads, head_dim], table [rows, pages], positions [rows, tokens]."""
    rows, tokens = positions.shape
    pages = kv[table].reshape(rows, -1, KV_HEADS, 2, HEAD_DIM)
    query = query.reshape(rows, tokens, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    scores = jnp.einsum("rqhgd,rkhd->rhgqk", query, pages[:, :, :, 0]) * HEAD_DIM**-0.5
    seen = jnp.arange(scores.shape[-1]) <= positions[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("rhgqk,rkhd->rqhgd", weights, pages[:, :, :, 1])
    return out.reshape(rows * tokens, HEADS * HEAD_DIM)


def attend_blockwise(query: Array, kv: Array, table: Array, positions: Array) -> Array:
    """As attend_gathered, with no more than a block of each row's pages at a time."""
    rows, tokens = positions.shape
    group = HEADS // KV_HEADS
    query = query.reshape(rows, tokens, KV_HEADS, group, HEAD_DIM) * HEAD_DIM**-0.5
    block = BLOCK_PAGES * PAGE_SIZE

    def turn(index: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        maximum, total, out = state
        pages = kv[lax.dynamic_slice_in_dim(table, index * BLOCK_PAGES, BLOCK_PAGES, axis=1)]
        pages = pages.reshape(rows, block, KV_HEADS, 2, HEAD_DIM)
        scores = jnp.einsum("rqhgd,rkhd->rhgqk", query, pages[:, :, :, 0])
        seen = index * block + jnp.arange(block) <= positions[:, :, None]
        scores = jnp.where(seen[:, None, None], scores, -1e30)
        largest = jnp.maximum(maximum, scores.max(axis=-1))
        weights = jnp.exp(scores - largest[..., None])
        correction = jnp.exp(maximum - largest)
        total = total * correction + weights.sum(axis=-1)
        added = jnp.einsum("rhgqk,rkhd->rhgqd", weights, pages[:, :, :, 1])
        return largest, total, out * correction[..., None] + added

    empty = jnp.zeros((rows, KV_HEADS, group, tokens))
    state = empty - 1e30, empty, jnp.zeros((*empty.shape, HEAD_DIM))
    turns = jnp.max(positions) // block + 1
    _, total, out = lax.fori_loop(0, turns, turn, state)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows * tokens, HEADS * HEAD_DIM)


def step(
    attend,
    rows: int,
    weights: list[Array],
    kv: list[Array],
    tables: Array,
    ids: Array,
    slots: Array,
    positions: Array,
    outputs: Array,
) -> tuple[list[Array], Array]:
    """The new tokens of `rows` rows, all of the same number. Gives the KV pages and logits."""
    embedding, *layers, last_norm = weights
    tokens = ids.shape[0]
    frequencies = 100000.0 ** (-np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    angles = positions[:, None, None].astype(jnp.float32) * frequencies
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    page, offset = tables[slots, positions // PAGE_SIZE], positions % PAGE_SIZE
    by_row = (rows, tokens // rows)
    table = tables[slots.reshape(by_row)[:, 0]]

    x = embedding[ids]
    written = []
    for index, pages in enumerate(kv):
        layer = dict(zip(LAYER, layers[index * len(LAYER) :]))
        h = rms_norm(x, layer["input_norm"])
        query = rope((h @ layer["q"]).reshape(tokens, HEADS, HEAD_DIM), cosine, sine)
        key = rope((h @ layer["k"]).reshape(tokens, KV_HEADS, HEAD_DIM), cosine, sine)
        value = (h @ layer["v"]).reshape(tokens, KV_HEADS, HEAD_DIM)
        both = jnp.stack([key, value], axis=2).reshape(tokens, 2 * KV_HEADS, HEAD_DIM)
        pages = pages.at[page, offset].set(both)
        written.append(pages)
        query = query.reshape(*by_row, HEADS, HEAD_DIM)
        x = x + attend(query, pages, table, positions.reshape(by_row)) @ layer["o"]
        h = rms_norm(x, layer["post_norm"])
        x = x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
    return written, rms_norm(x[outputs], last_norm) @ embedding.T


ATTENTION = {"gathered": attend_gathered, "blockwise": attend_blockwise}


def inputs(name: str) -> tuple[int, list[np.ndarray]]:
    """The rows of a step, and its ids, slots, positions and outputs."""
    kind, count = name.split("-")
    tokens = np.arange(int(count), dtype=np.int32)
    ids = 1000 + tokens * 7919 % 40000
    if kind == "decode":
        return len(tokens), [ids, tokens, CONTEXT - 1 - tokens * 7 % 64, tokens]
    outputs = np.zeros(PREFILL_OUTPUTS, np.int32)
    outputs[0] = len(tokens) - 1
    return 1, [ids, np.zeros_like(tokens), tokens, outputs]


class Jax:
    """The model in this process, on jaxlib's XLA."""

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        draw = functools.partial(generator.uniform, -0.05, 0.05)
        self.weights = [
            jnp.asarray(draw(shape), jnp.float32) if len(shape) == 2 else jnp.ones(shape)
            for shape in WEIGHTS
        ]
        self.kv = [jnp.zeros(KV) for _ in range(LAYERS)]
        entries = np.arange(PAGES) * 389 % PAGES
        tables = np.append(entries, np.full(TABLE, PAGES)).reshape(SLOTS + 1, TABLE)
        self.tables = jnp.asarray(tables, jnp.int32)
        self.steps: dict[tuple[str, str], tuple] = {}

    def prepare(self, name: str, kind: str) -> str:
        """Compiles a step with one kind of attention. Gives the lowered module."""
        rows, arrays = inputs(name)
        arrays = [jnp.asarray(array) for array in arrays]
        stepped = functools.partial(step, ATTENTION[kind], rows)
        jitted = jax.jit(stepped, donate_argnums=1, keep_unused=True)
        lowered = jitted.lower(self.weights, self.kv, self.tables, *arrays)
        self.steps[name, kind] = lowered.compile(), arrays
        return lowered.as_text()

    def run(self, name: str, kind: str) -> float:
        compiled, arrays = self.steps[name, kind]
        start = time.perf_counter()
        self.kv, logits = compiled(self.weights, self.kv, self.tables, *arrays)
        logits.block_until_ready()
        return time.perf_counter() - start


class Child:
    """The benchmark in Rust, which answers line by line."""

    def __init__(self, plugin: str, folder: str) -> None:
        command = ["cargo", "bench", "-q", "-p", "backend-xla", "--bench", "jax_comparison", "--"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*command, plugin, folder], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        if self.answer() != "ready":
            sys.exit("the benchmark did not start")

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        return line or sys.exit("the benchmark ended")

    def ask(self, what: str, name: str) -> float:
        self.process.stdin.write(f"{what} {name}\n")
        self.process.stdin.flush()
        return float(self.answer())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    script = [sys.executable, ROOT / "scripts" / "pjrt_plugin.py", "cpu"]
    plugin = os.environ.get("UNDERSTORY_PJRT_CPU_PLUGIN") or subprocess.check_output(
        script, text=True
    )
    is_slower = False
    with tempfile.TemporaryDirectory() as folder:
        model = Jax()
        for name in STEPS:
            for kind in ATTENTION:
                Path(folder, f"{name}.{kind}.mlir").write_text(model.prepare(name, kind))
        child = Child(plugin.strip(), folder)
        # The prompt first: decoding then attends to keys that are not all zero.
        for name in reversed(STEPS):
            for kind in ATTENTION:
                difference = child.ask("difference", f"{name}.{kind}")
                print(f"{name}, {kind}: log probabilities differ by {difference:.1e}", flush=True)
                if not difference < TOLERANCE:
                    sys.exit("that is no rounding")
        print(f"JAX {jax.__version__}, {os.cpu_count()} cores, {rounds} rounds; ms: median (minimum)")
        for name in STEPS:
            is_slower |= report(name, time_step(name, rounds, child, model))
    if is_slower:
        sys.exit(f"slower than {TARGET} times JAX")


def time_step(name: str, rounds: int, child: Child, model: Jax) -> dict[str, list[float]]:
    """Milliseconds of each contender, round by round."""
    contenders = {
        OURS: lambda: child.ask("step", name),
        "Understory with sampler": lambda: child.ask("sampled", name),
    }
    for kind in ATTENTION:
        same = functools.partial(child.ask, "jax", f"{name}.{kind}")
        contenders[f"{SAME_PLUGIN}, {kind}"] = same
        contenders[f"{JAXLIB}, {kind}"] = functools.partial(model.run, name, kind)
    times = {title: [] for title in contenders}
    for round in range(rounds + 1):
        order = list(contenders)
        start = round % len(order)
        for title in order[start:] + order[:start]:
            seconds = contenders[title]()
            # The first round warms up.
            if round > 0:
                times[title].append(seconds * 1e3)
    return times


def report(name: str, times: dict[str, list[float]]) -> bool:
    """Prints a step's figures. Tells whether JAX on the same plugin beats the target."""
    median = {title: statistics.median(values) for title, values in times.items()}
    least = {title: min(values) for title, values in times.items()}
    for title in times:
        print(f"  {name:12} {title:34} {median[title]:8.1f} ({least[title]:.1f})")
    is_slower = False
    for whose in (SAME_PLUGIN, JAXLIB):
        theirs = [title for title in times if title.startswith(whose)]
        of_medians = median[OURS] / min(median[title] for title in theirs)
        of_minima = least[OURS] / min(least[title] for title in theirs)
        print(f"  {name:12} {of_medians:.2f} times {whose} (minima: {of_minima:.2f})", flush=True)
        is_slower |= whose == SAME_PLUGIN and of_medians > TARGET
    return is_slower


if __name__ == "__main__":
    main()
