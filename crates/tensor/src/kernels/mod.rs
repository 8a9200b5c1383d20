//! SIMD kernels with run-time dispatch, and the thread pool they run on.
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod naive;
mod pool;
mod view;

use crate::WeightMatrix;
use half::f16;

pub use pool::{MAX_THREADS, ThreadPool};
pub use view::{MatMut, MatRef};

/// Buffers of [`matmul`], kept between calls.
#[derive(Debug, Default)]
pub struct MatmulScratch {
    product: Vec<f32>,
}

/// `out = inputs weight'`: `[n_tokens, n_in]` by `[n_out, n_in]` to `[n_tokens, n_out]`.
/// # Panics
/// When the lengths do not belong together.
pub fn matmul(
    _pool: &ThreadPool,
    inputs: &[f32],
    weight: &WeightMatrix,
    out: &mut [f32],
    _scratch: &mut MatmulScratch,
) {
    naive::matmul(inputs, weight, out);
}

/// `out += inputs weight'`, as [`matmul`].
/// # Panics
/// When the lengths do not belong together.
pub fn matmul_add(
    pool: &ThreadPool,
    inputs: &[f32],
    weight: &WeightMatrix,
    out: &mut [f32],
    scratch: &mut MatmulScratch,
) {
    let mut product = std::mem::take(&mut scratch.product);
    product.resize(out.len(), 0.0);
    matmul(pool, inputs, weight, &mut product, scratch);
    out.iter_mut().zip(&product).for_each(|(out, value)| *out += value);
    scratch.product = product;
}

/// Adds `z' z` to the upper triangle of `gram`; `z`: `[n, k]`, `gram`: `[k, k]`.
/// # Panics
/// When the lengths do not belong together.
pub fn gram_accumulate(_pool: &ThreadPool, z: &[f32], k: usize, gram: &mut [f32]) {
    naive::gram_accumulate(z, k, gram);
}

/// Copies the upper triangle of `gram` `[k, k]` to the lower one.
pub fn mirror_upper(gram: &mut [f32], k: usize) {
    for i in 1..k {
        for j in 0..i {
            gram[i * k + j] = gram[j * k + i];
        }
    }
}

/// Adds `z' t` to `out`; `z`: `[n, k]`, `t`: `[n, d]`, `out`: `[k, d]`.
/// # Panics
/// When the lengths do not belong together.
pub fn cross_accumulate(_pool: &ThreadPool, z: &[f32], t: &[f32], k: usize, d: usize, out: &mut [f32]) {
    naive::cross_accumulate(z, t, k, d, out);
}

/// Root-mean-square norm of each row: `x / sqrt(mean(x^2) + eps) * weight`.
/// # Panics
/// When the lengths do not belong together.
pub fn rms_norm(_pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    naive::rms_norm(x, weight, eps, out);
}

/// `gate = silu(gate) * up`.
/// # Panics
/// When the lengths differ.
pub fn silu_mul(_pool: &ThreadPool, gate: &mut [f32], up: &[f32]) {
    naive::silu_mul(gate, up);
}

/// Softmax of one row.
pub fn softmax_in_place(x: &mut [f32]) {
    naive::softmax_in_place(x);
}

/// `ln(sum(exp(x)))`.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    naive::log_sum_exp(x)
}

/// Index of the first greatest value that is not NaN.
#[must_use]
pub fn argmax(x: &[f32]) -> Option<usize> {
    naive::argmax(x)
}

/// Sum of products.
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    naive::dot(a, b)
}

/// `y += alpha * x`.
/// # Panics
/// When the lengths differ.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
}

/// `y += x`.
/// # Panics
/// When the lengths differ.
pub fn add_in_place(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// Keys or values: `[n_kv_heads, context_len, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum KvSlice<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As f16.
    F16(&'a [f16]),
}

/// Inputs of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// `[n_tokens, n_heads, head_dim]`.
    pub queries: &'a [f32],
    /// Keys up to and with those of the new tokens.
    pub keys: KvSlice<'a>,
    /// Values up to and with those of the new tokens.
    pub values: KvSlice<'a>,
    /// Tokens before the new ones.
    pub past_len: usize,
    /// New tokens.
    pub n_tokens: usize,
    /// Query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values in one head.
    pub head_dim: usize,
    /// Rows of each head in the cache.
    pub context_len: usize,
}

/// Buffers of [`attention`], kept between calls.
#[derive(Debug, Default)]
pub struct AttentionScratch {}

/// Causal attention of grouped heads; `out`: `[n_tokens, n_heads * head_dim]`.
/// # Panics
/// When the lengths do not belong together.
pub fn attention(
    _pool: &ThreadPool,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    _scratch: &mut AttentionScratch,
) {
    naive::attention(args, out);
}

/// Operands of [`gemm`]: `c = alpha a b + beta c`.
#[derive(Debug)]
pub struct GemmArgs<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// `[m, k]`.
    pub a: MatRef<'a>,
    /// `[k, n]`.
    pub b: MatRef<'a>,
    /// Factor of what `c` holds; with 0 the old values are not read.
    pub beta: f32,
    /// `[m, n]`.
    pub c: MatMut<'a>,
}

/// General matrix product: `c = alpha a b + beta c`.
/// # Panics
/// When the shapes do not belong together.
pub fn gemm(_pool: &ThreadPool, args: GemmArgs<'_>) {
    naive::gemm(args);
}
