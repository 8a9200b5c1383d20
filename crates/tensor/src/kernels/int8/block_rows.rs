//! Rows of the K formats and of `q5_0` and `q5_1` with a few tokens of bytes: as [`super::rows`], for blocks whose groups of
//! 32 have scales of their own.
//!
//! More tokens than [`super::ROW_TOKENS`] are multiplied as with [`Precision::F32`](super::super::Precision::F32): their
//! panels decode each row once for all tokens, which is no slower.

use super::inputs::QuantizedRows;
use super::{GROUP, ROW_TOKENS};
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{MAX_LANES, Simd};
use crate::{DType, WeightMatrix};
use std::ops::Range;

/// `out[token, row] = weight[row] . inputs[token]` for the rows in `rows`.
pub(crate) struct BlockRows<'a> {
    pub(crate) weight: &'a WeightMatrix,
    pub(crate) rows: Range<usize>,
    pub(crate) inputs: QuantizedRows<'a>,
    /// `[n_tokens, n_rows]`.
    pub(crate) out: OutPtr,
    pub(crate) accumulate: bool,
}

/// Whether rows of `dtype` are read here.
pub(crate) const fn has_block_rows(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_K | DType::Q5_K | DType::Q6_K | DType::Q5_0 | DType::Q5_1)
}

/// What the integers of one block stand for: `steps * q - mins`. One step for a group, or for each half of one; what lies
/// behind the last is for whole vectors.
struct Scales {
    steps: [f32; 16 + MAX_LANES],
    mins: [f32; 8 + MAX_LANES],
}

/// A dtype whose groups of 32 weights are integers with scales that the groups of a block keep together.
trait BlockFormat: Copy {
    /// Bytes of a block.
    const BYTES: usize;
    /// Groups in a block.
    const GROUPS: usize;
    /// A step for each half of a group, signed integers, no minimum; else one step and one minimum, integers 0..=31.
    const HALVES: bool;

    /// Steps and minima of a block.
    /// # Safety
    /// The block can be read.
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales);
    /// The integers of a group.
    /// # Safety
    /// The block can be read, and `group < GROUPS`.
    unsafe fn quants<S: Simd>(simd: S, block: *const u8, group: usize) -> S::Q;
}

/// Two f16, twelve bytes of 6-bit steps and minima, 128 bytes of nibbles.
#[derive(Clone, Copy)]
struct Q4K;

impl BlockFormat for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;
    const HALVES: bool = false;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
        // SAFETY: the caller vouches for the block.
        unsafe { k4_scales(simd, block, to) }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(simd: S, block: *const u8, group: usize) -> S::Q {
        // SAFETY: two groups share 32 bytes; all four pairs lie in the block.
        unsafe { simd.load_bits(block.add(16 + group / 2 * 32), group % 2 * 4, None) }
    }
}

/// As [`Q4K`], with 32 bytes of fifth bits before the nibbles.
#[derive(Clone, Copy)]
struct Q5K;

impl BlockFormat for Q5K {
    const BYTES: usize = 176;
    const GROUPS: usize = 8;
    const HALVES: bool = false;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
        // SAFETY: the caller vouches for the block.
        unsafe { k4_scales(simd, block, to) }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(simd: S, block: *const u8, group: usize) -> S::Q {
        // SAFETY: as above; group `g` has bit `g` of the 32 bytes of fifth bits.
        unsafe {
            let high = Some((block.add(16), group, 1));
            simd.load_bits(block.add(48 + group / 2 * 32), group % 2 * 4, high)
        }
    }
}

/// 128 bytes of nibbles, 64 bytes of upper pairs of bits, sixteen signed steps, one f16.
#[derive(Clone, Copy)]
struct Q6K;

impl BlockFormat for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 8;
    const HALVES: bool = true;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
        // SAFETY: the caller vouches for the block; `to` has room for whole vectors.
        unsafe {
            let d = simd.splat_f16(block.add(208));
            for at in (0..16).step_by(S::LANES) {
                let steps = simd.to_f(simd.load_i8(block.add(192 + at)));
                simd.store(to.steps.as_mut_ptr().add(at), simd.mul(d, steps));
            }
        }
    }
    #[inline(always)]
    unsafe fn quants<S: Simd>(simd: S, block: *const u8, group: usize) -> S::Q {
        let (half, nth) = (group / 4, group % 4);
        // SAFETY: half a block has 64 bytes of nibbles, two groups for each 32, and 32 bytes of pairs, one for each group.
        unsafe {
            let high = Some((block.add(128 + half * 32), 2 * nth, 3));
            simd.less_32(simd.load_bits(block.add(half * 64 + nth % 2 * 32), nth / 2 * 4, high))
        }
    }
}

macro_rules! five_bits {
    ($name:ident, $bytes:literal, |$simd:ident, $block:ident| $scales:expr, $fifth:literal) => {
        #[derive(Clone, Copy)]
        struct $name;
        impl BlockFormat for $name {
            const BYTES: usize = $bytes;
            const GROUPS: usize = 1;
            const HALVES: bool = false;
            #[inline(always)]
            unsafe fn scales<S: Simd>($simd: S, $block: *const u8, to: &mut Scales) {
                // SAFETY: the caller vouches for the block.
                let (step, min) = unsafe { $scales };
                (to.steps[0], to.mins[0]) = ($simd.first(step), $simd.first(min));
            }
            #[inline(always)]
            unsafe fn quants<S: Simd>(simd: S, block: *const u8, _group: usize) -> S::Q {
                // SAFETY: four bytes of fifth bits are followed by 16 bytes of nibbles.
                unsafe { simd.load_q5(block.add($fifth + 4), block.add($fifth)) }
            }
        }
    };
}

five_bits!(
    Q5_0,
    22,
    |simd, block| {
        let d = simd.splat_f16(block);
        (d, simd.mul(d, simd.splat(16.0)))
    },
    2
);
five_bits!(
    Q5_1,
    24,
    |simd, block| {
        let (d, least) = simd.splat_f16_pair(block);
        (d, simd.sub(simd.splat(0.0), least))
    },
    4
);

/// Steps and minima of a Q4_K or Q5_K block: two f16, then eight of each in 6 bits, packed into twelve bytes.
/// # Safety
/// 16 bytes can be read.
#[inline(always)]
unsafe fn k4_scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
    const SIX: u32 = 0x3F3F_3F3F;
    const FOUR: u32 = 0x0F0F_0F0F;
    const TWO: u32 = 0x0303_0303;
    // SAFETY: the caller vouches for 16 bytes.
    let words: [u32; 3] = unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() }.map(u32::from_le);
    let steps = [words[0] & SIX, (words[2] & FOUR) | ((words[0] >> 6 & TWO) << 4)];
    let mins = [words[1] & SIX, (words[2] >> 4 & FOUR) | ((words[1] >> 6 & TWO) << 4)];
    // Room for whole vectors behind the eight that count.
    let mut bytes = [0_u8; 8 + MAX_LANES];
    // SAFETY: as above; buffers and `to` have room for whole vectors behind eight values.
    unsafe {
        let (d, dmin) = simd.splat_f16_pair(block);
        for (packed, factor, to) in [(steps, d, to.steps.as_mut_ptr()), (mins, dmin, to.mins.as_mut_ptr())] {
            bytes[..4].copy_from_slice(&packed[0].to_le_bytes());
            bytes[4..8].copy_from_slice(&packed[1].to_le_bytes());
            for at in (0..8).step_by(S::LANES) {
                let values = simd.to_f(simd.load_u8(bytes.as_ptr().add(at)));
                simd.store(to.add(at), simd.mul(factor, values));
            }
        }
    }
}

impl Kernel for BlockRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        assert!(self.rows.end <= self.weight.n_rows(), "rows out of range");
        assert_eq!(self.inputs.n_in, self.weight.n_cols(), "inputs are not [n_tokens, n_cols]");
        match self.weight.dtype() {
            DType::Q4_K => self.format(simd, Q4K),
            DType::Q5_K => self.format(simd, Q5K),
            DType::Q6_K => self.format(simd, Q6K),
            DType::Q5_0 => self.format(simd, Q5_0),
            DType::Q5_1 => self.format(simd, Q5_1),
            dtype => unreachable!("{dtype} rows are not read here"),
        }
    }
}

impl BlockRows<'_> {
    #[inline(always)]
    fn format<S: Simd, F: BlockFormat>(&self, simd: S, _: F) {
        match self.inputs.n_tokens {
            1 => self.tokens::<S, F, 2, 1>(simd),
            2 => self.tokens::<S, F, 2, 2>(simd),
            3 => self.tokens::<S, F, 1, 3>(simd),
            4 => self.tokens::<S, F, 1, 4>(simd),
            5 => self.tokens::<S, F, 1, 5>(simd),
            6 => self.tokens::<S, F, 1, 6>(simd),
            7 => self.tokens::<S, F, 1, 7>(simd),
            ROW_TOKENS => self.tokens::<S, F, 1, ROW_TOKENS>(simd),
            n => unreachable!("{n} tokens in a row product"),
        }
    }

    #[inline(always)]
    fn tokens<S: Simd, F: BlockFormat, const R: usize, const T: usize>(&self, simd: S) {
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

    /// The same operations in the same order for each row and token, however many come together.
    // Indices keep the sums in registers; iterators spill them.
    #[inline(always)]
    fn dots<S: Simd, F: BlockFormat, const R: usize, const T: usize>(&self, simd: S, row: usize) {
        let rows: [*const u8; R] = std::array::from_fn(|r| self.weight.row(row + r).as_ptr());
        let quants: [*const i8; T] = std::array::from_fn(|t| self.inputs.quants(t));
        let scales: [*const f32; T] = std::array::from_fn(|t| self.inputs.scales(t));
        let mut sums = [[simd.splat(0.0); T]; R];
        let mut offsets = [[0.0_f32; T]; R];
        let mut own = Scales { steps: [0.0; 16 + MAX_LANES], mins: [0.0; 8 + MAX_LANES] };
        let step_bytes = R * F::BYTES;
        for block in 0..self.inputs.n_in / (F::GROUPS * GROUP) {
            simd.prefetch_ahead(rows[0], block * step_bytes..(block + 1) * step_bytes);
            for r in 0..R {
                // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values in whole blocks as `WeightMatrix`
                // proves; `quants` and `scales` checked those of the inputs.
                unsafe {
                    let at = rows[r].add(block * F::BYTES);
                    F::scales(simd, at, &mut own);
                    for nth in 0..F::GROUPS {
                        let group = block * F::GROUPS + nth;
                        let q = F::quants(simd, at, nth);
                        for t in 0..T {
                            let x = quants[t].add(group * GROUP);
                            let (scale, sum) = (*scales[t].add(2 * group), *scales[t].add(2 * group + 1));
                            if F::HALVES {
                                let factors = [own.steps[2 * nth] * scale, own.steps[2 * nth + 1] * scale];
                                let products = simd.dot_halves(q, x, factors);
                                sums[r][t] = simd.add(sums[r][t], products);
                            } else {
                                let factor = simd.splat(own.steps[nth] * scale);
                                let product = simd.to_f(simd.dot_nibbles(q, x));
                                sums[r][t] = simd.fma(product, factor, sums[r][t]);
                                offsets[r][t] += own.mins[nth] * sum;
                            }
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                let value = simd.sum(sums[r][t]) - offsets[r][t];
                // SAFETY: `[n_tokens, n_rows]` values belong to this product, and this row to this task alone.
                unsafe {
                    let out = self.out.at(t * self.weight.n_rows() + row + r);
                    *out = if self.accumulate { *out + value } else { value };
                }
            }
        }
    }
}
