#!/usr/bin/env python3
"""Independent float32 run of a Llama-family GGUF in numpy; makes `reference_greedy.json`.

Needs the packages numpy, gguf and tokenizers. Nothing of Secateur is used: weights are dequantised by
`gguf`, the tokenizer is put together from the file's vocabulary, the forward pass is written out below.

    make_reference.py MODEL.gguf            writes reference_greedy.json beside this script
    make_reference.py MODEL.gguf --ppl TEXT prints perplexity of the first tokens of TEXT
"""
import argparse
import json
import math
import pathlib

import numpy as np
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, AddedToken

PROMPTS = [
    "<|im_start|>user\nName three uses of a pair of secateurs.<|im_end|>\n<|im_start|>assistant\n",
    "The quick brown fox",
    "def fibonacci(n):\n    ",
]
NEW_TOKENS = 64


def text_of(field):
    return [bytes(field.parts[i]).decode("utf-8") for i in field.data]


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        fields = reader.fields

        def value(key):
            return fields["llama." + key].parts[-1][0]

        self.n_layers = int(value("block_count"))
        self.n_heads = int(value("attention.head_count"))
        self.n_kv = int(value("attention.head_count_kv"))
        self.eps = np.float32(value("attention.layer_norm_rms_epsilon"))
        self.theta = float(value("rope.freq_base"))
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        self.hidden = self.w["token_embd.weight"].shape[1]
        self.head_dim = self.hidden // self.n_heads
        self.tokenizer = self.make_tokenizer(fields)

    @staticmethod
    def make_tokenizer(fields):
        tokens = text_of(fields["tokenizer.ggml.tokens"])
        merges = [tuple(m.split(" ")) for m in text_of(fields["tokenizer.ggml.merges"])]
        types = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
        tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, types) if k == 3])
        return tokenizer

    def norm(self, x, name):
        scale = 1.0 / np.sqrt((x * x).mean(-1, keepdims=True, dtype=np.float32) + self.eps)
        return (x * scale * self.w[name]).astype(np.float32)

    def rope(self, x, start):
        """Neighbouring pairs turn together, as in the GGUF `llama` layout."""
        n, _, d = x.shape
        freq = self.theta ** (-np.arange(0, d, 2, dtype=np.float64) / d)
        angle = np.arange(start, start + n)[:, None] * freq[None]
        cos, sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return out

    def forward(self, ids, cache):
        """Logits of all positions in `ids`; `cache` is a list of (keys, values), extended in place."""
        x = self.w["token_embd.weight"][ids]
        start = cache[0][0].shape[0] if cache[0] is not None else 0
        for layer in range(self.n_layers):
            p = f"blk.{layer}."
            h = self.norm(x, p + "attn_norm.weight")
            n = len(ids)
            q = self.rope((h @ self.w[p + "attn_q.weight"].T).reshape(n, self.n_heads, -1), start)
            k = self.rope((h @ self.w[p + "attn_k.weight"].T).reshape(n, self.n_kv, -1), start)
            v = (h @ self.w[p + "attn_v.weight"].T).reshape(n, self.n_kv, -1)
            if cache[layer] is not None:
                k = np.concatenate([cache[layer][0], k])
                v = np.concatenate([cache[layer][1], v])
            cache[layer] = (k, v)
            mixed = np.empty((n, self.n_heads, self.head_dim), np.float32)
            visible = np.arange(k.shape[0])[None] <= (start + np.arange(n))[:, None]
            for head in range(self.n_heads):
                g = head // (self.n_heads // self.n_kv)
                s = (q[:, head] @ k[:, g].T) / np.float32(math.sqrt(self.head_dim))
                s = np.where(visible, s, -np.inf)
                s = np.exp(s - s.max(-1, keepdims=True))
                mixed[:, head] = (s / s.sum(-1, keepdims=True)) @ v[:, g]
            x = x + mixed.reshape(n, -1) @ self.w[p + "attn_output.weight"].T
            h = self.norm(x, p + "ffn_norm.weight")
            gate = h @ self.w[p + "ffn_gate.weight"].T
            gate = gate / (1.0 + np.exp(-gate))
            x = x + (gate * (h @ self.w[p + "ffn_up.weight"].T)) @ self.w[p + "ffn_down.weight"].T
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        return self.norm(x, "output_norm.weight") @ head.T


def greedy(model, prompt):
    ids = model.tokenizer.encode(prompt, add_special_tokens=False).ids
    cache = [None] * model.n_layers
    logits = model.forward(ids, cache)[-1]
    new, margins = [], []
    for _ in range(NEW_TOKENS):
        top = np.partition(logits, -2)[-2:]
        margins.append(round(float(top[1] - top[0]), 4))
        new.append(int(logits.argmax()))
        logits = model.forward([new[-1]], cache)[-1]
    return {"prompt": prompt, "prompt_ids": ids, "new_ids": new, "smallest_margin": min(margins)}


def perplexity(model, path, max_tokens, seq_len):
    ids = model.tokenizer.encode(open(path, encoding="utf-8", newline="").read(), add_special_tokens=False).ids
    total, count = 0.0, 0
    for at in range(0, min(max_tokens, len(ids)), seq_len):
        window = ids[at : at + seq_len]
        logits = model.forward(window, [None] * model.n_layers).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= logp[np.arange(len(window) - 1), window[1:]].sum()
        count += len(window) - 1
    return math.exp(total / count), count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--ppl")
    parser.add_argument("--max-tokens", type=int, default=8192)
    args = parser.parse_args()
    model = Model(args.model)
    if args.ppl:
        print(json.dumps(dict(zip(("perplexity", "tokens"), perplexity(model, args.ppl, args.max_tokens, 2048)))))
        return
    out = pathlib.Path(__file__).with_name("reference_greedy.json")
    out.write_text(json.dumps([greedy(model, p) for p in PROMPTS], indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
