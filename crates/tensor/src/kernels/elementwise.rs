//! Element-wise kernels and reductions over rows.
//!
//! Sums run in a fixed order of lanes, so results do not depend on the number of threads.

use super::exp::{MIN_ARGUMENT, exp};
use super::isa::{Isa, Kernel};
use super::out::OutPtr;
use super::pool::ThreadPool;
use super::simd::Simd;

/// Values below which one thread is faster than waking others.
const SERIAL_VALUES: usize = 16 << 10;

/// Values of one task of a kernel without rows.
const CHUNK: usize = 4 << 10;

/// Sums that run side by side, to hide the latency of addition.
const CHAINS: usize = 4;

/// Root-mean-square norm of each row: `x / sqrt(mean(x^2) + eps) * weight`; `x`, `out`: `[n, weight.len()]`.
/// # Panics
/// When the lengths do not belong together.
pub fn rms_norm(pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm_on(Isa::detect(), pool, x, weight, eps, out);
}

pub(crate) fn rms_norm_on(isa: Isa, pool: &ThreadPool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out differ in length");
    let d = weight.len();
    if d == 0 {
        assert!(x.is_empty(), "rows of no values");
        return;
    }
    assert!(x.len().is_multiple_of(d), "x is not [n, {d}]");
    if x.len() < SERIAL_VALUES {
        isa.dispatch(RmsNorm { x, weight, eps, out });
        return;
    }
    let chunk = CHUNK.div_ceil(d) * d;
    let n_values = x.len();
    let out = OutPtr::new(out);
    pool.run(n_values.div_ceil(chunk), &|task_idx| {
        let start = task_idx * chunk;
        let len = chunk.min(n_values - start);
        // SAFETY: `out` has the length of `x`, and this chunk belongs to this task alone.
        let out = unsafe { out.slice(start, len) };
        isa.dispatch(RmsNorm { x: &x[start..start + len], weight, eps, out });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        let whole = d / S::LANES * S::LANES;
        for (x, out) in self.x.chunks_exact(d).zip(self.out.chunks_exact_mut(d)) {
            let mean = dot_body(simd, x, x) / d as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for at in (0..whole).step_by(S::LANES) {
                // SAFETY: `at + LANES <= d`, the length of all three.
                unsafe {
                    let value = simd.mul(simd.load(x.as_ptr().add(at)), simd.splat(scale));
                    simd.store(
                        out.as_mut_ptr().add(at),
                        simd.mul(value, simd.load(self.weight.as_ptr().add(at))),
                    );
                }
            }
            for at in whole..d {
                out[at] = x[at] * scale * self.weight[at];
            }
        }
    }
}

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.
/// # Panics
/// When the lengths differ.
pub fn silu_mul(pool: &ThreadPool, gate: &mut [f32], up: &[f32]) {
    silu_mul_on(Isa::detect(), pool, gate, up);
}

pub(crate) fn silu_mul_on(isa: Isa, pool: &ThreadPool, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    in_chunks(pool, gate, up, |gate, up| isa.dispatch(SiluMul { gate, up }));
}

/// Runs `task` over `out` and the values of `x` that belong to it: at once when they are few, else in chunks on the threads
/// of `pool`.
fn in_chunks(pool: &ThreadPool, out: &mut [f32], x: &[f32], task: impl Fn(&mut [f32], &[f32]) + Sync) {
    if x.len() < SERIAL_VALUES {
        return task(out, x);
    }
    assert_eq!(out.len(), x.len(), "a value for each value");
    let out = OutPtr::new(out);
    pool.run(x.len().div_ceil(CHUNK), &|task_idx| {
        let start = task_idx * CHUNK;
        let x = &x[start..x.len().min(start + CHUNK)];
        // SAFETY: `out` has the length of `x`, and this chunk belongs to this task alone.
        task(unsafe { out.slice(start, x.len()) }, x);
    });
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl SiluMul<'_> {
    #[inline(always)]
    fn value<S: Simd>(simd: S, gate: S::F, up: S::F) -> S::F {
        let denominator = simd.add(simd.splat(1.0), exp(simd, simd.sub(simd.splat(0.0), gate)));
        simd.mul(simd.div(gate, denominator), up)
    }
}

impl Kernel for SiluMul<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { gate, up } = self;
        let whole = gate.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: `at + LANES` is within both, which are equally long.
            unsafe {
                let to = gate.as_mut_ptr().add(at);
                simd.store(to, Self::value(simd, simd.load(to), simd.load(up.as_ptr().add(at))));
            }
        }
        for (gate, up) in gate[whole..].iter_mut().zip(&up[whole..]) {
            *gate = simd.first(Self::value(simd, simd.splat(*gate), simd.splat(*up)));
        }
    }
}

/// Softmax of one row. A row of nothing but negative infinity, or with NaN, becomes NaN.
pub fn softmax_in_place(x: &mut [f32]) {
    Isa::detect().dispatch(Softmax(x));
}

pub(crate) struct Softmax<'a>(pub(crate) &'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let max = max_body(simd, self.0);
        let sum = exp_in_place(simd, self.0, max);
        scale_body(simd, 1.0 / sum, self.0);
    }
}

/// `x = exp(x - max)`, 0 where `x - max` is below the least argument of `exp`; returns the sum.
#[inline(always)]
pub(crate) fn exp_in_place<S: Simd>(simd: S, x: &mut [f32], max: f32) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    let shift = simd.splat(-max);
    let mut sum = simd.splat(0.0);
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES` is within `x`.
        unsafe {
            let to = x.as_mut_ptr().add(at);
            let value = exp_or_zero(simd, simd.add(simd.load(to), shift));
            simd.store(to, value);
            sum = simd.add(sum, value);
        }
    }
    let mut total = simd.sum(sum);
    for value in &mut x[whole..] {
        *value = simd.first(exp_or_zero(simd, simd.splat(*value - max)));
        total += *value;
    }
    total
}

/// [`exp`], with 0 for arguments at and below its least.
#[inline(always)]
pub(crate) fn exp_or_zero<S: Simd>(simd: S, x: S::F) -> S::F {
    simd.zero_if_at_most(x, simd.splat(MIN_ARGUMENT), exp(simd, x))
}

/// `ln(sum(exp(x)))`; negative infinity for an empty row, NaN when there is one.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f32 {
    Isa::detect().dispatch(LogSumExp(x))
}

pub(crate) struct LogSumExp<'a>(pub(crate) &'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let x = self.0;
        let max = max_body(simd, x);
        if max.is_infinite() {
            return if x.iter().any(|value| value.is_nan()) { f32::NAN } else { max };
        }
        let shift = simd.splat(-max);
        let step = CHAINS * S::LANES;
        let whole = x.len() / step * step;
        let mut sums = [simd.splat(0.0); CHAINS];
        for at in (0..whole).step_by(step) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `at + CHAINS * LANES` is within `x`.
                let value = unsafe { simd.load(x.as_ptr().add(at + chain * S::LANES)) };
                *sum = simd.add(*sum, exp_or_zero(simd, simd.add(value, shift)));
            }
        }
        let mut total = f64::from(simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]))));
        for value in &x[whole..] {
            total += f64::from(simd.first(exp_or_zero(simd, simd.splat(value - max))));
        }
        (f64::from(max) + total.ln()) as f32
    }
}

/// The greatest value that is not NaN; negative infinity for none.
#[must_use]
pub fn max(x: &[f32]) -> f32 {
    Isa::detect().dispatch(Max(x))
}

pub(crate) struct Max<'a>(pub(crate) &'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        max_body(simd, self.0)
    }
}

/// `sum(exp(x - reference))`; NaN when there is one.
#[must_use]
pub fn sum_exp(x: &[f32], reference: f32) -> f32 {
    Isa::detect().dispatch(SumExp { x, gap_to: None, reference })
}

/// `sum(exp(x - reference) * (x - y))`; NaN when there is one.
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn sum_exp_gap(x: &[f32], y: &[f32], reference: f32) -> f32 {
    Isa::detect().dispatch(SumExp { x, gap_to: Some(y), reference })
}

pub(crate) struct SumExp<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gap_to: Option<&'a [f32]>,
    pub(crate) reference: f32,
}

impl SumExp<'_> {
    #[inline(always)]
    fn term<S: Simd>(&self, simd: S, x: S::F, y: S::F) -> S::F {
        let value = exp_or_zero(simd, simd.sub(x, simd.splat(self.reference)));
        if self.gap_to.is_some() { simd.mul(value, simd.sub(x, y)) } else { value }
    }
}

impl Kernel for SumExp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let x = self.x;
        let weights = self.gap_to.unwrap_or(x);
        assert_eq!(x.len(), weights.len(), "x and y differ in length");
        let step = CHAINS * S::LANES;
        let whole = x.len() / step * step;
        let mut sums = [simd.splat(0.0); CHAINS];
        for at in (0..whole).step_by(step) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                let at = at + chain * S::LANES;
                // SAFETY: `at + LANES` is within both.
                let (x, y) = unsafe { (simd.load(x.as_ptr().add(at)), simd.load(weights.as_ptr().add(at))) };
                *sum = simd.add(*sum, self.term(simd, x, y));
            }
        }
        let mut total = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
        for (x, y) in x[whole..].iter().zip(&weights[whole..]) {
            total += simd.first(self.term(simd, simd.splat(*x), simd.splat(*y)));
        }
        total
    }
}

#[inline(always)]
fn max_body<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    let mut max = simd.splat(f32::NEG_INFINITY);
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES` is within `x`.
        max = simd.max(unsafe { simd.load(x.as_ptr().add(at)) }, max);
    }
    x[whole..].iter().fold(simd.max_lane(max), |max, value| max.max(*value))
}

#[inline(always)]
fn scale_body<S: Simd>(simd: S, factor: f32, x: &mut [f32]) {
    let whole = x.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES` is within `x`.
        unsafe {
            let to = x.as_mut_ptr().add(at);
            simd.store(to, simd.mul(simd.splat(factor), simd.load(to)));
        }
    }
    x[whole..].iter_mut().for_each(|value| *value *= factor);
}

/// Whether no value is NaN or infinite.
#[must_use]
pub fn all_finite(x: &[f32]) -> bool {
    Isa::detect().dispatch(AllFinite(x))
}

pub(crate) struct AllFinite<'a>(pub(crate) &'a [f32]);

impl Kernel for AllFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let x = self.0;
        let step = CHAINS * S::LANES;
        let whole = x.len() / step * step;
        let zero = simd.splat(0.0);
        // NaN and infinity times zero are NaN, and NaN survives a sum.
        let mut sums = [zero; CHAINS];
        for at in (0..whole).step_by(step) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `at + CHAINS * LANES` is within `x`.
                let value = unsafe { simd.load(x.as_ptr().add(at + chain * S::LANES)) };
                *sum = simd.fma(value, zero, *sum);
            }
        }
        let sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
        sum == 0.0 && x[whole..].iter().all(|value| value.is_finite())
    }
}

/// Index of the first greatest value that is not NaN; `None` when there is none.
#[must_use]
pub fn argmax(x: &[f32]) -> Option<usize> {
    Isa::detect().dispatch(Argmax(x))
}

pub(crate) struct Argmax<'a>(pub(crate) &'a [f32]);

impl Kernel for Argmax<'_> {
    type Output = Option<usize>;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Option<usize> {
        let max = max_body(simd, self.0);
        self.0.iter().position(|value| *value == max)
    }
}

/// Sum of products.
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    Isa::detect().dispatch(Dot { a, b })
}

pub(crate) struct Dot<'a> {
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot_body(simd, self.a, self.b)
    }
}

#[inline(always)]
fn dot_body<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    let step = CHAINS * S::LANES;
    let whole = a.len() / step * step;
    let mut sums = [simd.splat(0.0); CHAINS];
    for at in (0..whole).step_by(step) {
        for (chain, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `at + CHAINS * LANES` is within both.
            unsafe {
                let at = at + chain * S::LANES;
                *sum = simd.fma(simd.load(a.as_ptr().add(at)), simd.load(b.as_ptr().add(at)), *sum);
            }
        }
    }
    let mut total = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    for (a, b) in a[whole..].iter().zip(&b[whole..]) {
        total += a * b;
    }
    total
}

/// `y += alpha * x`.
/// # Panics
/// When the lengths differ.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    Isa::detect().dispatch(Axpy { alpha, x, y });
}

/// `y += x`.
/// # Panics
/// When the lengths differ.
pub fn add_in_place(pool: &ThreadPool, y: &mut [f32], x: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    let isa = Isa::detect();
    in_chunks(pool, y, x, |y, x| isa.dispatch(Axpy { alpha: 1.0, x, y }));
}

pub(crate) struct Axpy<'a> {
    pub(crate) alpha: f32,
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
}

impl Kernel for Axpy<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { alpha, x, y } = self;
        assert_eq!(x.len(), y.len(), "x and y differ in length");
        let whole = x.len() / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: `at + LANES` is within both.
            unsafe {
                let to = y.as_mut_ptr().add(at);
                simd.store(to, simd.fma(simd.splat(alpha), simd.load(x.as_ptr().add(at)), simd.load(to)));
            }
        }
        for (y, x) in y[whole..].iter_mut().zip(&x[whole..]) {
            *y += alpha * x;
        }
    }
}
