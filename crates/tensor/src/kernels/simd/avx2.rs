//! Eight lanes: x86-64 with AVX2, FMA and F16C, and AVX-VNNI where there is one.

use super::{Bits, Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C, and with `VNNI` also AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    pub(crate) fn new() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        all.then_some(Self(()))
    }

    /// The same CPU without AVX-VNNI: kernels of floats need not be compiled twice.
    pub(crate) fn base(self) -> Avx2<false> {
        Avx2(())
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run<K: Kernel, const VNNI: bool>(simd: Avx2<VNNI>, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline(never)]
fn run_vnni<K: Kernel, const VNNI: bool>(simd: Avx2<VNNI>, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic on register values.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` proves that the CPU has the instruction, and only register values are used.
        unsafe { $call }
    };
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = __m256;
    type I = __m256i;
    type Q = __m256i;
    type Pair = [__m256i; 2];
    type P = __m256i;
    /// i32 with AVX-VNNI, else i16.
    type A = __m256i;
    const LANES: usize = 8;
    const PRODUCTS_IN_16_BITS: usize = if VNNI { 0 } else { 2 };
    const TOKENS: usize = 4;
    // 6 x 2 sums, 2 vectors of b and one broadcast leave one of 16 registers: with none left, compilers spill.
    const MR: usize = 6;
    const NV: usize = 2;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(test)]
        crate::kernels::tests::coverage::note::<Self, K>();
        // SAFETY: `self` proves that the CPU has the features.
        unsafe { if VNNI { run_vnni(self, kernel) } else { run(self, kernel) } }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        op!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn zero_if_at_most(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        op!(_mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(x, bound), value))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        op!({
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        })
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        op!({
            let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        })
    }

    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        op!(_mm256_permute_ps::<0xB1>(a))
    }
    #[inline(always)]
    fn even_twice(self, a: Self::F) -> Self::F {
        op!(_mm256_moveldup_ps(a))
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        op!(_mm256_set1_epi32(value))
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn shr_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(_mm256_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shl_i<const N: i32>(self, a: Self::I) -> Self::I {
        op!(_mm256_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        op!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn round_to_i(self, a: Self::F) -> Self::I {
        op!(_mm256_cvtps_epi32(a))
    }
    #[inline(always)]
    fn bits_to_f(self, a: Self::I) -> Self::F {
        op!(_mm256_castsi256_ps(a))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: as in `load`.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::I {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        op!(_mm_prefetch::<_MM_HINT_T0>(at.cast()));
    }

    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn splat_f16s(self, from: *const u8) -> Self::F {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn splat_f16_pair(self, from: *const u8) -> (Self::F, Self::F) {
        // SAFETY: as in `load`.
        unsafe {
            let pairs = self.splat_f16s(from);
            (_mm256_moveldup_ps(pairs), _mm256_movehdup_ps(pairs))
        }
    }

    #[inline(always)]
    unsafe fn load_f16s<const STRIDE: usize, const PAIRS: bool>(
        self,
        groups: *const u8,
    ) -> (Self::F, Self::F) {
        // SAFETY: as in `load`.
        unsafe {
            let pair = |nth: usize| _mm_set1_epi32(groups.add(nth * STRIDE).cast::<i32>().read_unaligned());
            let values = _mm256_cvtph_ps(_mm_blend_epi32::<0b1100>(pair(0), pair(1)));
            let first = _mm256_moveldup_ps(values);
            (first, if PAIRS { _mm256_movehdup_ps(values) } else { first })
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, a: Self::I) {
        // SAFETY: as in `load`.
        unsafe {
            let words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
        }
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
        unsafe { [lanes::<STRIDE>(from), lanes::<STRIDE>(from.add(16))] }
    }
    #[inline(always)]
    unsafe fn load_q4s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: as in `load`.
        unsafe {
            let (bytes, mask) = (lanes::<STRIDE>(from), _mm256_set1_epi8(15));
            [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)]
        }
    }
    #[inline(always)]
    unsafe fn load_q5s<const STRIDE: usize>(self, from: *const u8, fifth: *const u8) -> [Self::P; 2] {
        // SAFETY: as in `load`.
        unsafe {
            let bits = |nth: usize| _mm_set1_epi32(fifth.add(nth * STRIDE).cast::<i32>().read_unaligned());
            let bits = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bits(0)), bits(1));
            let [first, second] = self.load_q4s::<STRIDE>(from);
            let spread = |low: i64| {
                _mm256_setr_epi64x(low, low + 0x0101_0101_0101_0101, low, low + 0x0101_0101_0101_0101)
            };
            [with_fifth(first, bits, spread(0)), with_fifth(second, bits, spread(0x0202_0202_0202_0202))]
        }
    }
    #[inline(always)]
    fn dot_bits(self, q: [Self::P; 2], x: [Self::P; 2], sums: Self::I) -> Self::I {
        op!(if VNNI {
            _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sums, q[0], x[0]), q[1], x[1])
        } else {
            let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(q[0], x[0]), _mm256_maddubs_epi16(q[1], x[1]));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    fn dot_q8s(self, q: [Self::P; 2], x: [Self::P; 2], minus: Self::I) -> Self::I {
        op!(if VNNI {
            let top = _mm256_set1_epi8(-128);
            let q = [_mm256_xor_si256(q[0], top), _mm256_xor_si256(q[1], top)];
            self.dot_bits(q, x, _mm256_slli_epi32::<7>(minus))
        } else {
            // Pairs of products are at most 2 * 128 * 127 < 2^15.
            let half =
                |q: __m256i, x: __m256i| dot_bytes::<false>(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
            _mm256_add_epi32(half(q[0], x[0]), half(q[1], x[1]))
        })
    }
    #[inline(always)]
    fn zip_bytes(self, first: u64, second: u64) -> [u8; 16] {
        zip_bytes(first, second)
    }
    #[inline(always)]
    unsafe fn load_bits(self, bits: Bits) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { load_bits(bits) }
    }
    #[inline(always)]
    unsafe fn load_pair(self, bits: [Bits; 2]) -> Self::Pair {
        // SAFETY: as in `load`.
        unsafe { [load_bits(bits[0]), load_bits(bits[1])] }
    }
    #[inline(always)]
    unsafe fn load_q5(self, from: *const u8, fifth: *const u8) -> Self::Q {
        // SAFETY: as in `load`.
        unsafe { load_q5(from, fifth) }
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
            let factors = _mm256_broadcast_ps(&*factors.cast::<__m128>());
            let half = i32::from(HALVES);
            let first = _mm256_setr_epi32(0, 0, 0, 0, half, half, half, half);
            let second = _mm256_or_si256(first, _mm256_set1_epi32(2));
            let sums = _mm256_fmadd_ps(
                self.to_f(dot_bytes::<VNNI>(q[0], _mm256_loadu_si256(x.cast()))),
                _mm256_permutevar_ps(factors, first),
                sums,
            );
            let product = self.to_f(dot_bytes::<VNNI>(q[1], _mm256_loadu_si256(x.add(32).cast())));
            _mm256_fmadd_ps(product, _mm256_permutevar_ps(factors, second), sums)
        }
    }
    #[inline(always)]
    unsafe fn load_p(self, from: *const u8) -> Self::P {
        // SAFETY: as in `load`.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_p(self, from: *const i8) -> Self::P {
        // SAFETY: as in `load`.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    fn zero_a(self) -> Self::A {
        op!(_mm256_setzero_si256())
    }
    #[inline(always)]
    fn begin(self, sums: Self::I) -> Self::A {
        sums
    }
    #[inline(always)]
    fn step(self, sums: Self::A, nibbles: Self::P, x: Self::P) -> Self::A {
        op!(if VNNI {
            _mm256_dpbusd_avx_epi32(sums, nibbles, x)
        } else {
            _mm256_add_epi16(sums, _mm256_maddubs_epi16(nibbles, x))
        })
    }
    #[inline(always)]
    fn finish(self, sums: Self::A) -> Self::I {
        if VNNI { sums } else { op!(_mm256_madd_epi16(sums, _mm256_set1_epi16(1))) }
    }

    #[inline(always)]
    unsafe fn transpose_block(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe { transpose8(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn interleave_rows(self, from: *const f32, from_stride: usize, to: *mut f32) {
        // SAFETY: the caller vouches for the memory, `self` for the CPU.
        unsafe {
            let rows = [
                _mm256_loadu_ps(from),
                _mm256_loadu_ps(from.add(from_stride)),
                _mm256_loadu_ps(from.add(2 * from_stride)),
                _mm256_loadu_ps(from.add(3 * from_stride)),
            ];
            let last =
                [_mm256_loadu_ps(from.add(4 * from_stride)), _mm256_loadu_ps(from.add(5 * from_stride))];
            let columns = transpose_halves(rows);
            for (idx, column) in columns.into_iter().enumerate() {
                _mm_storeu_ps(to.add(idx * 6), _mm256_castps256_ps128(column));
                _mm_storeu_ps(to.add((idx + 4) * 6), _mm256_extractf128_ps::<1>(column));
            }
            let even = _mm256_unpacklo_ps(last[0], last[1]);
            let odd = _mm256_unpackhi_ps(last[0], last[1]);
            store_pairs(_mm256_castps256_ps128(even), to.add(4));
            store_pairs(_mm256_castps256_ps128(odd), to.add(2 * 6 + 4));
            store_pairs(_mm256_extractf128_ps::<1>(even), to.add(4 * 6 + 4));
            store_pairs(_mm256_extractf128_ps::<1>(odd), to.add(6 * 6 + 4));
        }
    }
}

/// Writes the transpose of eight rows of eight values.
/// # Safety
/// The CPU has AVX, and the values can be read and written.
#[inline(always)]
pub(super) unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller vouches for memory and CPU.
    unsafe {
        for col in [0, 4] {
            let from = from.add(col);
            let rows = [
                row_pair(from, from_stride),
                row_pair(from.add(from_stride), from_stride),
                row_pair(from.add(2 * from_stride), from_stride),
                row_pair(from.add(3 * from_stride), from_stride),
            ];
            let columns = transpose_halves(rows);
            let to = to.add(col * to_stride);
            _mm256_storeu_ps(to, columns[0]);
            _mm256_storeu_ps(to.add(to_stride), columns[1]);
            _mm256_storeu_ps(to.add(2 * to_stride), columns[2]);
            _mm256_storeu_ps(to.add(3 * to_stride), columns[3]);
        }
    }
}

/// Four values at `from` and four that lie four rows below, side by side, so that shuffles need not cross halves.
/// # Safety
/// The CPU has AVX, and the values can be read.
#[inline(always)]
unsafe fn row_pair(from: *const f32, stride: usize) -> __m256 {
    // SAFETY: the caller vouches for memory and CPU.
    unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(from));
        _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(4 * stride)))
    }
}

/// Writes the two pairs of `columns` six values apart.
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn store_pairs(columns: __m128, to: *mut f32) {
    // SAFETY: the caller vouches for the memory; SSE2 belongs to every x86-64.
    unsafe {
        _mm_storel_pd(to.cast(), _mm_castps_pd(columns));
        _mm_storeh_pd(to.add(6).cast(), _mm_castps_pd(columns));
    }
}

/// Transposes the 4 x 4 values in the low halves of `rows`, and likewise those in the high halves.
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn transpose_halves([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
            _mm256_shuffle_ps::<0xEE>(ab_low, cd_low),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
        ]
    }
}

/// [`Simd::load_bits`].
/// # Safety
/// The CPU has AVX2, and 32 bytes at each address can be read.
#[inline(always)]
pub(super) unsafe fn load_bits(Bits { low, low_shift, high }: Bits) -> __m256i {
    // SAFETY: the caller vouches for CPU and memory.
    unsafe {
        // The masks take away what a shift of 16 bits brings over from the neighbour.
        let bits = |from: *const u8, shift: usize, mask: i8| {
            let bytes = _mm256_loadu_si256(from.cast());
            let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
        };
        let low = bits(low, low_shift, 15);
        match high {
            None => low,
            Some((from, shift, mask)) => {
                _mm256_or_si256(low, _mm256_slli_epi16::<4>(bits(from, shift, mask as i8)))
            }
        }
    }
}

/// [`Simd::load_q5`].
/// # Safety
/// The CPU has AVX2, 16 bytes at `from` and four at `fifth` can be read.
#[inline(always)]
pub(super) unsafe fn load_q5(from: *const u8, fifth: *const u8) -> __m256i {
    // SAFETY: the caller vouches for CPU and memory.
    unsafe {
        let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
        let halves = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
        let nibbles = _mm256_and_si256(halves, _mm256_set1_epi8(15));
        let bits = _mm256_set1_epi32(fifth.cast::<i32>().read_unaligned());
        let (first, second) = (0x0101_0101_0101_0101, 0x0202_0202_0202_0202);
        with_fifth(nibbles, bits, _mm256_setr_epi64x(0, first, second, 0x0303_0303_0303_0303))
    }
}

/// Adds to each nibble 16 where its bit is set: bit `i % 8` of the byte of its half of `bits` that `spread` names.
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn with_fifth(nibbles: __m256i, bits: __m256i, spread: __m256i) -> __m256i {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, spread), one), one);
        _mm256_or_si256(nibbles, _mm256_and_si256(is_set, _mm256_set1_epi8(16)))
    }
}

/// 16 bytes at `from`, and 16 that lie `STRIDE` on.
/// # Safety
/// The CPU has AVX2, and the bytes can be read.
#[inline(always)]
unsafe fn lanes<const STRIDE: usize>(from: *const u8) -> __m256i {
    // SAFETY: the caller vouches for CPU and memory.
    unsafe { _mm256_loadu2_m128i(from.add(STRIDE).cast(), from.cast()) }
}

/// [`Simd::zip_bytes`].
#[inline(always)]
pub(super) fn zip_bytes(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: SSE2 belongs to every x86-64, and the array has 16 bytes.
    unsafe {
        let (first, second) =
            (_mm_cvtsi64_si128(first.cast_signed()), _mm_cvtsi64_si128(second.cast_signed()));
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm_unpacklo_epi8(first, second));
    }
    bytes
}

/// Sums of four products of unsigned with signed bytes; pairs of products must fit 16 bits.
/// # Safety
/// The CPU has AVX2, and with `VNNI` AVX-VNNI.
#[inline(always)]
unsafe fn dot_bytes<const VNNI: bool>(unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: the caller vouches for the CPU.
    unsafe {
        if VNNI {
            _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned, signed)
        } else {
            _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
        }
    }
}
