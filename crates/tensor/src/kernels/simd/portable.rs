//! Four lanes in plain Rust, for CPUs without a set of their own here; the compiler makes of it what it can.

use super::{Bits, Kernel, Simd};
use half::{bf16, f16};

/// Plain Rust: always there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

macro_rules! lanes {
    (|$lane:ident| $value:expr) => {
        std::array::from_fn::<_, 4, _>(
            #[inline(always)]
            |$lane| $value,
        )
    };
}

impl Simd for Portable {
    type F = [f32; 4];
    type I = [i32; 4];
    type Q = [i8; 32];
    type Pair = [[i8; 32]; 2];
    type P = [i8; 16];
    type A = [i32; 4];
    const LANES: usize = 4;
    const PRODUCTS_IN_16_BITS: usize = 0;
    const TOKENS: usize = 4;
    // 4 x 2 sums, 2 vectors of b, a broadcast and a product out of 16 registers.
    const MR: usize = 4;
    const NV: usize = 2;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(test)]
        crate::kernels::tests::coverage::note::<Self, K>();
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; 4]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn zero_if_at_most(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F {
        lanes!(|i| if x[i] <= bound[i] { 0.0 } else { value[i] })
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        a[0].max(a[2]).max(a[1].max(a[3]))
    }

    #[inline(always)]
    fn even_twice(self, a: Self::F) -> Self::F {
        lanes!(|i| a[i / 2 * 2])
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> Self::I {
        [value; 4]
    }
    #[inline(always)]
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn shr_i<const N: i32>(self, a: Self::I) -> Self::I {
        lanes!(|i| (a[i] as u32 >> N) as i32)
    }
    #[inline(always)]
    fn shl_i<const N: i32>(self, a: Self::I) -> Self::I {
        lanes!(|i| a[i] << N)
    }
    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        lanes!(|i| a[i] as f32)
    }
    #[inline(always)]
    fn round_to_i(self, a: Self::F) -> Self::I {
        // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits of the mantissa.
        const MAGIC: f32 = 12_582_912.0;
        lanes!(|i| (a[i] + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32)
    }
    #[inline(always)]
    fn bits_to_f(self, a: Self::I) -> Self::F {
        lanes!(|i| f32::from_bits(a[i] as u32))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for four values.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::F) {
        // SAFETY: the caller vouches for four values.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for eight bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; 4]>().read_unaligned() };
        lanes!(|i| f16::from_le_bytes(bytes[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for eight bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; 4]>().read_unaligned() };
        lanes!(|i| bf16::from_le_bytes(bytes[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe { from.cast::<[i32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for four bytes.
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        lanes!(|i| i32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::I {
        // SAFETY: the caller vouches for four bytes.
        let bytes = unsafe { from.cast::<[i8; 4]>().read_unaligned() };
        lanes!(|i| i32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for two bytes.
        let bytes = unsafe { from.cast::<[u8; 2]>().read_unaligned() };
        [f16::from_le_bytes(bytes).to_f32_const(); 4]
    }
    #[inline(always)]
    unsafe fn splat_f16s(self, from: *const u8) -> Self::F {
        // SAFETY: the caller vouches for four bytes.
        let halves = unsafe { from.cast::<[[u8; 2]; 2]>().read_unaligned() };
        lanes!(|i| f16::from_le_bytes(halves[i % 2]).to_f32_const())
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, a: Self::I) {
        // SAFETY: the caller vouches for four bytes.
        unsafe { to.cast::<[i8; 4]>().write_unaligned(lanes!(|i| a[i] as i8)) }
    }
    #[inline(always)]
    unsafe fn load_q8(self, from: *const u8) -> Self::Q {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { from.cast::<[i8; 32]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_q4(self, from: *const u8) -> Self::Q {
        // SAFETY: the caller vouches for 16 bytes.
        let bytes = unsafe { from.cast::<[u8; 16]>().read_unaligned() };
        std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 } as i8)
    }
    #[inline(always)]
    unsafe fn store_q(self, to: *mut u8, q: Self::Q) {
        // SAFETY: the caller vouches for 32 bytes.
        unsafe { to.cast::<[i8; 32]>().write_unaligned(q) }
    }
    #[inline(always)]
    fn split_q8(self, q: Self::Q) -> [Self::Q; 2] {
        let nibble = |value: i8, shift: u32| ((value as u8 ^ 0x80) >> shift & 15) as i8;
        [q.map(|value| nibble(value, 4)), q.map(|value| nibble(value, 0))]
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
        halves(unsafe { self.load_q8(from) })
    }
    #[inline(always)]
    unsafe fn load_q4s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2] {
        // SAFETY: the caller vouches for 16 bytes.
        halves(unsafe { self.load_q4(from) })
    }
    #[inline(always)]
    unsafe fn load_q5s<const STRIDE: usize>(self, from: *const u8, fifth: *const u8) -> [Self::P; 2] {
        // SAFETY: the caller vouches for 16 and four bytes.
        halves(unsafe { self.load_q5(from, fifth) })
    }
    #[inline(always)]
    fn dot_bits(self, q: [Self::P; 2], x: [Self::P; 2], sums: Self::I) -> Self::I {
        self.step(self.step(sums, q[0], x[0]), q[1], x[1])
    }
    #[inline(always)]
    fn dot_q8s(self, q: [Self::P; 2], x: [Self::P; 2], _minus: Self::I) -> Self::I {
        self.dot_bits(q, x, [0; 4])
    }
    #[inline(always)]
    fn zip_bytes(self, first: u64, second: u64) -> [u8; 16] {
        let bytes = [first.to_le_bytes(), second.to_le_bytes()];
        std::array::from_fn(|i| bytes[i % 2][i / 2])
    }
    #[inline(always)]
    unsafe fn load_bits(self, Bits { low, low_shift, high }: Bits) -> Self::Q {
        // SAFETY: the caller vouches for 32 bytes at each address.
        let bytes = |from: *const u8| unsafe { from.cast::<[u8; 32]>().read_unaligned() };
        let low = bytes(low).map(|byte| byte >> low_shift & 15);
        let high = high.map(|(from, shift, mask)| bytes(from).map(|byte| (byte >> shift & mask) << 4));
        std::array::from_fn(|i| (low[i] | high.map_or(0, |high| high[i])).cast_signed())
    }
    #[inline(always)]
    unsafe fn load_pair(self, bits: [Bits; 2]) -> Self::Pair {
        // SAFETY: the caller vouches for 32 bytes at each address.
        bits.map(|bits| unsafe { self.load_bits(bits) })
    }
    #[inline(always)]
    unsafe fn load_q5(self, from: *const u8, fifth: *const u8) -> Self::Q {
        // SAFETY: the caller vouches for 16 and four bytes.
        let (nibbles, fifth) = unsafe { (self.load_q4(from), fifth.cast::<[u8; 4]>().read_unaligned()) };
        std::array::from_fn(|i| nibbles[i] | ((fifth[i / 8] >> (i % 8) & 1) << 4).cast_signed())
    }
    #[inline(always)]
    unsafe fn add_pair<const HALVES: bool>(
        self,
        q: Self::Pair,
        x: *const i8,
        factors: *const f32,
        sums: Self::F,
    ) -> Self::F {
        // SAFETY: the caller vouches for 64 bytes and four factors.
        let (x, factors) = unsafe {
            (x.cast::<[[i8; 32]; 2]>().read_unaligned(), factors.cast::<[f32; 4]>().read_unaligned())
        };
        let dot = |group: usize, lane: usize| {
            (lane * 8..lane * 8 + 8).map(|i| i32::from(q[group][i]) * i32::from(x[group][i])).sum::<i32>()
                as f32
        };
        let factor = |group: usize, lane: usize| factors[2 * group + if HALVES { lane / 2 } else { 0 }];
        lanes!(|i| sums[i] + dot(0, i) * factor(0, i) + dot(1, i) * factor(1, i))
    }
    #[inline(always)]
    unsafe fn load_p(self, from: *const u8) -> Self::P {
        // SAFETY: the caller vouches for 16 bytes.
        unsafe { from.cast::<[i8; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat_p(self, from: *const i8) -> Self::P {
        // SAFETY: the caller vouches for four bytes.
        let bytes = unsafe { from.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 4])
    }
    #[inline(always)]
    fn zero_a(self) -> Self::A {
        [0; 4]
    }
    #[inline(always)]
    fn begin(self, sums: Self::I) -> Self::A {
        sums
    }
    #[inline(always)]
    fn step(self, sums: Self::A, nibbles: Self::P, x: Self::P) -> Self::A {
        let product = |i: usize| i32::from(nibbles[i]) * i32::from(x[i]);
        lanes!(|lane| {
            let at = lane * 4;
            sums[lane] + product(at) + product(at + 1) + product(at + 2) + product(at + 3)
        })
    }
    #[inline(always)]
    fn finish(self, sums: Self::A) -> Self::I {
        sums
    }
}

#[inline(always)]
fn halves(q: [i8; 32]) -> [[i8; 16]; 2] {
    std::array::from_fn(|half| std::array::from_fn(|i| q[half * 16 + i]))
}
