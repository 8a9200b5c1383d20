//! Plain twins of the fast kernels: one loop per sum, f64 sums. Tests measure the fast ones against these.

use super::view::Layout;
use super::{AttentionArgs, GemmArgs, KvSlice};
use crate::{DType, WeightMatrix, blocks};

/// Twin of [`super::matmul`].
pub fn matmul(inputs: &[f32], weight: &WeightMatrix, out: &mut [f32]) {
    let n_in = weight.n_cols();
    let rows = weight.to_f32();
    for (input, out) in inputs.chunks_exact(n_in).zip(out.chunks_exact_mut(weight.n_rows())) {
        for (row, out) in rows.chunks_exact(n_in).zip(out) {
            *out = dot(row, input);
        }
    }
}

/// Twin of [`super::dot`].
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// Twin of [`super::gemm`].
pub fn gemm(args: GemmArgs<'_>) {
    let GemmArgs { alpha, a, b, beta, c } = args;
    let at = |layout: Layout, row, col| row * layout.row_stride + col * layout.col_stride;
    for i in 0..a.n_rows() {
        for j in 0..b.n_cols() {
            let product = |l| f64::from(a.data[at(a.layout, i, l)]) * f64::from(b.data[at(b.layout, l, j)]);
            let sum: f64 = (0..a.n_cols()).map(product).sum();
            let c = &mut c.data[at(c.layout, i, j)];
            let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(*c) };
            *c = (f64::from(alpha) * sum + old) as f32;
        }
    }
}

/// Twin of [`super::gram_accumulate`]: the upper triangle only.
pub fn gram_accumulate(z: &[f32], k: usize, gram: &mut [f32]) {
    for i in 0..k {
        for j in i..k {
            let sum: f64 = z.chunks_exact(k).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            gram[i * k + j] += sum as f32;
        }
    }
}

/// Twin of [`super::cross_accumulate`].
pub fn cross_accumulate(z: &[f32], t: &[f32], k: usize, d: usize, out: &mut [f32]) {
    for i in 0..k {
        for j in 0..d {
            let rows = z.chunks_exact(k).zip(t.chunks_exact(d));
            let sum: f64 = rows.map(|(z, t)| f64::from(z[i]) * f64::from(t[j])).sum();
            out[i * d + j] += sum as f32;
        }
    }
}

/// Twin of [`super::rms_norm`].
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / d as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (f64::from(*x) * scale * f64::from(*weight)) as f32;
        }
    }
}

/// Twin of [`super::silu_mul`].
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let value = f64::from(*gate);
        *gate = (value / (1.0 + (-value).exp()) * f64::from(*up)) as f32;
    }
}

/// Twin of [`super::rotate_heads`].
pub fn rotate_heads(table: super::RotaryTable<'_>, rows: &mut [f32]) {
    let head_dim = table.head_dim;
    let n_tokens = table.values.len() / (2 * head_dim);
    for (token, row) in rows.chunks_exact_mut(rows.len().max(1).div_ceil(n_tokens.max(1))).enumerate() {
        let (cos, sin) = table.values[token * 2 * head_dim..][..2 * head_dim].split_at(head_dim);
        for head in row.chunks_exact_mut(head_dim) {
            let old = head.to_vec();
            for (at, value) in head.iter_mut().enumerate() {
                let partner = match table.pairs {
                    super::RotaryPairs::Neighbours => at ^ 1,
                    super::RotaryPairs::Halves => (at + head_dim / 2) % head_dim,
                };
                let turned = f64::from(old[partner]) * f64::from(sin[at]);
                *value = (f64::from(old[at]) * f64::from(cos[at]) + turned) as f32;
            }
        }
    }
}

/// Twin of [`super::softmax_in_place`].
pub fn softmax_in_place(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|v| (f64::from(*v) - f64::from(max)).exp()).sum();
    for value in x {
        *value = ((f64::from(*value) - f64::from(max)).exp() / sum) as f32;
    }
}

/// Twin of [`super::log_sum_exp`].
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|v| (f64::from(*v) - f64::from(max)).exp()).sum();
    (f64::from(max) + sum.ln()) as f32
}

/// Twin of [`super::argmax`].
#[must_use]
pub fn argmax(x: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (idx, value) in x.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|best| x[best] < *value) {
            best = Some(idx);
        }
    }
    best
}

/// Twin of [`super::attention`].
pub fn attention(args: &AttentionArgs<'_>, out: &mut [f32]) {
    let &AttentionArgs { queries, keys, values, past_len, n_tokens, n_heads, head_dim, .. } = args;
    let scale = 1.0 / (head_dim as f64).sqrt();
    for token in 0..n_tokens {
        for head in 0..n_heads {
            let at = (token * n_heads + head) * head_dim;
            let query = &queries[at..at + head_dim];
            let n_keys = past_len + token + 1;
            let kv_head = head / (n_heads / args.n_kv_heads);
            let row = |slice, key| kv_row(slice, (kv_head * args.context_len + key) * head_dim, head_dim);
            let scores: Vec<f64> =
                (0..n_keys).map(|key| f64::from(dot(query, &row(keys, key))) * scale).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let mut mixed = vec![0.0_f64; head_dim];
            for (key, score) in scores.iter().enumerate() {
                let weight = (score - max).exp() / sum;
                for (mixed, value) in mixed.iter_mut().zip(row(values, key)) {
                    *mixed += weight * f64::from(value);
                }
            }
            for (out, mixed) in out[at..at + head_dim].iter_mut().zip(mixed) {
                *out = mixed as f32;
            }
        }
    }
}

fn kv_row(slice: KvSlice<'_>, at: usize, head_dim: usize) -> Vec<f32> {
    match slice {
        KvSlice::F32(data) => data[at..at + head_dim].to_vec(),
        KvSlice::F16(data) => data[at..at + head_dim].iter().map(|v| v.to_f32()).collect(),
        KvSlice::Q8_0(data) => {
            let mut row = vec![0.0; head_dim];
            blocks::dequantize(DType::Q8_0, &data[at / 32 * 34..(at + head_dim) / 32 * 34], &mut row);
            row
        }
    }
}
