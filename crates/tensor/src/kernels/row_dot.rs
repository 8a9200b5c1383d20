//! Products of weight rows with a few tokens, decoding in registers: the kernel of decode steps.
//!
//! Each (row, token) pair has one vector sum that takes the row front to back, so a result depends neither on
//! how rows are grouped nor on the number of threads.

use super::format::{RowFormat, STAGE, with_format};
use super::isa::Kernel;
use super::out::OutPtr;
use super::simd::Simd;
use crate::WeightMatrix;
use std::ops::Range;

/// The most tokens of one call.
pub(crate) const MAX_DOT_TOKENS: usize = 8;

/// `out[token, row] = weight[row] . inputs[token]` for the rows in `rows`.
pub(crate) struct RowDots<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) rows: Range<usize>,
    /// `[n_tokens, n_cols]`, at most [`MAX_DOT_TOKENS`] tokens.
    pub(crate) inputs: &'a [f32],
    pub(crate) n_tokens: usize,
    /// For one token: per group of 32 inputs, `LANES` partial sums (see [`group_sums`]).
    pub(crate) input_sums: &'a [f32],
    /// `[n_tokens, n_rows]`.
    pub(crate) out: OutPtr,
    pub(crate) accumulate: bool,
}

impl Kernel for RowDots<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_format!(self.weight.dtype(), |format| self.direct(simd, format), else self.staged(simd));
    }
}

impl RowDots<'_> {
    fn check(&self) {
        let n_cols = self.weight.n_cols();
        assert!(self.rows.end <= self.weight.n_rows(), "rows out of range");
        assert_eq!(self.inputs.len(), self.n_tokens * n_cols, "inputs are not [n_tokens, n_cols]");
    }

    #[inline(always)]
    fn direct<S: Simd, F: RowFormat>(&self, simd: S, format: F) {
        self.check();
        match self.n_tokens {
            1 => self.one_token(simd, format),
            2 => self.tokens::<S, F, 4, 2>(simd),
            3 => self.tokens::<S, F, 2, 3>(simd),
            4 => self.tokens::<S, F, 2, 4>(simd),
            5 => self.tokens::<S, F, 1, 5>(simd),
            6 => self.tokens::<S, F, 1, 6>(simd),
            7 => self.tokens::<S, F, 1, 7>(simd),
            8 => self.tokens::<S, F, 1, 8>(simd),
            n => unreachable!("{n} tokens in a row product"),
        }
    }

    #[inline(always)]
    fn one_token<S: Simd, F: RowFormat>(&self, simd: S, _: F) {
        if F::GROUP != 1 {
            let need = self.weight.n_cols() / F::GROUP * S::LANES;
            assert!(need <= self.input_sums.len(), "too few input sums");
        }
        let mut row = self.rows.start;
        while row < self.rows.end {
            if row + 4 <= self.rows.end {
                self.store(row, [self.dots1::<S, F, 4>(simd, row)]);
                row += 4;
            } else {
                self.store(row, [self.dots1::<S, F, 1>(simd, row)]);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn dots1<S: Simd, F: RowFormat, const R: usize>(&self, simd: S, row: usize) -> [f32; R] {
        let n_cols = self.weight.n_cols();
        let rows: [*const u8; R] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let input = self.inputs.as_ptr();
        let mut sums = [simd.splat(0.0); R];
        let mut tails = [0.0_f32; R];
        // SAFETY: `row` checked the bounds of the rows, which hold `n_cols` values as `WeightMatrix` proves;
        // `check` and `one_token` did so for input and sums. All offsets stay below `n_cols` values.
        unsafe {
            if F::GROUP == 1 {
                let whole = n_cols / S::LANES * S::LANES;
                let step_bytes = R * F::GROUP_BYTES;
                for at in (0..whole).step_by(S::LANES) {
                    simd.prefetch_ahead(rows[0], at * step_bytes..(at + S::LANES) * step_bytes);
                    let value = simd.load(input.add(at));
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = simd.fma(F::decode(simd, row.add(at * F::GROUP_BYTES), 0), value, *sum);
                    }
                }
                for at in whole..n_cols {
                    for (tail, row) in tails.iter_mut().zip(rows) {
                        *tail += F::decode_one(row.add(at * F::GROUP_BYTES)) * *input.add(at);
                    }
                }
            } else {
                let input_sums = self.input_sums.as_ptr();
                let step_bytes = R * F::GROUP_BYTES;
                for group in 0..n_cols / F::GROUP {
                    simd.prefetch_ahead(rows[0], group * step_bytes..(group + 1) * step_bytes);
                    let input = input.add(group * F::GROUP);
                    let input_sums = input_sums.add(group * S::LANES);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = F::dot_group(simd, row.add(group * F::GROUP_BYTES), input, input_sums, *sum);
                    }
                }
            }
        }
        std::array::from_fn(|r| simd.sum(sums[r]) + tails[r])
    }

    #[inline(always)]
    fn tokens<S: Simd, F: RowFormat, const R: usize, const T: usize>(&self, simd: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            if row + R <= self.rows.end {
                self.store(row, self.dots::<S, F, R, T>(simd, row));
                row += R;
            } else {
                self.store(row, self.dots::<S, F, 1, T>(simd, row));
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn dots<S: Simd, F: RowFormat, const R: usize, const T: usize>(
        &self,
        simd: S,
        row: usize,
    ) -> [[f32; R]; T] {
        let n_cols = self.weight.n_cols();
        let rows: [*const u8; R] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let inputs: [*const f32; T] = std::array::from_fn(|t| self.inputs[t * n_cols..].as_ptr());
        // SAFETY: `row` checked the bounds of the rows, which hold `n_cols` values as `WeightMatrix` proves, and
        // `check` those of the inputs.
        unsafe { dots::<S, F, R, T>(simd, rows, inputs, n_cols) }
    }

    /// Dtypes without a vector form: decodes pieces of a row into a stack buffer that all tokens share.
    #[inline(always)]
    fn staged<S: Simd>(&self, simd: S) {
        self.check();
        let (dtype, n_cols) = (self.weight.dtype(), self.weight.n_cols());
        let piece_bytes = STAGE / dtype.block_len() * dtype.block_bytes();
        let mut stage = [0.0_f32; STAGE];
        for row in self.rows.clone() {
            let mut sums = [simd.splat(0.0); MAX_DOT_TOKENS];
            for (piece, bytes) in self.weight.row(row).chunks(piece_bytes).enumerate() {
                let start = piece * STAGE;
                let len = STAGE.min(n_cols - start);
                crate::blocks::dequantize(dtype, bytes, &mut stage[..len]);
                for (token, sum) in sums[..self.n_tokens].iter_mut().enumerate() {
                    let input = &self.inputs[token * n_cols + start..][..len];
                    for at in (0..len).step_by(S::LANES) {
                        // SAFETY: blocks hold a multiple of `LANES` values, so `at + LANES <= len` in both.
                        let (a, b) =
                            unsafe { (simd.load(stage.as_ptr().add(at)), simd.load(input.as_ptr().add(at))) };
                        *sum = simd.fma(a, b, *sum);
                    }
                }
            }
            for (token, sum) in sums[..self.n_tokens].iter().enumerate() {
                self.store_one(token, row, simd.sum(*sum));
            }
        }
    }

    #[inline(always)]
    fn store<const R: usize, const T: usize>(&self, row: usize, values: [[f32; R]; T]) {
        for (token, values) in values.into_iter().enumerate() {
            for (r, value) in values.into_iter().enumerate() {
                self.store_one(token, row + r, value);
            }
        }
    }

    #[inline(always)]
    fn store_one(&self, token: usize, row: usize, value: f32) {
        // SAFETY: `[n_tokens, n_rows]` values belong to this product, and this row to this task alone.
        unsafe {
            let out = self.out.at(token * self.weight.n_rows() + row);
            *out = if self.accumulate { *out + value } else { value };
        }
    }
}

/// `rows[r] . inputs[t]` for each pair, as `[t][r]`.
/// # Safety
/// Rows and inputs hold `n_cols` values.
#[inline(always)]
pub(crate) unsafe fn dots<S: Simd, F: RowFormat, const R: usize, const T: usize>(
    simd: S,
    rows: [*const u8; R],
    inputs: [*const f32; T],
    n_cols: usize,
) -> [[f32; R]; T] {
    let pieces = if F::GROUP == 1 { 1 } else { F::GROUP / S::LANES };
    let step = pieces * S::LANES;
    let step_bytes = if F::GROUP == 1 { S::LANES * F::GROUP_BYTES } else { F::GROUP_BYTES };
    let mut sums = [[simd.splat(0.0); R]; T];
    let mut tails = [[0.0_f32; R]; T];
    // SAFETY: the caller vouches for `n_cols` values everywhere; all offsets stay below.
    unsafe {
        for group in 0..n_cols / step {
            for piece in 0..pieces {
                let mut values = [simd.splat(0.0); R];
                for (value, row) in values.iter_mut().zip(rows) {
                    *value = F::decode(simd, row.add(group * step_bytes), piece);
                }
                for (sums, input) in sums.iter_mut().zip(inputs) {
                    let input = simd.load(input.add(group * step + piece * S::LANES));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = simd.fma(value, input, *sum);
                    }
                }
            }
        }
        for at in n_cols / step * step..n_cols {
            for (tails, input) in tails.iter_mut().zip(inputs) {
                for (tail, row) in tails.iter_mut().zip(rows) {
                    *tail += F::decode_one(row.add(at * F::GROUP_BYTES)) * *input.add(at);
                }
            }
        }
    }
    for (sums, tails) in sums.into_iter().zip(&mut tails) {
        for (sum, tail) in sums.into_iter().zip(tails) {
            *tail += simd.sum(sum);
        }
    }
    tails
}

/// Writes, for each group of 32 inputs, `LANES` partial sums to `sums`.
pub(crate) struct GroupSums<'a> {
    pub(crate) input: &'a [f32],
    /// `input.len() / 32 * MAX_LANES` values; the first `input.len() / 32 * LANES` are written.
    pub(crate) sums: &'a mut [f32],
}

impl Kernel for GroupSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let groups = self.input.chunks_exact(32).zip(self.sums.chunks_exact_mut(S::LANES));
        for (group, sums) in groups {
            // SAFETY: a group has 32 values and `LANES` divides 32; `sums` has `LANES` values.
            unsafe {
                let mut sum = simd.load(group.as_ptr());
                for at in (S::LANES..32).step_by(S::LANES) {
                    sum = simd.add(sum, simd.load(group.as_ptr().add(at)));
                }
                simd.store(sums.as_mut_ptr(), sum);
            }
        }
    }
}
