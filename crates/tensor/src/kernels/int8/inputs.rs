//! Activations as bytes, in the two orders in which kernels read them.
//!
//! Each group of 32 gets `scale = max|x| / 127` and `q = round(x / scale)`; beside it lies `scale * sum(q)`, the factor of
//! the weights' offsets, also of half a group, for weights with a step for each 16. A group with NaN or infinity gets a
//! NaN scale, so it cannot pass for numbers.

use super::GROUP;
use crate::kernels::isa::Kernel;
use crate::kernels::out::OutPtr;
use crate::kernels::simd::Simd;
use std::ops::Range;

/// Tokens side by side in a strip.
pub(crate) const STRIP: usize = 8;

/// f32 values of one group of a strip: `[8][STRIP][4]` bytes, then of each token the scale, the sum, and minus the sums of the
/// bytes in both halves, `[2]` of 16 bits.
pub(crate) const STRIP_VALUES: usize = STRIP * GROUP / 4 + 3 * STRIP;

/// A few tokens, row by row.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRows<'a> {
    buffer: &'a [f32],
    pub(crate) n_tokens: usize,
    pub(crate) n_in: usize,
}

impl QuantizedRows<'_> {
    /// f32 values of the buffer: bytes, scales and sums, sums of halves.
    pub(crate) fn n_values(n_tokens: usize, n_in: usize) -> usize {
        n_tokens * n_in / GROUP * (GROUP / 4 + 4)
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
        let (quants, scales) =
            buffer[..QuantizedRows::n_values(n_tokens, n_in)].split_at_mut(n_tokens * n_in / 4);
        let (scales, halves) = scales.split_at_mut(scales.len() / 2);
        let groups = inputs.chunks_exact(GROUP).zip(quants.chunks_exact_mut(GROUP / 4));
        let sums = scales.chunks_exact_mut(2).zip(halves.chunks_exact_mut(2));
        for ((group, quants), (scales, halves)) in groups.zip(sums) {
            // SAFETY: `group` has 32 values, and `quants` room for 32 bytes.
            let Rounded { scale, sum, sums } =
                unsafe { quantize(simd, group.as_ptr(), quants.as_mut_ptr().cast()) };
            scales.copy_from_slice(&[scale, sum]);
            halves.copy_from_slice(&sums.map(|sum| scale * sum));
        }
        QuantizedRows { buffer, n_tokens, n_in }
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
