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
            if R == 4 && row + R <= self.rows.end {
                self.quad::<S, F>(simd, row);
                row += R;
            } else if row + R <= self.rows.end {
                self.dots::<S, F, R, T>(simd, row);
                row += R;
            } else {
                self.dots::<S, F, 1, T>(simd, row);
                row += 1;
            }
        }
    }

    /// Four rows by one token: as [`Self::dots`], with the scales of the four rows at once. Both do the same operations
    /// in the same order for each row, so that a result depends neither on the grouping nor on the other tokens.
    #[inline(always)]
    fn quad<S: Simd, F: ByteFormat>(&self, simd: S, row: usize) {
        let rows: [*const u8; 4] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let (quants, scales) = (self.inputs.quants(0), self.inputs.scales(0));
        let step_bytes = 4 * F::GROUP_BYTES;
        let mut sums = [simd.splat(0.0); 4];
        let mut offsets = [0.0_f32; 4];
        for group in 0..self.inputs.n_in / GROUP {
            simd.prefetch_ahead(rows[0], group * step_bytes..(group + 1) * step_bytes);
            let at = rows.map(
                #[inline(always)]
                |row| row.wrapping_add(group * F::GROUP_BYTES),
            );
            // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values as `WeightMatrix` proves; `quants` and
            // `scales` checked those of the input.
            unsafe {
                let factors = F::scale_quad(simd, at, scales.add(2 * group));
                let input = quants.add(group * GROUP);
                for r in 0..4 {
                    let product = simd.to_f(F::dot(simd, F::load(simd, at[r]), input));
                    sums[r] = simd.fma(product, simd.splat(factors[2 * r]), sums[r]);
                    if F::OFFSET != 0.0 {
                        offsets[r] += factors[2 * r + 1];
                    }
                }
            }
        }
        for r in 0..4 {
            self.store::<F>(0, row + r, simd.sum(sums[r]), offsets[r]);
        }
    }

    // Indices keep the sums in registers; iterators spill them.
    #[inline(always)]
    fn dots<S: Simd, F: ByteFormat, const R: usize, const T: usize>(&self, simd: S, row: usize) {
        let rows: [*const u8; R] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let quants: [*const i8; T] = std::array::from_fn(|t| self.inputs.quants(t));
        let scales: [*const f32; T] = std::array::from_fn(|t| self.inputs.scales(t));
        let step_bytes = R * F::GROUP_BYTES;
        let mut sums = [[simd.splat(0.0); T]; R];
        let mut offsets = [[simd.splat(0.0); T]; R];
        for group in 0..self.inputs.n_in / GROUP {
            simd.prefetch_ahead(rows[0], group * step_bytes..(group + 1) * step_bytes);
            for r in 0..R {
                // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values as `WeightMatrix` proves;
                // `quants` and `scales` checked those of the inputs.
                unsafe {
                    let at = rows[r].add(group * F::GROUP_BYTES);
                    let (scale, offset) = F::scales(simd, at);
                    let q = F::load(simd, at);
                    for t in 0..T {
                        let product = simd.to_f(F::dot(simd, q, quants[t].add(group * GROUP)));
                        let factor = simd.mul(scale, simd.splat(*scales[t].add(2 * group)));
                        sums[r][t] = simd.fma(product, factor, sums[r][t]);
                        if F::OFFSET != 0.0 {
                            let sum = simd.splat(*scales[t].add(2 * group + 1));
                            offsets[r][t] = simd.add(offsets[r][t], simd.mul(offset, sum));
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                // All lanes of an offset are alike.
                let offset = if F::OFFSET == 0.0 { 0.0 } else { simd.first(offsets[r][t]) };
                self.store::<F>(t, row + r, simd.sum(sums[r][t]), offset);
            }
        }
    }

    #[inline(always)]
    fn store<F: ByteFormat>(&self, token: usize, row: usize, sum: f32, offset: f32) {
        let value = if F::OFFSET == 0.0 { sum } else { sum + F::OFFSET * offset };
        // SAFETY: `[n_tokens, n_rows]` values belong to this product, and this row to this task alone.
        unsafe {
            let out = self.out.at(token * self.weight.n_rows() + row);
            *out = if self.accumulate { *out + value } else { value };
        }
    }
}
