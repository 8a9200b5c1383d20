//! Four lanes: aarch64, where NEON is part of the baseline, with the instructions for products of bytes that there are.

use super::{Bits, Kernel, Simd, steps};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Products of bytes by what every CPU has: `smull`, `smlal` and pairwise sums.
pub(crate) const BASE: u8 = 0;
/// By `sdot`.
pub(crate) const DOT: u8 = 1;
/// By `sdot`, and tiles by `smmla`.
pub(crate) const I8MM: u8 = 2;

/// Proof that the CPU has NEON and what `BYTES` names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon<const BYTES: u8>(());

impl<const BYTES: u8> Neon<BYTES> {
    pub(crate) fn new() -> Option<Self> {
        let all = is_aarch64_feature_detected!("neon")
            && (BYTES < DOT || is_aarch64_feature_detected!("dotprod"))
            && (BYTES < I8MM || is_aarch64_feature_detected!("i8mm"));
        all.then_some(Self(()))
    }

    /// The same CPU without instructions for bytes: kernels of floats need not be compiled for each set.
    pub(crate) fn base(self) -> Neon<BASE> {
        Neon(())
    }
}

#[target_feature(enable = "neon")]
#[inline(never)]
fn run<K: Kernel, const BYTES: u8>(simd: Neon<BYTES>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
fn run_dot<K: Kernel, const BYTES: u8>(simd: Neon<BYTES>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline(never)]
fn run_i8mm<K: Kernel, const BYTES: u8>(simd: Neon<BYTES>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic on register values.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves that the CPU has the instruction, and only register values are used.
        unsafe { $call }
    };
}

impl<const BYTES: u8> Simd for Neon<BYTES> {
    type F = float32x4_t;
    type I = int32x4_t;
    type Q = [int8x16_t; 2];
    type Pair = [[int8x16_t; 2]; 2];
    type P = int8x16_t;
    /// i32 in the first with `sdot` and `smmla`, else i16 in both.
    type A = [int16x8_t; 2];
    const LANES: usize = 4;
    const PRODUCTS_IN_16_BITS: usize = if DOT <= BYTES { 0 } else { 1 };
    const TOKENS: usize = 4;
    // 8 x 3 sums, 3 vectors of b and the broadcasts out of 32 registers.
    const MR: usize = 8;
    const NV: usize = 3;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(test)]
        crate::kernels::tests::coverage::note::<Self, K>();
        // SAFETY: `self` proves that the CPU has the features.
        unsafe {
            match BYTES {
                BASE => run(self, kernel),
                DOT => run_dot(self, kernel),
                _ => run_i8mm(self, kernel),
            }
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        op!(vdupq_n_f32(value))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn zero_if_at_most(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        op!(vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcleq_f32(x, bound))))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        op!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        op!(vmaxvq_f32(a))
    }

    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        op!(vrev64q_f32(a))
    }
    #[inline(always)]
    fn even_twice(self, a: Self::F) -> Self::F {
        op!(vtrn1q_f32(a, a))
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        op!(vdupq_n_s32(value))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vandq_s32(a, b))
    }
    #[inline(always)]
    fn shr_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-N))))
    }
    #[inline(always)]
    fn shl_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(vshlq_s32(a, vdupq_n_s32(N)))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(vcvtq_f32_s32(a))
    }
    #[inline(always)]
    fn round_to_i(self, a: Self::F) -> Self::I {
        op!(vcvtnq_s32_f32(a))
    }
    #[inline(always)]
    fn bits_to_f(self, a: Self::I) -> Self::F {
        op!(vreinterpretq_f32_s32(a))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: as in `load`.
        unsafe { vst1q_f32(to, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`; `fcvtl` from f16 to f32 belongs to the baseline.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(from)))) }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { vld1q_s32(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for four bytes.
        let bits = unsafe { from.cast::<u32>().read_unaligned() };
        op!({
            let bytes = vreinterpret_u8_u32(vdup_n_u32(bits));
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        })
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for four bytes.
        let bits = unsafe { from.cast::<u32>().read_unaligned() };
        op!({
            let bytes = vreinterpret_s8_u32(vdup_n_u32(bits));
            vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
        })
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for two bytes.
        let bits = unsafe { from.cast::<u16>().read_unaligned() };
        op!(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))))
    }
    #[inline(always)]
    unsafe fn splat_f16s(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for four bytes.
        let bits = unsafe { from.cast::<u32>().read_unaligned() };
        op!(vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(bits))))
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, a: Self::I) {
        let bits = op!({
            let words = vcombine_s16(vmovn_s32(a), vmovn_s32(a));
            vget_lane_u32::<0>(vreinterpret_u32_s8(vmovn_s16(words)))
        });
        // SAFETY: the caller vouches for four bytes.
        unsafe { to.cast::<u32>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_q8(self, from: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { [vld1q_s8(from.cast()), vld1q_s8(from.add(16).cast())] }
    }
    #[inline(always)]
    unsafe fn load_q4(self, from: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe {
            let bytes = vld1q_u8(from);
            [
                vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))),
                vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_q(self, to: *mut u8, q: Self::Q) {
        // SAFETY: as in `load`.
        unsafe {
            vst1q_s8(to.cast(), q[0]);
            vst1q_s8(to.add(16).cast(), q[1]);
        }
    }
    #[inline(always)]
    fn split_q8(self, q: Self::Q) -> [Self::Q; 2] {
        op!({
            let first = veorq_u8(vreinterpretq_u8_s8(q[0]), vdupq_n_u8(0x80));
            let second = veorq_u8(vreinterpretq_u8_s8(q[1]), vdupq_n_u8(0x80));
            let mask = vdupq_n_u8(15);
            let high = [vshrq_n_u8::<4>(first), vshrq_n_u8::<4>(second)];
            let low = [vandq_u8(first, mask), vandq_u8(second, mask)];
            [
                [vreinterpretq_s8_u8(high[0]), vreinterpretq_s8_u8(high[1])],
                [vreinterpretq_s8_u8(low[0]), vreinterpretq_s8_u8(low[1])],
            ]
        })
    }
    #[inline(always)]
    unsafe fn load_f16s<const STRIDE: usize, const PAIRS: bool>(
        self,
        groups: *const u8,
    ) -> (Self::F, Self::F) {
        // SAFETY: the caller vouches for the group.
        unsafe {
            let first = self.splat_f16(groups);
            (first, if PAIRS { self.splat_f16(groups.add(2)) } else { first })
        }
    }
    #[inline(always)]
    unsafe fn load_q8s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { self.load_q8(from) }
    }
    #[inline(always)]
    unsafe fn load_q4s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { self.load_q4(from) }
    }
    #[inline(always)]
    unsafe fn load_q5s<const STRIDE: usize>(self, from: *const u8, fifth: *const u8) -> [Self::P; 2] {
        // SAFETY: the caller vouches for 16 and four bytes.
        unsafe { self.load_q5(from, fifth) }
    }
    #[inline(always)]
    fn dot_bits(self, q: [Self::P; 2], x: [Self::P; 2], sums: Self::I) -> Self::I {
        op!(if DOT <= BYTES {
            sdot(sdot(sums, q[0], x[0]), q[1], x[1])
        } else {
            // Four products are at most 4 * 31 * 127 < 2^15.
            let first = vmlal_high_s8(vmull_s8(vget_low_s8(q[0]), vget_low_s8(x[0])), q[0], x[0]);
            let both = vmlal_high_s8(vmlal_s8(first, vget_low_s8(q[1]), vget_low_s8(x[1])), q[1], x[1]);
            vpadalq_s16(sums, both)
        })
    }
    #[inline(always)]
    fn dot_q8s(self, q: [Self::P; 2], x: [Self::P; 2], _minus: Self::I) -> Self::I {
        op!(dot_signed::<BYTES>(q, x))
    }
    #[inline(always)]
    fn zip_bytes(self, first: u64, second: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        let zipped = op!(vzip_u8(vcreate_u8(first), vcreate_u8(second)));
        // SAFETY: the array has 16 bytes.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), vcombine_u8(zipped.0, zipped.1)) };
        bytes
    }
    #[inline(always)]
    unsafe fn load_bits(self, Bits { low, low_shift, high }: Bits) -> Self::Q {
        // SAFETY: the caller vouches for 32 bytes at each address.
        unsafe {
            let bits = |from: *const u8, shift: usize, mask: u8| {
                let right = vdupq_n_s8(-(shift as i8));
                [0, 16].map(|at| vandq_u8(vshlq_u8(vld1q_u8(from.add(at)), right), vdupq_n_u8(mask)))
            };
            let mut q = bits(low, low_shift, 15);
            if let Some((from, shift, mask)) = high {
                let high = bits(from, shift, mask);
                q = [0, 1].map(|half| vorrq_u8(q[half], vshlq_n_u8::<4>(high[half])));
            }
            q.map(|half| vreinterpretq_s8_u8(half))
        }
    }
    #[inline(always)]
    unsafe fn load_pair(self, bits: [Bits; 2]) -> Self::Pair {
        // SAFETY: the caller vouches for 32 bytes at each address.
        bits.map(|bits| unsafe { self.load_bits(bits) })
    }
    #[inline(always)]
    unsafe fn load_q5(self, from: *const u8, fifth: *const u8) -> Self::Q {
        // SAFETY: the caller vouches for 16 and four bytes.
        unsafe {
            let nibbles = self.load_q4(from);
            let one = vcreate_u8(0x8040_2010_0804_0201);
            let one = vcombine_u8(one, one);
            // Byte `i` gets the byte that holds its bit.
            let spread = |at: usize| vcombine_u8(vdup_n_u8(*fifth.add(at)), vdup_n_u8(*fifth.add(at + 1)));
            [0, 1].map(|half| {
                let is_set = vtstq_u8(spread(2 * half), one);
                vorrq_s8(nibbles[half], vreinterpretq_s8_u8(vandq_u8(is_set, vdupq_n_u8(16))))
            })
        }
    }
    #[inline(always)]
    unsafe fn add_pair<const HALVES: bool>(
        self,
        q: Self::Pair,
        x: *const i8,
        factors: *const f32,
        sums: Self::F,
    ) -> Self::F {
        // SAFETY: as in `load`. Two products are at most 2 * 63 * 127 < 2^15.
        unsafe {
            let half = |nth: usize| {
                let (q, x) = (q[nth / 2][nth % 2], vld1q_s8(x.add(16 * nth)));
                vcvtq_f32_s32(if DOT <= BYTES {
                    sdot(vdupq_n_s32(0), q, x)
                } else {
                    vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(q), vget_low_s8(x)), q, x))
                })
            };
            let mut sums = sums;
            for group in 0..2 {
                if HALVES {
                    sums = vfmaq_n_f32(sums, half(2 * group), *factors.add(2 * group));
                    sums = vfmaq_n_f32(sums, half(2 * group + 1), *factors.add(2 * group + 1));
                } else {
                    let products = {
                        let x = [vld1q_s8(x.add(32 * group)), vld1q_s8(x.add(32 * group + 16))];
                        vcvtq_f32_s32(dot_signed::<BYTES>(q[group], x))
                    };
                    sums = vfmaq_n_f32(sums, products, *factors.add(2 * group));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn load_p(self, from: *const u8) -> Self::P {
        // SAFETY: as in `load`.
        unsafe { vld1q_s8(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_p(self, from: *const i8) -> Self::P {
        // SAFETY: the caller vouches for four bytes.
        let bits = unsafe { from.cast::<u32>().read_unaligned() };
        op!(vreinterpretq_s8_u32(vdupq_n_u32(bits)))
    }
    #[inline(always)]
    fn zero_a(self) -> Self::A {
        op!([vdupq_n_s16(0), vdupq_n_s16(0)])
    }
    #[inline(always)]
    fn begin(self, sums: Self::I) -> Self::A {
        op!([vreinterpretq_s16_s32(sums), vdupq_n_s16(0)])
    }
    #[inline(always)]
    fn step(self, sums: Self::A, nibbles: Self::P, x: Self::P) -> Self::A {
        op!(if DOT <= BYTES {
            let sum = sdot(vreinterpretq_s32_s16(sums[0]), nibbles, x);
            [vreinterpretq_s16_s32(sum), sums[1]]
        } else {
            [vmlal_s8(sums[0], vget_low_s8(nibbles), vget_low_s8(x)), vmlal_high_s8(sums[1], nibbles, x)]
        })
    }
    #[inline(always)]
    fn finish(self, sums: Self::A) -> Self::I {
        op!(if DOT <= BYTES {
            vreinterpretq_s32_s16(sums[0])
        } else {
            vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1]))
        })
    }

    /// Two steps at a time: `smmla` multiplies two tokens by two weight rows over eight columns.
    #[inline(always)]
    unsafe fn steps<const T: usize, const V: usize>(
        self,
        n_steps: usize,
        (quants, stride): (*const i8, usize),
        bytes: *const u8,
        sums: [Self::A; T],
    ) -> [[Self::A; V]; T] {
        if BYTES < I8MM || T != 4 || !n_steps.is_multiple_of(2) {
            // SAFETY: as the caller vouches.
            return unsafe { steps(self, n_steps, (quants, stride), bytes, sums) };
        }
        // [pair of tokens][vector][pair of rows], each [2 tokens][2 rows].
        let begin = |first: Self::A, second: Self::A| {
            op!({
                let (first, second) = (vreinterpretq_s64_s16(first[0]), vreinterpretq_s64_s16(second[0]));
                [[vreinterpretq_s32_s64(vzip1q_s64(first, second)); 2]; V]
            })
        };
        let mut sums = [begin(sums[0], sums[1]), begin(sums[2], sums[3])];
        let (mut quants, mut bytes) = (quants, bytes);
        for _ in 0..n_steps / 2 {
            // SAFETY: a step of the strip has 4 tokens, one of the panel `V` times 4 rows, each of four bytes.
            unsafe {
                let tokens = pairs(vld1q_s8(quants), vld1q_s8(quants.add(stride * 4)));
                for v in 0..V {
                    let from = bytes.add(v * 16);
                    let rows = pairs(self.load_p(from), self.load_p(from.add(V * 16)));
                    for t in 0..2 {
                        for r in 0..2 {
                            sums[t][v][r] = smmla(sums[t][v][r], tokens[t], rows[r]);
                        }
                    }
                }
            }
            (quants, bytes) = (quants.wrapping_add(stride * 8), bytes.wrapping_add(V * 32));
        }
        let mut products = [[self.zero_a(); V]; T];
        for token in 0..T {
            for v in 0..V {
                let [first, second] = sums[token / 2][v];
                products[token][v][0] = op!({
                    let (first, second) = (vreinterpretq_s64_s32(first), vreinterpretq_s64_s32(second));
                    let row =
                        if token % 2 == 0 { vzip1q_s64(first, second) } else { vzip2q_s64(first, second) };
                    vreinterpretq_s16_s64(row)
                });
            }
        }
        products
    }

    #[inline(always)]
    unsafe fn transpose_block(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe {
            let rows = [
                vld1q_f32(from),
                vld1q_f32(from.add(from_stride)),
                vld1q_f32(from.add(2 * from_stride)),
                vld1q_f32(from.add(3 * from_stride)),
            ];
            let columns = transpose4(rows);
            vst1q_f32(to, columns[0]);
            vst1q_f32(to.add(to_stride), columns[1]);
            vst1q_f32(to.add(2 * to_stride), columns[2]);
            vst1q_f32(to.add(3 * to_stride), columns[3]);
        }
    }

    #[inline(always)]
    unsafe fn interleave_rows(self, from: *const f32, from_stride: usize, to: *mut f32) {
        // SAFETY: the caller vouches for the memory of all eight rows.
        unsafe {
            self.transpose_block(from, from_stride, to, Self::MR);
            self.transpose_block(from.add(4 * from_stride), from_stride, to.add(4), Self::MR);
        }
    }
}

/// Lanes whose sum is that of the 32 products of signed bytes with `x`, which has no -128.
/// # Safety
/// The CPU has what `BYTES` names.
#[inline(always)]
unsafe fn dot_signed<const BYTES: u8>(q: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t {
    // SAFETY: the caller vouches for the CPU. Two products are at most 2 * 128 * 127 < 2^15.
    unsafe {
        if DOT <= BYTES {
            sdot(sdot(vdupq_n_s32(0), q[0], x[0]), q[1], x[1])
        } else {
            let first = vmlal_high_s8(vmull_s8(vget_low_s8(q[0]), vget_low_s8(x[0])), q[0], x[0]);
            let second = vmlal_high_s8(vmull_s8(vget_low_s8(q[1]), vget_low_s8(x[1])), q[1], x[1]);
            vpadalq_s16(vpaddlq_s16(first), second)
        }
    }
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let (ac_low, ac_high) = (vzip1q_f32(a, c), vzip2q_f32(a, c));
        let (bd_low, bd_high) = (vzip1q_f32(b, d), vzip2q_f32(b, d));
        [
            vzip1q_f32(ac_low, bd_low),
            vzip2q_f32(ac_low, bd_low),
            vzip1q_f32(ac_high, bd_high),
            vzip2q_f32(ac_high, bd_high),
        ]
    }
}

/// Adds to each lane the four products of its bytes. The intrinsic is not stable.
/// # Safety
/// The CPU has `sdot`.
#[inline(always)]
unsafe fn sdot(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the caller vouches for the CPU; only registers are used.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Puts four bytes of `b` behind each four of `a`.
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn pairs(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
        [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))]
    }
}

/// Adds to `[2][2]` the products of two rows of eight bytes with two others. The intrinsic is not stable.
/// # Safety
/// The CPU has `smmla`.
#[inline(always)]
unsafe fn smmla(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the caller vouches for the CPU; only registers are used.
    unsafe {
        asm!(
            "smmla {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
