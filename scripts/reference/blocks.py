"""Random blocks of every quantized type of GGUF that is read, and what gguf-py makes of them.

A file holds its blocks, one after the other, then their elements as f32. Every byte of the first
blocks is random; the scales of the last ones are the special numbers of their types.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from .common import FIXTURES

RANDOM_BLOCKS = 5
# Infinity, its negative, not a number, negative zero, the smallest subnormal, the largest number.
SPECIAL_HALVES = [0x7C00, 0xFC00, 0x7E01, 0x8000, 0x0001, 0x7BFF]
# Where the f16 scales of a block are, the minimum last.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}


def make(_arguments) -> None:
    """Writes blocks/: a file for each type."""
    directory = FIXTURES / "blocks"
    directory.mkdir(parents=True, exist_ok=True)
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        random = np.random.default_rng(int(kind))
        size = GGML_QUANT_SIZES[kind][1]
        blocks = [random.integers(0, 256, size, dtype=np.uint8) for _ in range(RANDOM_BLOCKS)]
        for at in halves:
            for half in SPECIAL_HALVES:
                block = random.integers(0, 256, size, dtype=np.uint8)
                block[at : at + 2] = np.frombuffer(np.uint16(half).tobytes(), dtype=np.uint8)
                blocks.append(block)
        if name == "MXFP4":
            for exponent in [0, 1, 2, 127, 254, 255]:
                block = random.integers(0, 256, size, dtype=np.uint8)
                block[0] = exponent
                blocks.append(block)
        data = np.stack(blocks)
        with np.errstate(all="ignore"):
            values = quants.dequantize(data, kind).astype(np.float32)
        (directory / f"{name}.bin").write_bytes(data.tobytes() + values.tobytes())
