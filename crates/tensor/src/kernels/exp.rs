//! `exp` of a vector, by range reduction and a polynomial.
//!
//! `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; `ln 2` is split in two so that `r` is exact
//! enough, and `exp(r)` is a Taylor polynomial of degree 7 whose first left-out term is below 6e-9.

use super::simd::Simd;

/// The greatest relative error of [`exp`] within its bounds, found by testing every 257th f32.
#[cfg(test)]
pub(crate) const MAX_RELATIVE_ERROR: f32 = 2.5e-7;

/// Greater arguments are taken as this one: the greatest whose power of two is a finite f32.
pub(crate) const MAX_ARGUMENT: f32 = 88.02;

/// Lesser arguments are taken as this one: the least whose result is a normal f32.
pub(crate) const MIN_ARGUMENT: f32 = -87.33;

const LN2_HIGH: f32 = 0.693_145_75;
const LN2_LOW: f32 = 1.428_606_8e-6;

/// `exp` of each lane, with the argument held within [`MIN_ARGUMENT`]`..=`[`MAX_ARGUMENT`]; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.min(simd.splat(MAX_ARGUMENT), simd.max(simd.splat(MIN_ARGUMENT), x));
    let n = simd.round_to_i(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let n_f = simd.to_f(n);
    let r = simd.fma(n_f, simd.splat(-LN2_HIGH), x);
    let r = simd.fma(n_f, simd.splat(-LN2_LOW), r);
    let mut poly = simd.splat(1.0 / 5040.0);
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        poly = simd.fma(poly, r, simd.splat(factor));
    }
    let power = simd.bits_to_f(simd.shl_i::<23>(simd.add_i(n, simd.splat_i(127))));
    simd.mul(poly, power)
}
