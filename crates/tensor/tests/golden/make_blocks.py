#!/usr/bin/env python3
"""Makes blocks.bin: bytes and values of every block format, by the Python package `gguf`.

Records, little-endian: kind u32 (0 = dequantize, 1 = quantize), ggml type id u32, n_bytes u32,
n_values u32, the bytes, the values as f32. For kind 1 the values are the input, the bytes the output.
"""
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, dequantize, quantize

READ = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
WRITE = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1]
# Byte offsets of the halves inside a block.
HALVES = {
    T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
SCALES = [0.0123, -0.731, 6.0e-6, 311.0]


def random_blocks(rng, dtype):
    block_len, block_bytes = GGML_QUANT_SIZES[dtype]
    if dtype in (T.F32, T.F16, T.BF16):
        return quantize((rng.standard_normal((1, 512)) * 10.0 ** rng.integers(-6, 4, (1, 512))).astype(np.float32), dtype)
    n_blocks = 16 if block_len == 32 else 4
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    for idx in range(n_blocks):
        for place, offset in enumerate(HALVES[dtype]):
            half = np.float16(SCALES[(idx + place) % len(SCALES)])
            blocks[idx, offset:offset + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return blocks.reshape(1, -1)


def inputs(rng):
    rows = [rng.standard_normal(32) * scale for scale in (1e-7, 1e-3, 0.05, 1.0, 900.0) for _ in range(6)]
    rows += [np.zeros(32), np.full(32, 0.25), np.full(32, -3.0), np.linspace(-8, 7, 32), np.arange(32) - 15.5]
    ties = np.arange(32) - 16.0
    ties[0] = 127.0
    rows += [ties + 0.5 * (np.arange(32) != 0), np.where(np.arange(32) % 2 == 0, 1.5, -1.5), -np.abs(rng.standard_normal(32))]
    return np.stack(rows).astype(np.float32).reshape(1, -1)


def record(kind, dtype, data, values):
    data = np.ascontiguousarray(data).tobytes()
    values = np.ascontiguousarray(values, dtype=np.float32).ravel()
    return struct.pack("<4I", kind, int(dtype), len(data), values.size) + data + values.tobytes()


def main():
    rng = np.random.default_rng(20240817)
    out = b""
    for dtype in READ:
        blocks = random_blocks(rng, dtype)
        data = np.frombuffer(np.ascontiguousarray(blocks).tobytes(), np.uint8).reshape(1, -1)
        out += record(0, dtype, data, dequantize(data, dtype))
    values = inputs(rng)
    for dtype in WRITE:
        out += record(1, dtype, quantize(values, dtype), values)
    (pathlib.Path(__file__).parent / "blocks.bin").write_bytes(out)


main()
