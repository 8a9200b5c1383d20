//! Rows of the K formats with a few tokens of bytes: as [`super::rows`], for blocks of eight groups that keep their scales
//! together.

use super::GROUP;
use super::inputs::QuantizedRows;
use super::panels::{MAX_GROUPS, PanelFormat, Scales};
use super::rows::{Dots, each_row};
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{Bits, MAX_LANES, Simd};
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
pub(crate) const fn has_blocks(dtype: DType) -> bool {
    matches!(dtype, DType::Q4_K | DType::Q5_K | DType::Q6_K)
}

/// Groups in a block.
const GROUPS: usize = MAX_GROUPS;

/// A dtype with blocks of eight groups of 32 weights: integers with scales that the groups keep together.
pub(crate) trait BlockFormat: Copy {
    /// Bytes of a block.
    const BYTES: usize;
    /// Bits of an integer: 4 or 5, and weights are `step * q - min`; or 6, and they are `step * (q - 32)`, with a step for
    /// each half of a group.
    const BITS: usize;

    /// Step and minimum of each group, or the steps of both halves.
    /// # Safety
    /// The block can be read.
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut [f32; 2 * GROUPS]);
    /// Where the integers of a group lie.
    fn bits(block: *const u8, group: usize) -> Bits;
}

/// Two f16, twelve bytes of 6-bit steps and minima, 128 bytes of nibbles.
#[derive(Clone, Copy)]
pub(crate) struct Q4K;

impl BlockFormat for Q4K {
    const BYTES: usize = 144;
    const BITS: usize = 4;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut [f32; 2 * GROUPS]) {
        // SAFETY: the caller vouches for the block.
        unsafe { k4_scales(simd, block, to) }
    }
    #[inline(always)]
    fn bits(block: *const u8, group: usize) -> Bits {
        // Two groups share 32 bytes.
        Bits { low: block.wrapping_add(16 + group / 2 * 32), low_shift: group % 2 * 4, high: None }
    }
}

/// As [`Q4K`], with 32 bytes of fifth bits before the nibbles.
#[derive(Clone, Copy)]
pub(crate) struct Q5K;

impl BlockFormat for Q5K {
    const BYTES: usize = 176;
    const BITS: usize = 5;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut [f32; 2 * GROUPS]) {
        // SAFETY: the caller vouches for the block.
        unsafe { k4_scales(simd, block, to) }
    }
    #[inline(always)]
    fn bits(block: *const u8, group: usize) -> Bits {
        // Group `g` has bit `g` of the 32 bytes of fifth bits.
        let high = Some((block.wrapping_add(16), group, 1));
        Bits { low: block.wrapping_add(48 + group / 2 * 32), low_shift: group % 2 * 4, high }
    }
}

/// 128 bytes of nibbles, 64 bytes of upper pairs of bits, sixteen signed steps, one f16.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl BlockFormat for Q6K {
    const BYTES: usize = 210;
    const BITS: usize = 6;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut [f32; 2 * GROUPS]) {
        // SAFETY: the caller vouches for the block.
        unsafe {
            let d = simd.splat_f16(block.add(208));
            for at in (0..2 * GROUPS).step_by(S::LANES) {
                let steps = simd.to_f(simd.load_i8(block.add(192 + at)));
                simd.store(to.as_mut_ptr().add(at), simd.mul(d, steps));
            }
        }
    }
    #[inline(always)]
    fn bits(block: *const u8, group: usize) -> Bits {
        // Half a block has 64 bytes of nibbles, two groups for each 32, and 32 bytes of pairs, one for each group.
        let (half, nth) = (group / 4, group % 4);
        let high = Some((block.wrapping_add(128 + half * 32), 2 * nth, 3));
        Bits { low: block.wrapping_add(half * 64 + nth % 2 * 32), low_shift: nth / 2 * 4, high }
    }
}

/// Step and minimum of each group of a Q4_K or Q5_K block: two f16, then eight of each in 6 bits, packed into twelve bytes.
/// # Safety
/// 16 bytes can be read.
#[inline(always)]
unsafe fn k4_scales<S: Simd>(simd: S, block: *const u8, to: &mut [f32; 2 * GROUPS]) {
    const SIX: u32 = 0x3F3F_3F3F;
    const FOUR: u32 = 0x0F0F_0F0F;
    const TWO: u32 = 0x3030_3030;
    // SAFETY: the caller vouches for 16 bytes.
    let words: [u32; 3] = unsafe { block.add(4).cast::<[u32; 3]>().read_unaligned() }.map(u32::from_le);
    let join = |first: u32, second: u32| u64::from(first) | (u64::from(second) << 32);
    let steps = join(words[0] & SIX, (words[2] & FOUR) | (words[0] >> 2 & TWO));
    let mins = join(words[1] & SIX, (words[2] >> 4 & FOUR) | (words[1] >> 2 & TWO));
    let bytes = simd.zip_bytes(steps, mins);
    // SAFETY: as above; both arrays have 16 values.
    unsafe {
        let factors = simd.splat_f16s(block);
        for at in (0..2 * GROUPS).step_by(S::LANES) {
            let values = simd.to_f(simd.load_u8(bytes.as_ptr().add(at)));
            simd.store(to.as_mut_ptr().add(at), simd.mul(factors, values));
        }
    }
}

/// A [`BlockFormat`] in panels.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<F>(pub(crate) F);

impl<F: BlockFormat> PanelFormat for Blocks<F> {
    const BYTES: usize = F::BYTES;
    const GROUPS: usize = GROUPS;
    const PLANES: usize = 1;
    const BITS: usize = F::BITS;
    #[inline(always)]
    unsafe fn scales<S: Simd>(simd: S, block: *const u8, to: &mut Scales) {
        let mut scales = [0.0; 2 * GROUPS];
        // SAFETY: the caller vouches for the block.
        unsafe { F::scales(simd, block, &mut scales) };
        for (to, scales) in to.iter_mut().zip(scales.as_chunks().0) {
            *to = if F::BITS == 6 { *scales } else { [scales[0], -scales[1]] };
        }
    }
    #[inline(always)]
    unsafe fn planes<S: Simd>(simd: S, block: *const u8, group: usize) -> [S::Q; 2] {
        // SAFETY: the caller vouches for the block, and so for the bits of the group.
        [unsafe { simd.load_bits(F::bits(block, group)) }; 2]
    }
}

impl Kernel for BlockRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        assert!(self.rows.end <= self.weight.n_rows(), "rows out of range");
        assert_eq!(self.inputs.n_in, self.weight.n_cols(), "inputs are not [n_tokens, n_cols]");
        let (rows, n_tokens) = (self.rows.clone(), self.inputs.n_tokens);
        match self.weight.dtype() {
            DType::Q4_K => each_row::<S, _, 2>(simd, &(&self, Q4K), rows, n_tokens),
            DType::Q5_K => each_row::<S, _, 2>(simd, &(&self, Q5K), rows, n_tokens),
            DType::Q6_K => each_row::<S, _, 2>(simd, &(&self, Q6K), rows, n_tokens),
            dtype => unreachable!("{dtype} rows are not read here"),
        }
    }
}

impl<F: BlockFormat> Dots for (&BlockRows<'_>, F) {
    // Indices keep the sums in registers; iterators spill them.
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const T: usize>(&self, simd: S, row: usize) {
        let BlockRows { weight, inputs, out, accumulate, .. } = self.0;
        let rows: [*const u8; R] = std::array::from_fn(|r| weight.row(row + r).as_ptr());
        let quants: [*const i8; T] = std::array::from_fn(|t| inputs.quants(t));
        let scales: [*const f32; T] = std::array::from_fn(|t| inputs.scales(t));
        let halves: [*const f32; T] = std::array::from_fn(|t| inputs.halves(t));
        let mut sums = [[simd.splat(0.0); T]; R];
        let mut offsets = [[simd.splat(0.0); T]; R];
        let mut own = [0.0; 2 * GROUPS];
        let mut factors = [[0.0; 2 * GROUPS]; T];
        let step_bytes = R * F::BYTES;
        for block in 0..inputs.n_in / (GROUPS * GROUP) {
            simd.prefetch_ahead(rows[0], block * step_bytes..(block + 1) * step_bytes);
            let pairs = block * 2 * GROUPS;
            for r in 0..R {
                // SAFETY: `row` checked the bounds of the rows, which hold `n_in` values in whole blocks as `WeightMatrix`
                // proves; `quants`, `scales` and `halves` checked those of the inputs.
                unsafe {
                    let at = rows[r].add(block * F::BYTES);
                    F::scales(simd, at, &mut own);
                    for t in 0..T {
                        for lane in (0..2 * GROUPS).step_by(S::LANES) {
                            let own = simd.load(own.as_ptr().add(lane));
                            let scale = simd.load(scales[t].add(pairs + lane));
                            let factor = if F::BITS == 6 {
                                let half = simd.load(halves[t].add(pairs + lane));
                                offsets[r][t] = simd.fma(own, half, offsets[r][t]);
                                simd.mul(own, simd.even_twice(scale))
                            } else {
                                // Odd lanes are minima times sums.
                                let factor = simd.mul(own, scale);
                                offsets[r][t] = simd.add(offsets[r][t], factor);
                                factor
                            };
                            simd.store(factors[t].as_mut_ptr().add(lane), factor);
                        }
                    }
                    for pair in 0..GROUPS / 2 {
                        let q = simd.load_pair([F::bits(at, 2 * pair), F::bits(at, 2 * pair + 1)]);
                        for t in 0..T {
                            let x = quants[t].add((block * GROUPS + 2 * pair) * GROUP);
                            let factors = factors[t].as_ptr().add(4 * pair);
                            sums[r][t] = if F::BITS == 6 {
                                simd.add_pair::<true>(q, x, factors, sums[r][t])
                            } else {
                                simd.add_pair::<false>(q, x, factors, sums[r][t])
                            };
                        }
                    }
                }
            }
        }
        let minus: [f32; MAX_LANES] =
            std::array::from_fn(|lane| if F::BITS == 6 { -32.0 } else { -((lane % 2) as f32) });
        for r in 0..R {
            for t in 0..T {
                // SAFETY: `minus` has room for the lanes of any set; `[n_tokens, n_rows]` values belong to this product,
                // and this row to this task alone.
                unsafe {
                    let value = simd.sum(simd.fma(offsets[r][t], simd.load(minus.as_ptr()), sums[r][t]));
                    let out = out.at(t * weight.n_rows() + row + r);
                    *out = if *accumulate { *out + value } else { value };
                }
            }
        }
    }
}
