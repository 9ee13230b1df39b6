#!/usr/bin/env python3
"""Lowers JAX's ragged paged attention kernel for TPUs to StableHLO, on a machine with no TPU.

    python3 scripts/ragged_paged_attention.py folder [--cache DIR]
    python3 scripts/ragged_paged_attention.py lower [--cache DIR] <shapes.json
    python3 scripts/ragged_paged_attention.py check [--cache DIR]

`folder` prints where kernels are kept. `lower` reads a JSON list of shapes (see `Shape`), lowers
what is not there yet, and prints for each shape, in order, one line: `kernel` and its path, or
`error` and why this kernel can't serve it. `check` runs the kernel in Pallas' interpreter
on the processor and compares it with attention written out in numpy, on batches as the XLA
backend makes them.

Needs Python 3.11 or 3.12 with pip; the `jax` package is installed into the cache directory (see
jax_environment.py). A kernel is a function of StableHLO around one custom call, which libtpu
compiles; its text is tied to the versions of jax and libtpu, which are in the folder's name. It
depends on the TPU's generation only through the sizes of its blocks. backend-xla splices it into
its modules (backend-xla/src/pallas.rs).
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import struct
import sys
import tempfile
from pathlib import Path

import jax_environment
from pjrt_plugin import PLUGINS

MAGIC = "// understory kernel 1"
ENTRY = "ragged_paged_attention"
# Lowers the kernel to plain StableHLO, which runs anywhere, slowly: for tests.
INTERPRETER = "interpreter"
# What the two buffers of KV blocks may take of the memory beside a TPU's cores, where the kernel's
# own table has no entry. The smallest generation has 16 MiB of it.
KV_BUFFER_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a kernel is lowered for, on one device."""

    target: str  # the kind of device, such as "TPU v6 lite", or "interpreter"
    dtype: str  # of queries, KV and output: "bfloat16" or "float32"
    tokens: int  # queries: [tokens, heads, head_dim]
    heads: int
    kv_heads: int  # KV: [pages, page_size, 2 * kv_heads, head_dim], K and V of a head adjacent
    head_dim: int
    pages: int
    page_size: int
    rows: int  # page tables: [rows, pages_per_row]
    pages_per_row: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    # The kernel's own choice, if none are given.
    kv_pages_per_block: int | None = None
    queries_per_block: int | None = None

    def name(self) -> str:
        """The name of its file; backend-xla composes the same."""
        name = (
            f"{self.target.lower().replace(' ', '-')}_{self.dtype}_q{self.tokens}x{self.heads}"
            f"_kv{self.pages}x{self.page_size}x{self.kv_heads}x{self.head_dim}"
            f"_rows{self.rows}x{self.pages_per_row}_scale{bits(self.scale)}"
        )
        if self.window is not None:
            name += f"_window{self.window}"
        if self.soft_cap is not None:
            name += f"_cap{bits(self.soft_cap)}"
        if self.kv_pages_per_block or self.queries_per_block:
            name += f"_block{self.kv_pages_per_block}x{self.queries_per_block}"
        return f"{name}.mlir"


def bits(value: float) -> str:
    """A number as the hexadecimal digits of an f32, since decimal ones may differ."""
    return struct.pack(">f", value).hex()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["folder", "lower", "check"])
    parser.add_argument("--cache", type=Path, default=jax_environment.cache_directory())
    arguments = parser.parse_args()
    folder = kernel_folder(arguments.cache)
    if arguments.command == "folder":
        print(folder)
    elif arguments.command == "lower":
        for shape in [Shape(**shape) for shape in json.load(sys.stdin)]:
            print(lower_one(shape, folder, arguments.cache), flush=True)
    else:
        import_jax(arguments.cache)
        from reference import paged_attention

        paged_attention.check(lambda **sizes: interpreted(Shape(target=INTERPRETER, **sizes)))


def kernel_folder(cache: Path) -> Path:
    jax_version = jax_environment.use_pinned_python()
    libtpu_version = PLUGINS["tpu"]["package"].split("==")[1]
    return cache / f"kernels-1-jax-{jax_version}-libtpu-{libtpu_version}"


def lower_one(shape: Shape, folder: Path, cache: Path) -> str:
    path = folder / shape.name()
    try:
        if not path.exists():
            import_jax(cache)
            write(path, kernel_text(shape))
        return f"kernel {path}"
    # The kernel refuses shapes by whatever its compiler raises.
    except (ValueError, NotImplementedError, AssertionError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        return f"error {type(error).__name__}: {reason}"


def import_jax(cache: Path) -> None:
    # No device is needed, and looking for one takes time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" not in sys.modules:
        jax_environment.activate(cache)


def kernel_text(shape: Shape) -> str:
    """The kernel's functions as text; the one that is called is `ENTRY`."""
    import jax
    from jax.sharding import AbstractDevice, AbstractMesh

    arguments = [jax.ShapeDtypeStruct(*argument) for argument in argument_types(shape)]
    if shape.target == INTERPRETER:
        lowered = jax.jit(lambda *operands: interpreted(shape)(*operands)).lower(*arguments)
        blocks = interpreter_blocks(shape)
    else:
        blocks = block_sizes(shape)
        kernel = compiled(shape, blocks)
        device = AbstractDevice(device_kind=shape.target, num_cores=1, platform="tpu")
        mesh = AbstractMesh((1,), ("device",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(lambda *operands: kernel(*operands)).trace(*arguments)
            lowered = traced.lower(lowering_platforms=("tpu",))
    functions = {}
    for operation in lowered.compiler_ir().body.operations:
        if operation.operation.name == "func.func":
            functions[operation.sym_name.value] = operation.get_asm()
    # The outermost function only calls the kernel.
    functions.pop("main")
    if ENTRY not in functions:
        raise RuntimeError(f"this jax lowers the kernel to {', '.join(functions)}")
    others = "|".join(re.escape(name) for name in functions if name != ENTRY)
    text = "\n".join(functions.values()) + "\n"
    if others:
        text = re.sub(rf"@({others})\b", rf"@{ENTRY}_\1", text)
    pages, queries = blocks
    head = f"// made by jax {jax.__version__}: blocks of {pages} pages and {queries} queries\n"
    return head + text


def argument_types(shape: Shape) -> list[tuple[tuple[int, ...], str]]:
    return [
        ((shape.tokens, shape.heads, shape.head_dim), shape.dtype),
        ((shape.pages, shape.page_size, 2 * shape.kv_heads, shape.head_dim), shape.dtype),
        ((shape.rows,), "int32"),
        ((shape.rows, shape.pages_per_row), "int32"),
        ((shape.rows + 1,), "int32"),
        ((1,), "int32"),
    ]


def compiled(shape: Shape, blocks: tuple[int, int]):
    """The kernel as a function of its operands."""
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel

    def ragged_paged_attention(*operands):
        return kernel.ragged_paged_attention(
            *operands,
            sm_scale=shape.scale,
            sliding_window=shape.window,
            soft_cap=shape.soft_cap,
            num_kv_pages_per_block=blocks[0],
            num_queries_per_block=blocks[1],
        )

    return ragged_paged_attention


def interpreted(shape: Shape):
    """The kernel as a function of its operands, in Pallas' interpreter."""
    import functools

    import jax
    from jax._src import literals
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

    # The interpreter asks integer indices for a shape, which these versions don't give them.
    literals.TypedInt.shape = ()
    blocks = interpreter_blocks(shape)

    @jax.jit
    def ragged_paged_attention(*operands):
        as_is = kernel.pl.pallas_call
        kernel.pl.pallas_call = functools.partial(as_is, interpret=True)
        try:
            return compiled(shape, blocks)(*operands)
        finally:
            kernel.pl.pallas_call = as_is

    return ragged_paged_attention


def interpreter_blocks(shape: Shape) -> tuple[int, int]:
    """Small blocks, so that a test crosses many of their borders."""
    pages = shape.kv_pages_per_block or min(shape.pages_per_row, max(1, 32 // shape.page_size))
    return (pages, shape.queries_per_block or min(shape.tokens, 8))


def block_sizes(shape: Shape) -> tuple[int, int]:
    """KV pages and queries that the kernel works on at one time: what was asked for, or what its
    authors measured to be best for the device, or what fits."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel, tuned_block_sizes

    dtype = jnp.dtype(shape.dtype)
    heads, kv_heads = kernel.get_min_heads_per_blk(shape.heads, 2 * shape.kv_heads, dtype, dtype)
    pages_and_queries = tuned_block_sizes.TUNED_BLOCK_SIZES.get(
        " ".join(shape.target.split()[:2]), {}
    ).get(
        tuned_block_sizes.simplify_key(
            (
                dtype,
                dtype,
                heads,
                kv_heads // 2,
                shape.head_dim,
                shape.page_size,
                shape.tokens,
                shape.pages_per_row,
            )
        )
    )
    page_bytes = shape.page_size * kv_heads * shape.head_dim * dtype.itemsize
    pages, queries = pages_and_queries or (max(1, KV_BUFFER_BYTES // (2 * page_bytes)), 32)
    return (
        shape.kv_pages_per_block or min(shape.pages_per_row, pages),
        shape.queries_per_block or min(shape.tokens, queries),
    )


def write(path: Path, text: str) -> None:
    """Writes a file that is complete or absent, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(f"{MAGIC}\n// sha256 {digest}\n{text}")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


if __name__ == "__main__":
    main()
