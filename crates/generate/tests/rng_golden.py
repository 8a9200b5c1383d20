"""Writes rng_golden.txt: the first 64 outputs of xoshiro256++ seeded by SplitMix64 with 42."""
from pathlib import Path

MASK = (1 << 64) - 1


def splitmix(seed):
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        word = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        yield word ^ (word >> 31)


def rotl(word, by):
    return ((word << by) | (word >> (64 - by))) & MASK


def xoshiro(seed):
    source = splitmix(seed)
    s0, s1, s2, s3 = (next(source) for _ in range(4))
    while True:
        yield (rotl((s0 + s3) & MASK, 23) + s0) & MASK
        shifted = (s1 << 17) & MASK
        s2 ^= s0
        s3 ^= s1
        s1 ^= s2
        s0 ^= s3
        s2 ^= shifted
        s3 = rotl(s3, 45)


numbers = xoshiro(42)
Path(__file__).with_suffix(".txt").write_text("".join(f"{next(numbers)}\n" for _ in range(64)))
