#!/usr/bin/env python3
"""Reads a GGUF file with the Python package `gguf` and prints what is in it as one JSON object.

Each tensor is a list: name, type, shape ([out, in]), CRC-32 of its values as f32 (rows in order).
"""
import json
import sys
import zlib

import numpy as np
from gguf import GGUFReader, dequantize


def main():
    reader = GGUFReader(sys.argv[1])
    keys = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            keys[name] = field.contents()
    tensors = []
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        shape = [int(dim) for dim in reversed(tensor.shape)]
        tensors.append([tensor.name, tensor.tensor_type.name.lower(), shape, zlib.crc32(values.tobytes())])
    json.dump({"keys": keys, "tensors": tensors}, sys.stdout)


main()
