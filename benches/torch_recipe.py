#!/usr/bin/env python3
"""The default pruning recipe in plain PyTorch, to compare wall time: `secateur prune M --ratio R` beside it.

    secateur export M -o DIR --format safetensors --dtype f32
    benches/torch_recipe.py DIR [--ratio 0.2] [--tokens 16384] [--threads 2] [--json]

It does the arithmetic of the recipe on the shapes and weights of the model: the damage sweep, the pass of teacher and
student, the alignment of inputs, the sums, the second-order removal and the refits, with f32 products and f64
factorisations, everything in memory. Tokens are random: time does not depend on them, quality does, so no model is
written. One simplification favours it: all layers are cut to the same width, so nothing has to be planned.
Needs torch and safetensors.
"""
import argparse
import json
import math
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

WINDOW, STEP, CURVE_WINDOWS, FLOOR = 512, 64, 8, 64


class Layer:
    def __init__(self, weights, idx, config):
        at = lambda name: weights[f"model.layers.{idx}.{name}.weight"].float()
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.eps = config["rms_norm_eps"]
        self.norms = at("input_layernorm"), at("post_attention_layernorm")
        self.q, self.k, self.v, self.o = (at(f"self_attn.{n}_proj") for n in "qkvo")
        self.gate, self.up, self.down = (at(f"mlp.{n}_proj") for n in ("gate", "up", "down"))

    def copy(self):
        twin = object.__new__(Layer)
        twin.__dict__.update(self.__dict__)
        return twin

    def normed(self, rows, which):
        return F.rms_norm(rows, rows.shape[-1:], self.norms[which], self.eps)

    def heads_out(self, rows, rope):
        x = self.normed(rows, 0)
        split = lambda y, n: y.view(WINDOW, n, -1).transpose(0, 1)
        q, k, v = split(x @ self.q.T, self.heads), split(x @ self.k.T, self.kv_heads), split(x @ self.v.T, self.kv_heads)
        q, k = turn(q, rope), turn(k, rope)
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        return out.transpose(0, 1).reshape(WINDOW, -1)

    def attention(self, rows, rope):
        return rows + self.heads_out(rows, rope) @ self.o.T

    def inner(self, mid):
        x = self.normed(mid, 1)
        return F.silu(x @ self.gate.T) * (x @ self.up.T)

    def mlp(self, mid):
        return mid + self.inner(mid) @ self.down.T


def turn(x, rope):
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def solve(gram, cross, weight, ridge=0.3):
    """Weights [d, k] and inverse of the ridge problem around `weight`."""
    g = gram.double()
    diag = g.diagonal()
    damped = g + torch.diag(ridge * diag + 1e-4 * diag.median())
    factor = torch.linalg.cholesky(damped)
    moved = torch.cholesky_solve((cross - gram @ weight.T).double(), factor)
    return weight + moved.T.float(), factor


def remove(gram, cross, weight, keep):
    """Neurons that stay, by second-order removal of 64 at a time."""
    w, factor = solve(gram, cross, weight)
    inverse = torch.cholesky_inverse(factor).float()
    left = torch.arange(w.shape[1])
    while keep < len(left):
        score = w.square().sum(0) / inverse.diagonal()
        gone = score.argsort()[: min(STEP, len(left) - keep)]
        stay = torch.ones(len(left), dtype=torch.bool)
        stay[gone] = False
        k = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        w = (w - w[:, gone] @ k)[:, stay]
        inverse = (inverse - inverse[:, gone] @ k)[stay][:, stay]
        left = left[stay]
    return left


def refit(gram, cross, weight, kept):
    return solve(gram[kept][:, kept], cross[kept], weight[:, kept])[0]


def sweep(layers, windows, rope, head, clock):
    curve, untouched, copies = list(windows[:CURVE_WINDOWS]), windows[-1], []
    for layer in layers:
        copies = [layer.mlp(layer.attention(rows, rope)) for rows in copies]
        gram = torch.zeros(layer.down.shape[1], layer.down.shape[1])
        for at, rows in enumerate(curve):
            mid = layer.attention(rows, rope)
            z = layer.inner(mid)
            gram += z.T @ z
            curve[at] = mid + z @ layer.down.T
        clock("measure forward")
        cross = gram @ layer.down.T
        remove(gram, cross, layer.down, FLOOR)
        kept = remove(gram, cross, layer.down, layer.down.shape[1] // 2)
        narrow = refit(gram, cross, layer.down, kept)
        clock("measure solve")
        mid = layer.attention(untouched, rope)
        copies += [untouched, mid + layer.inner(mid)[:, kept] @ narrow.T]
        untouched = layer.mlp(mid)
    base = F.log_softmax(untouched[256:] @ head.T, -1)
    for rows in copies:
        F.kl_div(F.log_softmax(rows[256:] @ head.T, -1), base, log_target=True, reduction="batchmean")
    clock("measure forward")


def align(teacher, student, share=0.5, ridge=0.1):
    """The map of inputs; sums over windows of both sides."""
    d = student[0].shape[1]
    gram, cross = torch.zeros(d, d), torch.zeros(d, d)
    for x, y in zip(student, teacher):
        gram += x.T @ x
        cross += x.T @ y
    return solve(gram, gram + share * (cross - gram), torch.eye(d), ridge)[0]


def prune(layers, windows, n_fit, rope, ratio, clock):
    teacher, student = list(windows), list(windows)
    for idx, layer in enumerate(layers):
        own = layer.copy()
        if idx:
            m = align([layer.normed(t, 0) for t in teacher[:n_fit]], [own.normed(h, 0) for h in student[:n_fit]])
            own.q, own.k, own.v = own.q @ m, own.k @ m, own.v @ m
            clock("align")
        mids = [layer.attention(rows, rope) for rows in teacher]
        n_in, d = layer.o.shape[1], layer.o.shape[0]
        gram, cross = torch.zeros(n_in, n_in), torch.zeros(n_in, d)
        for h, mid in zip(student[:n_fit], mids):
            heads = own.heads_out(h, rope)
            gram += heads.T @ heads
            cross += heads.T @ (0.8 * heads @ layer.o.T + 0.2 * (mid - h))
        clock("calibrate")
        own.o = solve(gram, cross, layer.o)[0]
        clock("solve")
        own_mids = [own.attention(rows, rope) for rows in student]
        clock("calibrate")
        m = align([layer.normed(t, 1) for t in mids[:n_fit]], [own.normed(h, 1) for h in own_mids[:n_fit]])
        own.gate, own.up = own.gate @ m, own.up @ m
        clock("align")
        k = layer.down.shape[1]
        gram, cross = torch.zeros(k, k), torch.zeros(k, d)
        for at, mid in enumerate(mids):
            teacher[at] = layer.mlp(mid)
            if at < n_fit:
                z = own.inner(own_mids[at])
                gram += z.T @ z
                cross += z.T @ (0.8 * z @ layer.down.T + 0.2 * (teacher[at] - own_mids[at]))
        clock("calibrate")
        per_neuron, matrices = 3 * d, 2 * d * n_in + 2 * d * layer.k.shape[0] + 3 * d * k
        keep = k - round(ratio * matrices / per_neuron)
        kept = remove(gram, cross, layer.down, keep)
        own.down = refit(gram, cross, layer.down, kept)
        own.gate, own.up = own.gate[kept], own.up[kept]
        clock("solve")
        student = [own.mlp(mid) for mid in own_mids]
        clock("advance")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    started = last = time.perf_counter()
    stages = {}

    def clock(stage):
        nonlocal last
        now = time.perf_counter()
        stages[stage] = stages.get(stage, 0.0) + now - last
        last = now

    config = json.loads((args.checkpoint / "config.json").read_text())
    weights = {}
    for file in sorted(args.checkpoint.glob("*.safetensors")):
        weights.update(load_file(file))
    layers = [Layer(weights, idx, config) for idx in range(config["num_hidden_layers"])]
    embed = weights["model.embed_tokens.weight"].float()
    head = weights.get("lm_head.weight", embed).float()
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = config.get("rope_theta", 1e4) ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(WINDOW)[:, None] * frequencies
    n_fit = math.ceil(args.tokens / WINDOW)
    n_windows = n_fit + min(max(n_fit // 8, 1), 8)
    windows = [embed[torch.randint(len(embed), (WINDOW,))] for _ in range(n_windows)]
    clock("load")
    rope = angles.cos(), angles.sin()
    sweep(layers, windows[:n_fit], rope, head, clock)
    prune(layers, windows, n_fit, rope, args.ratio, clock)
    result = {
        "seconds": time.perf_counter() - started,
        "stages": stages,
        "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result) if args.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
