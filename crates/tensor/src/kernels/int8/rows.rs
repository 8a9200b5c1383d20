//! Products of weight rows as they are stored with a few tokens of bytes: the kernel of decode steps.

use super::inputs::QuantizedRows;
use super::{ByteFormat, GROUP, ROW_TOKENS, with_byte_format};
use crate::WeightMatrix;
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::Simd;
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
        with_byte_format!(self.weight.dtype(), |format| self.format(simd, format));
    }
}

impl RowBytes<'_> {
    #[inline(always)]
    fn format<S: Simd, F: ByteFormat>(&self, simd: S, _: F) {
        match self.inputs.n_tokens {
            1 => self.tokens::<S, F, 4, 1>(simd),
            2 => self.tokens::<S, F, 2, 2>(simd),
            3 => self.tokens::<S, F, 2, 3>(simd),
            4 => self.tokens::<S, F, 1, 4>(simd),
            5 => self.tokens::<S, F, 1, 5>(simd),
            6 => self.tokens::<S, F, 1, 6>(simd),
            7 => self.tokens::<S, F, 1, 7>(simd),
            ROW_TOKENS => self.tokens::<S, F, 1, ROW_TOKENS>(simd),
            n => unreachable!("{n} tokens in a row product"),
        }
    }

    #[inline(always)]
    fn tokens<S: Simd, F: ByteFormat, const R: usize, const T: usize>(&self, simd: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            if row + R <= self.rows.end {
                self.dots::<S, F, R, T>(simd, row);
                row += R;
            } else {
                self.dots::<S, F, 1, T>(simd, row);
                row += 1;
            }
        }
    }

    // Indices keep the sums in registers; iterators spill them.
    #[inline(always)]
    fn dots<S: Simd, F: ByteFormat, const R: usize, const T: usize>(&self, simd: S, row: usize) {
        let rows: [*const u8; R] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let quants: [*const i8; T] = std::array::from_fn(|t| self.inputs.quants(t));
        let scales: [(&[f32], &[f32]); T] = std::array::from_fn(|t| self.inputs.scales(t));
        let mut sums = [[simd.splat(0.0); T]; R];
        let mut offsets = [[simd.splat(0.0); T]; R];
        for group in 0..self.inputs.n_in / GROUP {
            for r in 0..R {
                // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values as `WeightMatrix` proves;
                // `quants` and `scales` checked those of the inputs.
                unsafe {
                    let at = rows[r].add(group * F::GROUP_BYTES);
                    let (scale, offset) = F::scales(simd, at);
                    let q = F::load(simd, at);
                    for t in 0..T {
                        let product = simd.to_f(F::dot(simd, q, quants[t].add(group * GROUP)));
                        let factor = simd.mul(scale, simd.splat(*scales[t].0.get_unchecked(group)));
                        sums[r][t] = simd.fma(product, factor, sums[r][t]);
                        if F::OFFSET != 0.0 {
                            let sum = simd.splat(*scales[t].1.get_unchecked(group));
                            offsets[r][t] = simd.fma(offset, sum, offsets[r][t]);
                        }
                    }
                }
            }
        }
        // All lanes of an offset are alike, and only one counts.
        let factor = simd.splat(F::OFFSET / S::LANES as f32);
        for r in 0..R {
            for t in 0..T {
                let sum =
                    if F::OFFSET == 0.0 { sums[r][t] } else { simd.fma(offsets[r][t], factor, sums[r][t]) };
                let value = simd.sum(sum);
                // SAFETY: `[n_tokens, n_rows]` values belong to this product, and this row to this task alone.
                unsafe {
                    let out = self.out.at(t * self.weight.n_rows() + row + r);
                    *out = if self.accumulate { *out + value } else { value };
                }
            }
        }
    }
}
