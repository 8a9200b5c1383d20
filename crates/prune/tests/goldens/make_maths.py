#!/usr/bin/env python3
"""Makes maths.json: the pruning maths done the long way, on tokens instead of sums.

Independent of the Rust code by construction: nothing here forms normal equations. Every fit is
numpy.linalg.lstsq on the stacked system [A; sqrt(lambda)], every "loss of removing" is a second fit without
the removed columns, every error is a residual over tokens. Run: python3 make_maths.py > maths.json
"""

import json

import numpy as np

K, D, N, N_HELD, SHARE = 24, 10, 160, 80, 0.2


def rounded(array):
    """Three decimals, then through f32: exactly what the Rust side reads."""
    return np.round(array, 3).astype(np.float32).astype(np.float64)


def make_data():
    rng = np.random.default_rng(20250125)
    mix = rng.normal(size=(K, K)) * 0.5 + np.eye(K)
    z = np.tanh(rng.normal(size=(N + N_HELD, K))) @ mix + 0.3
    z[:, 5] *= 12.0  # a massive activation
    z[:, 9] = 0.0  # a silent neuron
    z[:, 14] = z[:, 2] * 0.9 + 0.1 * z[:, 14]  # nearly collinear
    w0 = rng.normal(size=(D, K)) * 0.3
    z, w0 = rounded(z), rounded(w0)
    r = rounded(z @ w0.T * 0.9 + rng.normal(size=(N + N_HELD, D)) * 0.7 + 0.2)
    return z[:N], z[N:], w0, r[:N], r[N:], rng


def damping(energies):
    return 0.01 * energies + 1e-4 * np.median(energies)


def fit(a, t, lam, prior):
    """argmin ||a x - t||^2 + (x - prior)' diag(lam) (x - prior), all columns of t; and its value."""
    stacked = np.vstack([a, np.diag(np.sqrt(lam))])
    right = np.vstack([t, np.sqrt(lam)[:, None] * prior])
    x = np.linalg.lstsq(stacked, right, rcond=None)[0]
    return x, float(((stacked @ x - right) ** 2).sum())


def columns_of(units, unit_len):
    return [u * unit_len + i for u in units for i in range(unit_len)]


def removal(a, t, lam, prior, unit_len, step, keep):
    """Second-order removal by exhaustive refits. Returns order, errors, kept."""
    def value(units):
        cols = columns_of(sorted(units), unit_len)
        # Removed columns are held at zero, which also costs their ridge.
        gone = [c for c in range(a.shape[1]) if c not in cols]
        ridge_of_gone = float((lam[gone, None] * prior[gone] ** 2).sum())
        return fit(a[:, cols], t, lam[cols], prior[cols])[1] + ridge_of_gone

    left = list(range(a.shape[1] // unit_len))
    base = value(left)
    order, errors = [], [0.0]
    while len(left) > keep:
        alone = [(value([v for v in left if v != u]), u) for u in left]
        chosen = [u for _, u in sorted(alone)[: min(step, len(left) - keep)]]
        for u in chosen:
            left.remove(u)
            order.append(u)
            errors.append(value(left) - base)
    return {"unit_len": unit_len, "step": step, "order": order, "errors": errors, "kept": left}


def mask_system(z, w):
    """Columns vec(z_j w_j')."""
    return np.stack([np.outer(z[:, j], w[:, j]).ravel() for j in range(z.shape[1])], axis=1)


def tuned_mask(z, w, t, cols, bound):
    a = mask_system(z[:, cols], w[:, cols])
    lam = damping((a**2).sum(axis=0))
    factor = 1.0
    while True:
        m, _ = fit(a, t.reshape(-1, 1), lam * factor, np.ones((len(cols), 1)))
        if m.var() <= bound or factor >= 1024:
            return m[:, 0], float(m.var()), factor
        factor *= 4


def wild_mask(z, w0, kept, amplitude):
    """A target that no mask should follow: outputs with flipped signs."""
    wild = (z @ w0.T) * amplitude * np.where(np.arange(D) % 3 == 0, -1.0, 1.0)
    scale, variance, factor = tuned_mask(z, w0, wild, kept, 0.05)
    return {"amplitude": amplitude, "scale": scale.tolist(), "variance": variance, "ridge_factor": factor}


def collinearity(z, w, unit_len):
    a = mask_system(z, w)
    lam = damping((a**2).sum(axis=0))
    stacked = np.vstack([a, np.diag(np.sqrt(lam))])
    kappa = np.linalg.norm(stacked, axis=0) * np.linalg.norm(np.linalg.pinv(stacked), axis=1)
    right = stacked.sum(axis=1)
    scores = []
    for u in range(K // unit_len):
        rest = [c for c in range(K) if c // unit_len != u]
        x = np.linalg.lstsq(stacked[:, rest], right, rcond=None)[0]
        scores.append(0.5 * float(((stacked[:, rest] @ x - right) ** 2).sum()))
    indices = np.sqrt((kappa**2).reshape(-1, unit_len).mean(axis=1))
    return {"unit_len": unit_len, "scores": scores, "indices": indices.tolist()}


def rungs(z, zh, w0, t, th, lam, cols):
    """Held-out and fitted relative errors of every kind of recovery."""
    ws = w0[:, cols]
    m, *_ = tuned_mask(z, w0, t, cols, 0.05)
    wm = ws * m
    wr = fit(z[:, cols], t, lam[cols], ws.T)[0].T
    # Bias free of ridge: one more column of ones, pulled nowhere.
    with_one = np.hstack([z[:, cols], np.ones((len(z), 1))])
    x = fit(with_one, t, np.append(lam[cols], 0.0), np.vstack([ws.T, np.zeros((1, D))]))[0]

    def mean_bias(w):
        return (t - z[:, cols] @ w.T).mean(axis=0)

    zero = np.zeros(D)
    made = {
        "none": (ws, zero), "bias": (ws, mean_bias(ws)), "mask": (wm, zero),
        "mask+bias": (wm, mean_bias(wm)), "ridge": (wr, zero), "ridge+bias": (x[:-1].T, x[-1]),
    }
    def error(z, t, w, b):
        return float(((t - z[:, cols] @ w.T - b) ** 2).sum() / (t**2).sum())

    return {
        name: {"fitted": error(z, t, w, b), "held_out": error(zh, th, w, b), "weight": w.ravel().tolist(), "bias": b.tolist()}
        for name, (w, b) in made.items()
    }


def rivals(z, w0, gate, up, kept):
    gone = [c for c in range(K) if c not in kept]
    wifv = z.var(axis=0, ddof=1) * (w0**2).sum(axis=0)
    groups = wifv**2
    def standard(s):
        return (s - s.mean()) / s.std(ddof=1)

    fasp = fit(z[:, kept], z @ w0.T, damping((z**2).sum(axis=0))[kept], w0[:, kept].T)[0].T
    return {
        "wanda": (np.abs(w0) * np.linalg.norm(z, axis=0)).mean(axis=0).tolist(),
        "flap": standard(wifv).tolist(),
        "flap_groups": standard(groups).reshape(-1, 4).mean(axis=1).tolist(),
        "flap_bias": (w0[:, gone] @ z.mean(axis=0)[gone]).tolist(),
        "fasp_weight": fasp.ravel().tolist(),
        "magnitude": ((w0**2).sum(axis=0) + (gate**2).sum(axis=1) + (up**2).sum(axis=1)).tolist(),
        "condition": (np.linalg.norm(z, axis=0) * np.linalg.norm(w0, axis=0) / np.linalg.norm(z @ w0.T)).tolist(),
        "condition_groups": [
            float(np.linalg.norm(z[:, g : g + 4] @ w0[:, g : g + 4].T) / np.linalg.norm(z @ w0.T)) for g in range(0, K, 4)
        ],
    }


def layers(x, y):
    cos = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return {
        "block_influence": float(1 - cos.mean()),
        "aggregated": float(1 - abs(np.trace(x.T @ y)) / np.linalg.norm(x) / np.linalg.norm(y)),
        "magnitude_ratio": float(np.linalg.norm(y, axis=1).mean() / np.linalg.norm(x, axis=1).mean()),
    }


def short(value):
    """Eight digits are more than the Rust side's f32 sums hold, and give back the same f32 inputs."""
    if isinstance(value, dict):
        return {key: short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [short(inner) for inner in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main():
    z, zh, w0, r, rh, rng = make_data()
    gate, up = rounded(rng.normal(size=(K, D))), rounded(rng.normal(size=(K, D)))
    t = (1 - SHARE) * z @ w0.T + SHARE * r
    th = (1 - SHARE) * zh @ w0.T + SHARE * rh
    lam = damping((z**2).sum(axis=0))
    kept = [j for j in range(K) if j % 3 != 1]
    wilds = [wild_mask(z, w0, kept, amplitude) for amplitude in (0.5, 12.0)]
    mask = tuned_mask(z, w0, t, kept, 0.05)
    a = mask_system(z, w0)
    mask_lam = damping((a**2).sum(axis=0))
    out = {
        "k": K, "d": D, "share": SHARE,
        "z": z.ravel().tolist(), "z_held": zh.ravel().tolist(), "w0": w0.ravel().tolist(),
        "r": r.ravel().tolist(), "r_held": rh.ravel().tolist(), "gate": gate.ravel().tolist(), "up": up.ravel().tolist(),
        "kept": kept, "lambda": lam.tolist(), "target_energy": float((t**2).sum()), "target_sum": t.sum(axis=0).tolist(),
        "removals": [removal(z, t, lam, w0.T, *how) for how in [(1, 1, 3), (1, 4, 5), (1, 7, 9), (4, 1, 1), (4, 2, 2)]],
        "mask_removals": [removal(a, t.reshape(-1, 1), mask_lam, np.ones((K, 1)), *how) for how in [(1, 1, 8), (1, 5, 8), (4, 1, 2)]],
        "mask": {"scale": mask[0].tolist(), "variance": mask[1], "ridge_factor": mask[2]},
        "wild_masks": wilds,
        "collinearity": [collinearity(z, w0, 1), collinearity(z, w0, 4)],
        "rungs": rungs(z, zh, w0, t, th, lam, kept),
        "rivals": rivals(z, w0, gate, up, kept),
        "layer": layers(z, zh[np.arange(N) % N_HELD] * 0.5 + z),
    }
    print(json.dumps(short(out), separators=(",", ":")))


if __name__ == "__main__":
    main()
