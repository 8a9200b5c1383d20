//! Products of weight rows as they are stored with a few tokens of bytes: the kernel of decode steps.
//!
//! A step takes as many groups of a row as fill a register with four lanes each, so that the sum of a group's products needs
//! only four lanes to be converted and scaled. Activations lie in the order of these registers ([`super::inputs`]).

use super::inputs::{QuantizedRows, VECTORS};
use super::{ByteFormat, ROW_TOKENS, with_byte_format};
use crate::WeightMatrix;
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{Portable, Simd};
use std::ops::Range;

/// `out[token, row] = weight[row] . inputs[token]` for the rows in `rows`.
pub(crate) struct RowBytes<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) rows: Range<usize>,
    pub(crate) inputs: QuantizedRows<'a>,
    /// `[n_tokens, n_rows]`.
    pub(crate) out: OutPtr,
    pub(crate) accumulate: bool,
}

impl Kernel for RowBytes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        assert!(self.rows.end <= self.weight.n_rows(), "rows out of range");
        assert_eq!(self.inputs.n_in, self.weight.n_cols(), "inputs are not [n_tokens, n_cols]");
        if self.inputs.lanes < S::LANES {
            // Rows shorter than a step.
            return Portable.call(self);
        }
        assert_eq!(self.inputs.lanes, S::LANES, "the steps are for another set");
        with_byte_format!(self.weight.dtype(), |format| {
            each_row::<S, _, 4>(simd, &(&self, format), self.rows.clone(), self.inputs.n_tokens);
        });
    }
}

/// Products of weight rows with a few tokens.
pub(crate) trait Dots {
    /// `R` rows from `row` on with `T` tokens. The same operations in the same order for each row and token, however many come
    /// together.
    fn dots<S: Simd, const R: usize, const T: usize>(&self, simd: S, row: usize);
}

/// All of `rows`, as many at a time as registers hold sums: `ALONE` with one token.
#[inline(always)]
pub(crate) fn each_row<S: Simd, D: Dots, const ALONE: usize>(
    simd: S,
    dots: &D,
    rows: Range<usize>,
    n_tokens: usize,
) {
    match n_tokens {
        1 => by::<S, D, ALONE, 1>(simd, dots, rows),
        2 => by::<S, D, 2, 2>(simd, dots, rows),
        3 => by::<S, D, 1, 3>(simd, dots, rows),
        4 => by::<S, D, 1, 4>(simd, dots, rows),
        5 => by::<S, D, 1, 5>(simd, dots, rows),
        6 => by::<S, D, 1, 6>(simd, dots, rows),
        7 => by::<S, D, 1, 7>(simd, dots, rows),
        ROW_TOKENS => by::<S, D, 1, ROW_TOKENS>(simd, dots, rows),
        n => unreachable!("{n} tokens in a row product"),
    }
}

#[inline(always)]
fn by<S: Simd, D: Dots, const R: usize, const T: usize>(simd: S, dots: &D, rows: Range<usize>) {
    let whole = rows.start + rows.len() / R * R;
    for row in (rows.start..whole).step_by(R) {
        dots.dots::<S, R, T>(simd, row);
    }
    for row in whole..rows.end {
        dots.dots::<S, 1, T>(simd, row);
    }
}

impl<F: ByteFormat> Dots for (&RowBytes<'_>, F) {
    // Indices keep the sums in registers; iterators spill them.
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const T: usize>(&self, simd: S, row: usize) {
        let RowBytes { weight, inputs, .. } = self.0;
        let rows: [*const u8; R] = std::array::from_fn(|r| weight.row(row + r).as_ptr());
        let steps: [*const f32; T] = std::array::from_fn(|t| inputs.steps(t));
        let step_bytes = R * F::GROUP_BYTES * S::LANES / 4;
        let mut sums = [[simd.splat(0.0); T]; R];
        for step in 0..inputs.n_steps() {
            simd.prefetch_ahead(rows[0], step * step_bytes..(step + 1) * step_bytes);
            let start = inputs.first_group(step) * F::GROUP_BYTES;
            for r in 0..R {
                // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values as `WeightMatrix` proves, and each
                // step covers whole groups of them; `steps` checked those of the inputs, whose lanes are those of the set.
                unsafe {
                    let at = rows[r].add(start);
                    let (scales, offsets) = F::step_scales(simd, at);
                    let q = F::load_step(simd, at);
                    for t in 0..T {
                        let vector = |nth: usize| steps[t].add((step * VECTORS + nth) * S::LANES);
                        let x = [simd.load_p(vector(0).cast()), simd.load_p(vector(1).cast())];
                        let dots = F::dot_step(simd, q, x, simd.load_i(vector(2).cast()));
                        let factors = simd.mul(scales, simd.load(vector(3)));
                        sums[r][t] = simd.fma(simd.to_f(dots), factors, sums[r][t]);
                        if F::OFFSET == 1.0 {
                            sums[r][t] = simd.fma(offsets, simd.load(vector(4)), sums[r][t]);
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (token, sum) in sums.into_iter().enumerate() {
                self.0.store(token, row + r, simd.sum(sum));
            }
        }
    }
}

impl RowBytes<'_> {
    #[inline(always)]
    fn store(&self, token: usize, row: usize, value: f32) {
        // SAFETY: `[n_tokens, n_rows]` values belong to this product, and this row to this task alone.
        unsafe {
            let out = self.out.at(token * self.weight.n_rows() + row);
            *out = if self.accumulate { *out + value } else { value };
        }
    }
}
