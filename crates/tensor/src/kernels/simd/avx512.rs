//! Sixteen lanes: x86-64 with AVX-512 F, BW and VL (and AVX2, FMA, F16C, which every such CPU has),
//! and AVX-512 VNNI where there is one.

use super::{Bits, Kernel, STEPS, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW and VL, and what [`super::Avx2`] needs; with `VNNI` also AVX-512 VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    pub(crate) fn new() -> Option<Self> {
        let all = super::Avx2::<false>::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        all.then_some(Self(()))
    }

    /// The same CPU without VNNI: kernels of floats need not be compiled twice.
    pub(crate) fn base(self) -> Avx512<false> {
        Avx512(())
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
#[inline(never)]
fn run<K: Kernel, const VNNI: bool>(simd: Avx512<VNNI>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn run_vnni<K: Kernel, const VNNI: bool>(simd: Avx512<VNNI>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic on register values.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves that the CPU has the instruction, and only register values are used.
        unsafe { $call }
    };
}

impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type Q = __m256i;
    type Pair = __m512i;
    type P = __m512i;
    /// i32 with VNNI, else i16.
    type A = __m512i;
    const LANES: usize = 16;
    const PRODUCTS_IN_16_BITS: usize = if VNNI { 0 } else { 2 };
    const TOKENS: usize = 8;
    // 8 x 3 sums, 3 vectors of b and one broadcast out of 32 registers.
    const MR: usize = 8;
    const NV: usize = 3;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(test)]
        crate::kernels::tests::coverage::note::<Self, K>();
        // SAFETY: `self` proves that the CPU has the features.
        unsafe { if VNNI { run_vnni(self, kernel) } else { run(self, kernel) } }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        op!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn zero_if_at_most(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        op!(_mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LE_OQ>(x, bound), value))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        op!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        op!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        op!(_mm512_permute_ps::<0xB1>(a))
    }
    #[inline(always)]
    fn even_twice(self, a: Self::F) -> Self::F {
        op!(_mm512_moveldup_ps(a))
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        op!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn shr_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(_mm512_srl_epi32(a, _mm_cvtsi32_si128(N)))
    }
    #[inline(always)]
    fn shl_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(N)))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn round_to_i(self, a: Self::F) -> Self::I {
        op!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn bits_to_f(self, a: Self::I) -> Self::F {
        op!(_mm512_castsi512_ps(a))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: as in `load`.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }

    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn splat_f16s(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn load_f16s<const STRIDE: usize, const PAIRS: bool>(
        self,
        groups: *const u8,
    ) -> (Self::F, Self::F) {
        // SAFETY: as in `load`.
        unsafe {
            // One load of 64 bytes stays within the groups.
            const { assert!(64 <= 4 * STRIDE && STRIDE.is_multiple_of(2)) };
            if 3 * STRIDE + 4 <= 64 {
                let next = if PAIRS { 0x1_0000 } else { 0 };
                // Two 16-bit words of each group.
                let words = |nth: usize| ((nth * STRIDE / 2) * 0x1_0001 + next) as i32;
                let order = _mm512_zextsi256_si512(_mm256_setr_epi32(
                    words(0),
                    words(0),
                    words(1),
                    words(1),
                    words(2),
                    words(2),
                    words(3),
                    words(3),
                ));
                let all = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(groups.cast()));
                let values = _mm512_cvtph_ps(_mm512_castsi512_si256(all));
                if !PAIRS {
                    return (values, values);
                }
                return (_mm512_moveldup_ps(values), _mm512_movehdup_ps(values));
            }
            let pair =
                |nth: usize| _mm256_set1_epi32(groups.add(nth * STRIDE).cast::<i32>().read_unaligned());
            let first = _mm256_blend_epi32::<0b1100>(pair(0), pair(1));
            let second = _mm256_blend_epi32::<0b1100_0000>(pair(2), pair(3));
            let values = _mm512_cvtph_ps(_mm256_blend_epi32::<0b1111_0000>(first, second));
            let first = _mm512_moveldup_ps(values);
            (first, if PAIRS { _mm512_movehdup_ps(values) } else { first })
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, a: Self::I) {
        // SAFETY: as in `load`.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a)) }
    }
    #[inline(always)]
    unsafe fn load_q8(self, from: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_q4(self, from: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe {
            let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
            let halves = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
            _mm256_and_si256(halves, _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    unsafe fn store_q(self, to: *mut u8, q: Self::Q) {
        // SAFETY: as in `load`.
        unsafe { _mm256_storeu_si256(to.cast(), q) }
    }
    #[inline(always)]
    fn split_q8(self, q: Self::Q) -> [Self::Q; 2] {
        op!({
            let (mask, unsigned) = (_mm256_set1_epi8(15), _mm256_xor_si256(q, _mm256_set1_epi8(-128)));
            [_mm256_and_si256(_mm256_srli_epi16::<4>(unsigned), mask), _mm256_and_si256(unsigned, mask)]
        })
    }
    #[inline(always)]
    unsafe fn load_q8s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: as in `load`.
        unsafe {
            let load = |nth: usize| _mm256_loadu_si256(from.add(nth * STRIDE).cast());
            let pair = |nth: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(nth)), load(nth + 1));
            let (first, second) = (pair(0), pair(2));
            [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(first, second),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(first, second),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_q4s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: as in `load`.
        unsafe {
            // Three groups lie in 64 bytes; loads of 16 would become twice as many, and shuffles.
            const { assert!(2 * STRIDE + 16 <= 64 && 64 <= 3 * STRIDE + 16) };
            let order: [u16; 32] = std::array::from_fn(|at| (at / 8 % 3 * STRIDE / 2 + at % 8) as u16);
            let three = _mm512_permutexvar_epi16(
                _mm512_loadu_si512(order.as_ptr().cast()),
                _mm512_loadu_si512(from.cast()),
            );
            let bytes = _mm512_inserti32x4::<3>(three, _mm_loadu_si128(from.add(3 * STRIDE).cast()));
            let mask = _mm512_set1_epi8(15);
            [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
        }
    }
    #[inline(always)]
    unsafe fn load_q5s<const STRIDE: usize>(self, from: *const u8, fifth: *const u8) -> [Self::P; 2] {
        // SAFETY: as in `load`.
        unsafe {
            let bits = |nth: usize| u64::from(fifth.add(nth * STRIDE).cast::<u32>().read_unaligned());
            let (even, odd) = (bits(0) | bits(2) << 32, bits(1) | bits(3) << 32);
            const FIRST: u64 = 0xFFFF_0000_FFFF;
            let halves = [even & FIRST | (odd & FIRST) << 16, even >> 16 & FIRST | odd & !FIRST];
            let [first, second] = self.load_q4s::<STRIDE>(from);
            let sixteen = _mm512_set1_epi8(16);
            [
                _mm512_mask_add_epi8(first, halves[0], first, sixteen),
                _mm512_mask_add_epi8(second, halves[1], second, sixteen),
            ]
        }
    }
    #[inline(always)]
    fn dot_bits(self, q: [Self::P; 2], x: [Self::P; 2], sums: Self::I) -> Self::I {
        op!(if VNNI {
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, q[0], x[0]), q[1], x[1])
        } else {
            let pairs = _mm512_add_epi16(_mm512_maddubs_epi16(q[0], x[0]), _mm512_maddubs_epi16(q[1], x[1]));
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn dot_q8s(self, q: [Self::P; 2], x: [Self::P; 2], minus: Self::I) -> Self::I {
        op!(if VNNI {
            let top = _mm512_set1_epi8(-128);
            let q = [_mm512_xor_si512(q[0], top), _mm512_xor_si512(q[1], top)];
            self.dot_bits(q, x, _mm512_slli_epi32::<7>(minus))
        } else {
            // Pairs of products are at most 2 * 128 * 127 < 2^15.
            let half = |q: __m512i, x: __m512i| {
                let signed = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(q), _mm512_setzero_si512(), x);
                _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(q), signed), _mm512_set1_epi16(1))
            };
            _mm512_add_epi32(half(q[0], x[0]), half(q[1], x[1]))
        })
    }
    #[inline(always)]
    fn zip_bytes(self, first: u64, second: u64) -> [u8; 16] {
        super::avx2::zip_bytes(first, second)
    }
    #[inline(always)]
    unsafe fn load_bits(self, bits: Bits) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { super::avx2::load_bits(bits) }
    }
    #[inline(always)]
    unsafe fn load_pair(self, [first, second]: [Bits; 2]) -> Self::Pair {
        // SAFETY: as in `load`.
        unsafe {
            let join = |first: *const u8, second: *const u8| {
                let low = _mm512_castsi256_si512(_mm256_loadu_si256(first.cast()));
                _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(second.cast()))
            };
            let halves = |first: usize, second: usize| {
                let (first, second) = (first as i64, second as i64);
                _mm512_setr_epi64(first, first, first, first, second, second, second, second)
            };
            let shifts = halves(first.low_shift, second.low_shift);
            let bytes = _mm512_srlv_epi64(join(first.low, second.low), shifts);
            let low = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
            let (Some((first, first_shift, mask)), Some((second, second_shift, _))) =
                (first.high, second.high)
            else {
                return low;
            };
            // Turned so that the wanted bits come to lie above the nibble; the mask takes away what others bring.
            let turns =
                halves((36 - first_shift) % 32 * 0x1_0000_0001, (36 - second_shift) % 32 * 0x1_0000_0001);
            let high = _mm512_rolv_epi32(join(first, second), turns);
            // low | (high & mask)
            _mm512_ternarylogic_epi32::<0xF8>(low, high, _mm512_set1_epi8((mask << 4) as i8))
        }
    }
    #[inline(always)]
    unsafe fn load_q5(self, from: *const u8, fifth: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { super::avx2::load_q5(from, fifth) }
    }
    #[inline(always)]
    unsafe fn add_pair<const HALVES: bool>(
        self,
        q: Self::Pair,
        x: *const i8,
        factors: *const f32,
        sums: Self::F,
    ) -> Self::F {
        // SAFETY: as in `load`.
        unsafe {
            let x = _mm512_loadu_si512(x.cast());
            let products = if VNNI {
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x)
            } else {
                _mm512_madd_epi16(_mm512_maddubs_epi16(q, x), _mm512_set1_epi16(1))
            };
            let (a, b) = (i32::from(HALVES), if HALVES { 3 } else { 2 });
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, a, a, a, a, 2, 2, 2, 2, b, b, b, b);
            let factors = _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(factors)), lanes);
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factors, sums)
        }
    }
    #[inline(always)]
    unsafe fn load_p(self, from: *const u8) -> Self::P {
        // SAFETY: as in `load`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_p(self, from: *const i8) -> Self::P {
        // SAFETY: as in `load`.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn zero_a(self) -> Self::A {
        op!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn begin(self, sums: Self::I) -> Self::A {
        sums
    }
    #[inline(always)]
    fn step(self, sums: Self::A, nibbles: Self::P, x: Self::P) -> Self::A {
        op!(if VNNI {
            _mm512_dpbusd_epi32(sums, nibbles, x)
        } else {
            _mm512_add_epi16(sums, _mm512_maddubs_epi16(nibbles, x))
        })
    }
    #[inline(always)]
    fn finish(self, sums: Self::A) -> Self::I {
        if VNNI { sums } else { op!(_mm512_madd_epi16(sums, _mm512_set1_epi16(1))) }
    }

    #[inline(always)]
    unsafe fn transpose_steps(self, from: *const f32, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for 16 rows of eight values, `self` for the CPU.
        unsafe {
            super::avx2::transpose8(from, STEPS, to, to_stride);
            super::avx2::transpose8(from.add(8 * STEPS), STEPS, to.add(8), to_stride);
        }
    }
}
