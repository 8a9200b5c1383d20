//! Four lanes: aarch64, where NEON is part of the baseline.

use super::{Kernel, Simd};
use std::arch::aarch64::*;

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
#[inline(never)]
fn run<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic on register values.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves that the CPU has the instruction, and only register values are used.
        unsafe { $call }
    };
}

impl Simd for Neon {
    type F = float32x4_t;
    type I = int32x4_t;
    const LANES: usize = 4;
    // 8 x 3 sums, 3 vectors of b and the broadcasts out of 32 registers.
    const MR: usize = 8;
    const NV: usize = 3;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves that the CPU has the features.
        unsafe { run(self, kernel) }
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
    unsafe fn transpose_block(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe {
            let row = [0, 1, 2, 3].map(
                #[inline(always)]
                |row| vld1q_f32(from.add(row * from_stride)),
            );
            for (idx, column) in transpose4(row).into_iter().enumerate() {
                vst1q_f32(to.add(idx * to_stride), column);
            }
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
