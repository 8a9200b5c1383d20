//! Activations as bytes, in the orders in which kernels read them.
//!
//! Each group of 32 gets `scale = max|x| / 127` and `q = round(x / scale)`; beside it lies `scale * sum(q)`, the factor of
//! the weights' offsets, also of half a group, for weights with a step for each 16. A group with NaN or infinity gets a
//! NaN scale, so it cannot pass for numbers.

use super::GROUP;
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::{MAX_LANES, Simd};
use std::ops::Range;

/// Tokens side by side in a strip.
pub(crate) const STRIP: usize = 8;

/// f32 values of one group of a strip: `[8][STRIP][4]` bytes, then of each token the scale, the sum, and minus the sums of the
/// bytes in both halves, `[2]` of 16 bits.
pub(crate) const STRIP_VALUES: usize = STRIP * GROUP / 4 + 3 * STRIP;

/// A few tokens, row by row, and once more in steps for [`super::rows`].
///
/// A step covers the groups that fill a register with four lanes each. It has five vectors: the bytes of the first halves of
/// its groups, those of the second halves, and for each group minus the sum of its bytes as an integer in one of its lanes, the
/// scale in all, and the sum in one. The last step ends where the row ends; what steps before it cover has a scale of 0 there.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRows<'a> {
    buffer: &'a [f32],
    pub(crate) n_tokens: usize,
    pub(crate) n_in: usize,
    /// Lanes of the vectors of a step: four when a row has fewer groups than a step of this set.
    pub(crate) lanes: usize,
    steps_start: usize,
}

/// Vectors of a step.
pub(crate) const VECTORS: usize = 5;

/// Bytes at whose multiples steps begin, so that no vector lies in two cache lines.
const ALIGN_BYTES: usize = 64;

impl QuantizedRows<'_> {
    /// The most f32 values of the buffer: bytes, scales and sums, sums of halves; steps.
    pub(crate) fn n_values(n_tokens: usize, n_in: usize) -> usize {
        let n_groups = (n_in / GROUP).next_multiple_of(MAX_LANES / 4);
        n_tokens * (Self::row_values(n_in) + n_groups * 4 * VECTORS) + ALIGN_BYTES / 4
    }

    fn row_values(n_in: usize) -> usize {
        n_in / GROUP * (GROUP / 4 + 4)
    }

    /// The bytes of one token.
    #[inline(always)]
    pub(crate) fn quants(&self, token: usize) -> *const i8 {
        self.buffer[token * self.n_in / 4..].as_ptr().cast()
    }

    /// Scale and sum of each group of one token: `[n_groups, 2]`.
    #[inline(always)]
    pub(crate) fn scales(&self, token: usize) -> *const f32 {
        self.pairs(token)
    }

    /// Sums of both halves of each group of one token: `[n_groups, 2]`.
    #[inline(always)]
    pub(crate) fn halves(&self, token: usize) -> *const f32 {
        self.pairs(self.n_tokens + token)
    }

    #[inline(always)]
    fn pairs(&self, nth: usize) -> *const f32 {
        let n_values = 2 * (self.n_in / GROUP);
        let start = self.n_tokens * self.n_in / 4 + nth * n_values;
        self.buffer[start..start + n_values].as_ptr()
    }

    /// Steps of a token.
    #[inline(always)]
    pub(crate) fn n_steps(&self) -> usize {
        (self.n_in / GROUP).div_ceil(self.lanes / 4)
    }

    /// The group that a step begins with.
    #[inline(always)]
    pub(crate) fn first_group(&self, step: usize) -> usize {
        (step * self.lanes / 4).min(self.n_in / GROUP - self.lanes / 4)
    }

    /// Writes one group of a token to its steps.
    #[inline(always)]
    fn put(&self, group: usize, quants: &[f32], rounded: Rounded, steps: &mut [f32]) {
        let Rounded { scale, sum, sums } = rounded;
        let minus = (-(sums[0] + sums[1])) as i32;
        let per_step = self.lanes / 4;
        let own = group / per_step;
        for step in [own, self.n_steps() - 1] {
            let Some(nth) = group.checked_sub(self.first_group(step)) else { continue };
            let (scale, sum) = if step == own { (scale, sum) } else { (0.0, 0.0) };
            let mut vectors = steps[step * VECTORS * self.lanes..][..VECTORS * self.lanes]
                .chunks_exact_mut(self.lanes)
                .map(|vector| &mut vector[4 * nth..4 * nth + 4]);
            let mut put = |values: &[f32]| {
                vectors.next().expect("five vectors").copy_from_slice(values);
            };
            put(&quants[..4]);
            put(&quants[4..]);
            put(&[f32::from_bits(minus.cast_unsigned()), 0.0, 0.0, 0.0]);
            put(&[scale; 4]);
            put(&[sum, 0.0, 0.0, 0.0]);
            if step == self.n_steps() - 1 {
                break;
            }
        }
    }

    /// The steps of one token: `[n_steps, 5, lanes]`.
    #[inline(always)]
    pub(crate) fn steps(&self, token: usize) -> *const f32 {
        let n_values = self.n_steps() * VECTORS * self.lanes;
        let start = self.steps_start + token * n_values;
        self.buffer[start..start + n_values].as_ptr()
    }
}

/// Rounds a few tokens, row by row.
pub(crate) struct QuantizeRows<'a> {
    /// `[n_tokens, n_in]`.
    pub(crate) inputs: &'a [f32],
    pub(crate) n_in: usize,
    /// At least [`QuantizedRows::n_values`].
    pub(crate) buffer: &'a mut [f32],
}

impl<'a> Kernel for QuantizeRows<'a> {
    type Output = QuantizedRows<'a>;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> QuantizedRows<'a> {
        let Self { inputs, n_in, buffer } = self;
        let n_tokens = inputs.len() / n_in;
        let row_values = n_tokens * QuantizedRows::row_values(n_in);
        let skipped = buffer[row_values..].as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES / 4);
        let lanes = if n_in / GROUP < S::LANES / 4 { 4 } else { S::LANES };
        let mut rows =
            QuantizedRows { buffer: &[], n_tokens, n_in, lanes, steps_start: row_values + skipped };
        let (quants, scales) =
            buffer[..QuantizedRows::n_values(n_tokens, n_in)].split_at_mut(n_tokens * n_in / 4);
        let (scales, others) = scales.split_at_mut(n_tokens * n_in / GROUP * 2);
        let (halves, steps) = others.split_at_mut(scales.len());
        let groups = inputs.chunks_exact(GROUP).zip(quants.chunks_exact_mut(GROUP / 4));
        let sums = scales.chunks_exact_mut(2).zip(halves.chunks_exact_mut(2));
        let n_groups = n_in / GROUP;
        for (nth, ((group, quants), (scales, halves))) in groups.zip(sums).enumerate() {
            // SAFETY: `group` has 32 values, and `quants` room for 32 bytes.
            let rounded = unsafe { quantize(simd, group.as_ptr(), quants.as_mut_ptr().cast()) };
            scales.copy_from_slice(&[rounded.scale, rounded.sum]);
            halves.copy_from_slice(&rounded.sums.map(|sum| rounded.scale * sum));
            let steps = &mut steps[skipped + nth / n_groups * rows.n_steps() * VECTORS * lanes..];
            rows.put(nth % n_groups, quants, rounded, steps);
        }
        rows.buffer = buffer;
        rows
    }
}

/// Rounds many tokens into strips of [`STRIP`]: `[n_in / kc][n_strips][group]`, each group as [`STRIP_VALUES`] tells.
pub(crate) struct QuantizeStrips<'a> {
    /// `[n_tokens, n_in]`.
    pub(crate) inputs: &'a [f32],
    pub(crate) n_in: usize,
    /// Activations of one step of the sum, a multiple of the group.
    pub(crate) kc: usize,
    /// Strips of this task.
    pub(crate) range: Range<usize>,
    pub(crate) n_strips: usize,
    pub(crate) strips: OutPtr,
}

impl Kernel for QuantizeStrips<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n_tokens = self.inputs.len() / self.n_in;
        assert!(
            self.range.end <= self.n_strips && self.n_strips == n_tokens.div_ceil(STRIP),
            "strips out of range"
        );
        for start in (0..self.n_in).step_by(self.kc) {
            let n_groups = self.kc.min(self.n_in - start) / GROUP;
            for strip in self.range.clone() {
                let at = (start / GROUP * self.n_strips + strip * n_groups) * STRIP_VALUES;
                // SAFETY: the buffer holds `n_strips * n_in / GROUP` groups, and this strip belongs to this task.
                let to = unsafe { self.strips.slice(at, n_groups * STRIP_VALUES) };
                for (nth, to) in to.chunks_exact_mut(STRIP_VALUES).enumerate() {
                    self.group(simd, strip * STRIP, start + nth * GROUP, to);
                }
            }
        }
    }
}

impl QuantizeStrips<'_> {
    /// One group of the tokens from `token` on; tokens beyond the last are zeros.
    #[inline(always)]
    fn group<S: Simd>(&self, simd: S, token: usize, start: usize, to: &mut [f32]) {
        let (quants, scales) = to.split_at_mut(STRIP * GROUP / 4);
        quants.fill(0.0);
        scales.fill(0.0);
        let n_left = (self.inputs.len() / self.n_in - token).min(STRIP);
        for nth in 0..n_left {
            let group = &self.inputs[(token + nth) * self.n_in + start..][..GROUP];
            let mut bytes = [0_i8; GROUP];
            // SAFETY: both have 32 values.
            let Rounded { scale, sum, sums } = unsafe { quantize(simd, group.as_ptr(), bytes.as_mut_ptr()) };
            (scales[nth], scales[STRIP + nth]) = (scale, sum);
            let minus = sums.map(|sum| -sum as i16);
            // SAFETY: a value holds two of 16 bits.
            unsafe { std::ptr::from_mut(&mut scales[2 * STRIP + nth]).cast::<[i16; 2]>().write(minus) };
            for (four, to) in bytes.chunks_exact(4).zip(quants[nth..].iter_mut().step_by(STRIP)) {
                // SAFETY: a value holds four bytes.
                unsafe {
                    std::ptr::copy_nonoverlapping(four.as_ptr(), std::ptr::from_mut(to).cast::<i8>(), 4)
                };
            }
        }
    }
}

/// What a group leaves beside its bytes.
struct Rounded {
    scale: f32,
    /// The sum of the bytes times the scale.
    sum: f32,
    /// The sums of the bytes of both halves.
    sums: [f32; 2],
}

/// Rounds one group.
/// # Safety
/// 32 values at `from` can be read, and 32 bytes at `to` written.
#[inline(always)]
unsafe fn quantize<S: Simd>(simd: S, from: *const f32, to: *mut i8) -> Rounded {
    let zero = simd.splat(0.0);
    let (mut max, mut poison) = (zero, zero);
    for at in (0..GROUP).step_by(S::LANES) {
        // SAFETY: the caller vouches for 32 values.
        let value = unsafe { simd.load(from.add(at)) };
        max = simd.max(max, simd.max(value, simd.sub(zero, value)));
        poison = simd.fma(value, zero, poison);
    }
    let scale = simd.max_lane(max) / 127.0 + simd.sum(poison);
    if scale.is_nan() {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { std::ptr::write_bytes(to, 0, GROUP) };
        return Rounded { scale, sum: scale, sums: [0.0; 2] };
    }
    let inverse = if f32::MIN_POSITIVE <= scale { 1.0 / scale } else { 0.0 };
    let mut sums = [simd.splat_i(0); 2];
    for at in (0..GROUP).step_by(S::LANES) {
        // SAFETY: the caller vouches for both sides; quotients are within -127..=127 but for rounding.
        unsafe {
            let q = simd.round_to_i(simd.mul(simd.load(from.add(at)), simd.splat(inverse)));
            simd.store_i8(to.add(at), q);
            let sum = &mut sums[at / (GROUP / 2)];
            *sum = simd.add_i(*sum, q);
        }
    }
    // Sums of bytes are exact in f32.
    let sums = sums.map(|sum| simd.sum(simd.to_f(sum)));
    Rounded { scale, sum: scale * (sums[0] + sums[1]), sums }
}
