//! One vocabulary of vector operations for every instruction set.
//!
//! Kernels are written once over [`Simd`] and instantiated per instruction set by `Isa::dispatch`. A value of
//! an implementing type is the proof that the CPU has the instructions: each has one constructor that checks.
//! Every operation is exactly rounded or defined bit by bit, except that the portable set multiplies and adds
//! in two steps where the others fuse, so results differ between instruction sets only by rounding.

use super::isa::Kernel;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{BASE, DOT, I8MM, Neon};
pub(crate) use portable::Portable;

/// The most lanes of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// How far ahead of its use a stream of weights is asked for: the best of 2, 5 and 8 KiB for q8_0, q4_1 and f16.
const AHEAD_BYTES: usize = 5 << 10;

/// The most calls of [`Simd::step`] before a [`Simd::finish`]; with [`Simd::PRODUCTS_IN_16_BITS`] and integers of more than
/// four bits it may be fewer: `8 * 2 * 15 * 127 < 2^15`.
pub(crate) const STEPS: usize = 8;

/// Where 32 integers lie: four bits of each of 32 bytes from bit `low_shift` (0 or 4) on, and above them, where `high` is
/// `(bytes, shift, mask)`, those bits of another 32 bytes; `mask` is 1 or 3.
#[derive(Clone, Copy)]
pub(crate) struct Bits {
    pub(crate) low: *const u8,
    pub(crate) low_shift: usize,
    pub(crate) high: Option<(*const u8, usize, u8)>,
}

/// Vector operations over f32 lanes and i32 lanes of the same number.
///
/// All methods must be inlined into a function that enables the instruction set; `Isa::dispatch` does that.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// 32 bytes: the integers of one weight block.
    type Q: Copy;
    /// 64 bytes: the integers of two groups of weights.
    type Pair: Copy;
    /// `4 * LANES` bytes: four integers of each of `LANES` weight rows, or 16 of each of `LANES / 4` groups of one row.
    type P: Copy;
    /// Sums of products of [`Self::P`], before [`Self::finish`].
    type A: Copy;
    /// Lanes of `F` and `I`: 4, 8 or 16.
    const LANES: usize;
    /// Products that a [`Self::step`] adds to the same 16 bits of [`Self::A`]; 0 where its sums have 32.
    const PRODUCTS_IN_16_BITS: usize;
    /// Tokens of the tile of the kernel of bytes, 4 or 8, so that sums of products fit the registers.
    const TOKENS: usize;
    /// Rows of the tile of the matrix microkernel; with [`Self::NV`] chosen so that it fits the registers.
    const MR: usize;
    /// Vectors in a row of that tile.
    const NV: usize;

    /// Runs `kernel` as a function of its own, compiled for this set: for bodies that several kernels share.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater of each lane; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser of each lane; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// 0 where `x <= bound`, else `value`, also where `x` is NaN.
    fn zero_if_at_most(self, x: Self::F, bound: Self::F, value: Self::F) -> Self::F;
    /// The first lane.
    #[inline(always)]
    fn first(self, a: Self::F) -> f32 {
        let mut lanes = [0.0_f32; MAX_LANES];
        // SAFETY: the array has room for the lanes of any instruction set.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        lanes[0]
    }
    /// Sum of all lanes, in an order fixed per instruction set.
    fn sum(self, a: Self::F) -> f32;
    /// Greatest lane; which one is left open when one is NaN.
    fn max_lane(self, a: Self::F) -> f32;

    /// Lanes `2i` and `2i + 1` exchanged.
    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        let mut lanes = [0.0_f32; MAX_LANES];
        // SAFETY: the array has room for the lanes of any instruction set.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            for pair in lanes.chunks_exact_mut(2) {
                pair.swap(0, 1);
            }
            self.load(lanes.as_ptr())
        }
    }

    /// Lanes `2i` also in lanes `2i + 1`.
    fn even_twice(self, a: Self::F) -> Self::F;

    fn splat_i(self, value: i32) -> Self::I;
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a >> N`, filled with zeros.
    fn shr_i<const N: i32>(self, a: Self::I) -> Self::I;
    /// `a << N`.
    fn shl_i<const N: i32>(self, a: Self::I) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_f(self, a: Self::I) -> Self::F;
    /// Nearest integer, ties to even, of values within +-2^22.
    fn round_to_i(self, a: Self::F) -> Self::I;
    /// The same bits as f32.
    fn bits_to_f(self, a: Self::I) -> Self::F;

    /// Reads `LANES` values.
    /// # Safety
    /// They can be read.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Writes `LANES` values.
    /// # Safety
    /// They can be written.
    unsafe fn store(self, to: *mut f32, value: Self::F);
    /// Reads `LANES` f16 values, little-endian, at any address.
    /// # Safety
    /// `2 * LANES` bytes can be read.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// Reads `LANES` bf16 values, little-endian, at any address.
    /// # Safety
    /// `2 * LANES` bytes can be read.
    unsafe fn load_bf16(self, from: *const u8) -> Self::F;
    /// Reads `LANES` integers of 32 bits at any address.
    /// # Safety
    /// `4 * LANES` bytes can be read.
    unsafe fn load_i(self, from: *const u8) -> Self::I;
    /// Reads `LANES` bytes.
    /// # Safety
    /// They can be read.
    unsafe fn load_u8(self, from: *const u8) -> Self::I;
    /// Reads `LANES` bytes with sign.
    /// # Safety
    /// They can be read.
    unsafe fn load_i8(self, from: *const u8) -> Self::I;

    /// Asks for the cache line at an address that will be needed soon; any address will do.
    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}

    /// Asks for the lines that `bytes` of a stream at `base` will need later: those [`AHEAD_BYTES`] on. Rows follow each
    /// other in memory, but the processor sees several streams where a kernel takes several rows, and loses sight of
    /// them at the ends of pages; asking in the order of addresses brings main memory to its full speed.
    #[inline(always)]
    fn prefetch_ahead(self, base: *const u8, bytes: std::ops::Range<usize>) {
        let mut line = bytes.start.next_multiple_of(LINE_BYTES);
        while line < bytes.end {
            self.prefetch(base.wrapping_add(AHEAD_BYTES + line).cast());
            line += LINE_BYTES;
        }
    }

    /// Reads one f16 and copies it to all lanes.
    /// # Safety
    /// Two bytes can be read.
    unsafe fn splat_f16(self, from: *const u8) -> Self::F;

    /// Writes the transpose of `LANES` rows of `LANES` values: row `r` starts at `from + r * from_stride`, and
    /// column `c` of the source becomes `LANES` values at `to + c * to_stride`.
    /// # Safety
    /// All of them can be read and written, and do not overlap.
    #[inline(always)]
    unsafe fn transpose_block(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for col in 0..Self::LANES {
            for row in 0..Self::LANES {
                // SAFETY: the caller vouches for the whole block.
                unsafe { *to.add(col * to_stride + row) = *from.add(row * from_stride + col) };
            }
        }
    }

    /// Writes the transpose of `LANES` rows of [`STEPS`] values that follow each other, as [`Self::transpose_block`].
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn transpose_steps(self, from: *const f32, to: *mut f32, to_stride: usize) {
        for step in (0..STEPS).step_by(Self::LANES) {
            // SAFETY: the caller vouches for all steps, of which `LANES` are at most.
            unsafe { self.transpose_block(from.add(step), STEPS, to.add(step * to_stride), to_stride) };
        }
    }

    /// Interleaves `MR` rows of `LANES` values: value `c` of row `r`, read at `from + r * from_stride + c`, goes to
    /// `to + c * MR + r`.
    /// # Safety
    /// All of them can be read and written, and do not overlap.
    #[inline(always)]
    unsafe fn interleave_rows(self, from: *const f32, from_stride: usize, to: *mut f32) {
        for col in 0..Self::LANES {
            for row in 0..Self::MR {
                // SAFETY: the caller vouches for all of it.
                unsafe { *to.add(col * Self::MR + row) = *from.add(row * from_stride + col) };
            }
        }
    }

    /// Reads two f16 that follow each other and copies the first to all even lanes, the second to all odd ones.
    /// # Safety
    /// Four bytes can be read.
    unsafe fn splat_f16s(self, from: *const u8) -> Self::F;

    /// Reads two f16 that follow each other and copies each to all lanes.
    /// # Safety
    /// Four bytes can be read.
    #[inline(always)]
    unsafe fn splat_f16_pair(self, from: *const u8) -> (Self::F, Self::F) {
        // SAFETY: the caller vouches for four bytes.
        unsafe { (self.splat_f16(from), self.splat_f16(from.add(2))) }
    }

    /// Reads the f16 that each of `LANES / 4` groups begins with, `STRIDE` apart, and with `PAIRS` also the next one; each is
    /// copied to the four lanes of its group. Without `PAIRS` both results are the first.
    /// # Safety
    /// The groups can be read.
    unsafe fn load_f16s<const STRIDE: usize, const PAIRS: bool>(
        self,
        groups: *const u8,
    ) -> (Self::F, Self::F);

    /// Writes `LANES` integers within -128..=127 as bytes.
    /// # Safety
    /// `LANES` bytes can be written.
    unsafe fn store_i8(self, to: *mut i8, a: Self::I);
    /// Reads 32 signed bytes.
    /// # Safety
    /// They can be read.
    unsafe fn load_q8(self, from: *const u8) -> Self::Q;
    /// Reads 32 nibbles as bytes 0..=15: value `i` is the low half of byte `i`, value `i + 16` the high one.
    /// # Safety
    /// 16 bytes can be read.
    unsafe fn load_q4(self, from: *const u8) -> Self::Q;
    /// Writes 32 bytes.
    /// # Safety
    /// They can be written.
    unsafe fn store_q(self, to: *mut u8, q: Self::Q);
    /// `value + 128` of signed bytes in two nibbles, the high ones first.
    fn split_q8(self, q: Self::Q) -> [Self::Q; 2];
    /// Reads the bytes of `LANES / 4` groups of 32, `STRIDE` apart: the first 16 of each, then the others.
    /// # Safety
    /// They can be read.
    unsafe fn load_q8s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2];
    /// As [`Self::load_q8s`], of nibbles: the low halves of 16 bytes of each group, then the high ones.
    /// # Safety
    /// 16 bytes of each group can be read, and what lies between.
    unsafe fn load_q4s<const STRIDE: usize>(self, from: *const u8) -> [Self::P; 2];
    /// As [`Self::load_q4s`], with a fifth bit for each value, as [`Self::load_q5`] tells.
    /// # Safety
    /// 16 bytes of each group at `from` and four at `fifth` can be read, and what lies between.
    unsafe fn load_q5s<const STRIDE: usize>(self, from: *const u8, fifth: *const u8) -> [Self::P; 2];
    /// Adds, to the lanes of each group, its 32 products of bytes 0..=31 with `x`.
    fn dot_bits(self, q: [Self::P; 2], x: [Self::P; 2], sums: Self::I) -> Self::I;
    /// The products of signed bytes with `x`, which has no -128; `minus` holds, for each group, minus the sum of its `x`.
    fn dot_q8s(self, q: [Self::P; 2], x: [Self::P; 2], minus: Self::I) -> Self::I;
    /// The bytes of `first` and of `second` in turn, each from its lowest.
    fn zip_bytes(self, first: u64, second: u64) -> [u8; 16];
    /// Reads 32 integers.
    /// # Safety
    /// 32 bytes at each address can be read.
    unsafe fn load_bits(self, bits: Bits) -> Self::Q;
    /// Reads two times 32 integers.
    /// # Safety
    /// 32 bytes at each address can be read.
    unsafe fn load_pair(self, bits: [Bits; 2]) -> Self::Pair;
    /// As [`Self::load_q4`], with a fifth bit for each value: bit `i` of the four bytes at `fifth`, the lowest first.
    /// # Safety
    /// 16 bytes at `from` and four at `fifth` can be read.
    unsafe fn load_q5(self, from: *const u8, fifth: *const u8) -> Self::Q;
    /// Adds, to lanes of `sums`, products of bytes 0..=63 with `x`: those of the first group times `factors[0]`, of the second
    /// times `factors[2]`; with `HALVES` those of each 16 times one of four factors.
    /// # Safety
    /// 64 bytes at `x` and four factors can be read.
    unsafe fn add_pair<const HALVES: bool>(
        self,
        q: Self::Pair,
        x: *const i8,
        factors: *const f32,
        sums: Self::F,
    ) -> Self::F;
    /// Reads `4 * LANES` bytes.
    /// # Safety
    /// They can be read.
    unsafe fn load_p(self, from: *const u8) -> Self::P;
    /// Copies four bytes to all lanes.
    /// # Safety
    /// They can be read.
    unsafe fn splat_p(self, from: *const i8) -> Self::P;
    fn zero_a(self) -> Self::A;
    /// Sums that begin with these, where [`Self::PRODUCTS_IN_16_BITS`] is 0.
    fn begin(self, sums: Self::I) -> Self::A;
    /// Adds, in each lane, the four products of bytes 0..=63 with signed bytes; at most [`STEPS`] times in a row, and while
    /// sums fit.
    fn step(self, sums: Self::A, nibbles: Self::P, x: Self::P) -> Self::A;
    /// The sum of each lane.
    fn finish(self, sums: Self::A) -> Self::I;
    /// Adds to `sums` products of `T` tokens with `V` vectors of weight rows over `n_steps` times four columns:
    /// `[n_steps][stride][4]` bytes at `quants`, of which the first `T` count, `[n_steps][V][LANES][4]` bytes at `bytes`; as
    /// often as [`Self::step`] may be called.
    /// # Safety
    /// All of them can be read.
    #[inline(always)]
    unsafe fn steps<const T: usize, const V: usize>(
        self,
        n_steps: usize,
        (quants, stride): (*const i8, usize),
        bytes: *const u8,
        sums: [Self::A; T],
    ) -> [[Self::A; V]; T] {
        // SAFETY: as the caller vouches.
        unsafe { steps(self, n_steps, (quants, stride), bytes, sums) }
    }
}

/// [`Simd::steps`] by [`Simd::step`].
/// # Safety
/// As there.
#[expect(clippy::needless_range_loop, reason = "indices keep the sums in registers, iterators spill them")]
#[inline(always)]
unsafe fn steps<S: Simd, const T: usize, const V: usize>(
    simd: S,
    n_steps: usize,
    (mut quants, stride): (*const i8, usize),
    mut bytes: *const u8,
    sums: [S::A; T],
) -> [[S::A; V]; T] {
    let mut products = [[simd.zero_a(); V]; T];
    for token in 0..T {
        products[token] = [sums[token]; V];
    }
    for _ in 0..n_steps {
        // SAFETY: a step of the panel has `V * LANES` times four bytes.
        let mut row = unsafe { [simd.load_p(bytes); V] };
        for v in 1..V {
            // SAFETY: as above.
            row[v] = unsafe { simd.load_p(bytes.add(v * S::LANES * 4)) };
        }
        for token in 0..T {
            // SAFETY: a step of the strip has at least `T` times four bytes.
            let x = unsafe { simd.splat_p(quants.add(token * 4)) };
            for v in 0..V {
                products[token][v] = simd.step(products[token][v], row[v], x);
            }
        }
        quants = quants.wrapping_add(stride * 4);
        bytes = bytes.wrapping_add(V * S::LANES * 4);
    }
    products
}
