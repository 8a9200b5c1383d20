//! Weight rows of each dtype as vectors: decoded in registers or written out as f32.
//!
//! [`RowFormat`] has one implementation per dtype that is read directly. All other dtypes pass through
//! [`crate::blocks::dequantize`] in pieces of [`STAGE`] values on the stack.

use super::simd::Simd;

/// Values decoded at a time where a dtype has no vector form: one superblock, a multiple of every block length.
pub(crate) const STAGE: usize = 256;

/// A dtype whose rows are read straight from their bytes.
pub(crate) trait RowFormat: Copy + Send + Sync + 'static {
    /// Values in a group; a piece starts and ends at group bounds. 1: any length, whole vectors preferred.
    const GROUP: usize;
    /// Bytes of a group.
    const GROUP_BYTES: usize;

    /// Decodes `LANES` values, the `piece`-th of the group at `group`.
    /// # Safety
    /// The group (for float dtypes: `LANES` values) can be read, and `piece * LANES < GROUP`.
    unsafe fn decode<S: Simd>(simd: S, group: *const u8, piece: usize) -> S::F;

    /// Decodes one value at `at`; only for dtypes with `GROUP == 1`.
    /// # Safety
    /// Its bytes can be read.
    unsafe fn decode_one(at: *const u8) -> f32;

    /// Adds the products of one group with `input` to `sum`. `input_sums` holds, for each group, `LANES` partial
    /// sums of the input.
    /// # Safety
    /// The group, `GROUP` values at `input` and `LANES` values at `input_sums` can be read.
    #[inline(always)]
    unsafe fn dot_group<S: Simd>(
        simd: S,
        group: *const u8,
        input: *const f32,
        input_sums: *const f32,
        sum: S::F,
    ) -> S::F {
        let _ = input_sums;
        let mut sum = sum;
        for piece in 0..Self::GROUP / S::LANES {
            // SAFETY: the caller vouches for the group and the input.
            sum = unsafe {
                simd.fma(Self::decode(simd, group, piece), simd.load(input.add(piece * S::LANES)), sum)
            };
        }
        sum
    }
}

macro_rules! float_format {
    ($name:ident, $bytes:literal, |$simd:ident, $at:ident| $load:expr, |$one:ident| $decode:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl RowFormat for $name {
            const GROUP: usize = 1;
            const GROUP_BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn decode<S: Simd>($simd: S, $at: *const u8, _piece: usize) -> S::F {
                // SAFETY: the caller vouches for `LANES` values.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn decode_one(at: *const u8) -> f32 {
                // SAFETY: the caller vouches for one value.
                let $one = unsafe { at.cast::<[u8; $bytes]>().read_unaligned() };
                $decode
            }
        }
    };
}

float_format!(F32, 4, |simd, at| simd.load(at.cast()), |one| f32::from_le_bytes(one));
float_format!(F16, 2, |simd, at| simd.load_f16(at), |one| half::f16::from_le_bytes(one).to_f32());
float_format!(BF16, 2, |simd, at| simd.load_bf16(at), |one| half::bf16::from_le_bytes(one).to_f32());

/// 32 values: f16 scale, 32 signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl RowFormat for Q8_0 {
    const GROUP: usize = 32;
    const GROUP_BYTES: usize = 34;
    #[inline(always)]
    unsafe fn decode<S: Simd>(simd: S, group: *const u8, piece: usize) -> S::F {
        // SAFETY: the caller vouches for the group.
        unsafe { simd.mul(simd.splat_f16(group), simd.to_f(simd.load_i8(group.add(2 + piece * S::LANES)))) }
    }
    unsafe fn decode_one(_at: *const u8) -> f32 {
        unreachable!("q8_0 rows have no single values")
    }
    #[inline(always)]
    unsafe fn dot_group<S: Simd>(
        simd: S,
        group: *const u8,
        input: *const f32,
        _: *const f32,
        sum: S::F,
    ) -> S::F {
        // SAFETY: the caller vouches for the group and the input.
        unsafe {
            let mut part = simd.mul(simd.to_f(simd.load_i8(group.add(2))), simd.load(input));
            for at in (S::LANES..32).step_by(S::LANES) {
                part = simd.fma(simd.to_f(simd.load_i8(group.add(2 + at))), simd.load(input.add(at)), part);
            }
            simd.fma(simd.splat_f16(group), part, sum)
        }
    }
}

/// The 32 nibbles at `quants` as integers 0..=15: value `i` is the low half of byte `i`, value `i + 16` the high one.
/// # Safety
/// 16 bytes can be read and `piece * LANES < 32`.
#[inline(always)]
unsafe fn nibbles<S: Simd>(simd: S, quants: *const u8, piece: usize) -> S::F {
    let at = piece * S::LANES;
    // SAFETY: the caller vouches for 16 bytes; `at % 16 + LANES <= 16`.
    let bytes = unsafe { simd.load_u8(quants.add(at % 16)) };
    simd.to_f(if at < 16 { simd.and_i(bytes, simd.splat_i(15)) } else { simd.shr_i::<4>(bytes) })
}

/// Sum of `nibble * input` over 32 values, begun at `start`.
/// # Safety
/// 16 bytes at `quants` and 32 values at `input` can be read.
#[inline(always)]
unsafe fn dot_nibbles<S: Simd>(simd: S, quants: *const u8, input: *const f32, start: S::F) -> S::F {
    let mut part = start;
    for at in (0..16).step_by(S::LANES) {
        // SAFETY: the caller vouches for both.
        unsafe {
            let bytes = simd.load_u8(quants.add(at));
            let low = simd.to_f(simd.and_i(bytes, simd.splat_i(15)));
            let high = simd.to_f(simd.shr_i::<4>(bytes));
            part = simd.fma(low, simd.load(input.add(at)), part);
            part = simd.fma(high, simd.load(input.add(16 + at)), part);
        }
    }
    part
}

/// 32 values: f16 scale, 32 nibbles less 8.
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl RowFormat for Q4_0 {
    const GROUP: usize = 32;
    const GROUP_BYTES: usize = 18;
    #[inline(always)]
    unsafe fn decode<S: Simd>(simd: S, group: *const u8, piece: usize) -> S::F {
        // SAFETY: the caller vouches for the group.
        unsafe {
            let quants = simd.sub(nibbles(simd, group.add(2), piece), simd.splat(8.0));
            simd.mul(simd.splat_f16(group), quants)
        }
    }
    unsafe fn decode_one(_at: *const u8) -> f32 {
        unreachable!("q4_0 rows have no single values")
    }
    #[inline(always)]
    unsafe fn dot_group<S: Simd>(
        simd: S,
        group: *const u8,
        input: *const f32,
        input_sums: *const f32,
        sum: S::F,
    ) -> S::F {
        // SAFETY: the caller vouches for the group, the input and its sums.
        unsafe {
            let offset = simd.mul(simd.load(input_sums), simd.splat(-8.0));
            simd.fma(simd.splat_f16(group), dot_nibbles(simd, group.add(2), input, offset), sum)
        }
    }
}

/// 32 values: f16 scale, f16 minimum, 32 nibbles.
#[derive(Clone, Copy)]
pub(crate) struct Q4_1;

impl RowFormat for Q4_1 {
    const GROUP: usize = 32;
    const GROUP_BYTES: usize = 20;
    #[inline(always)]
    unsafe fn decode<S: Simd>(simd: S, group: *const u8, piece: usize) -> S::F {
        // SAFETY: the caller vouches for the group.
        unsafe {
            let (scale, least) = simd.splat_f16_pair(group);
            simd.fma(scale, nibbles(simd, group.add(4), piece), least)
        }
    }
    unsafe fn decode_one(_at: *const u8) -> f32 {
        unreachable!("q4_1 rows have no single values")
    }
    #[inline(always)]
    unsafe fn dot_group<S: Simd>(
        simd: S,
        group: *const u8,
        input: *const f32,
        input_sums: *const f32,
        sum: S::F,
    ) -> S::F {
        // SAFETY: the caller vouches for the group, the input and its sums.
        unsafe {
            let part = dot_nibbles(simd, group.add(4), input, simd.splat(0.0));
            let (scale, least) = simd.splat_f16_pair(group);
            simd.fma(scale, part, simd.fma(least, simd.load(input_sums), sum))
        }
    }
}

/// Calls `$body` with `$format` bound to the direct format of `$dtype`, or `$other` when it has none.
macro_rules! with_format {
    ($dtype:expr, |$format:ident| $body:expr, else $other:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                let $format = $crate::kernels::format::F32;
                $body
            }
            $crate::DType::F16 => {
                let $format = $crate::kernels::format::F16;
                $body
            }
            $crate::DType::BF16 => {
                let $format = $crate::kernels::format::BF16;
                $body
            }
            $crate::DType::Q8_0 => {
                let $format = $crate::kernels::format::Q8_0;
                $body
            }
            $crate::DType::Q4_0 => {
                let $format = $crate::kernels::format::Q4_0;
                $body
            }
            $crate::DType::Q4_1 => {
                let $format = $crate::kernels::format::Q4_1;
                $body
            }
            _ => $other,
        }
    };
}
pub(crate) use with_format;

/// Writes `n` values of the row piece at `bytes` to `out`.
/// # Safety
/// `bytes` holds whole groups for `n` values, and `n` values can be written.
#[inline(always)]
pub(crate) unsafe fn decode_row<S: Simd, F: RowFormat>(
    simd: S,
    _: F,
    bytes: *const u8,
    n: usize,
    out: *mut f32,
) {
    // SAFETY: the caller vouches for `n` values on both sides; all addresses stay below that.
    unsafe {
        if F::GROUP == 1 {
            let whole = n / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                simd.store(out.add(at), F::decode(simd, bytes.add(at * F::GROUP_BYTES), 0));
            }
            for at in whole..n {
                *out.add(at) = F::decode_one(bytes.add(at * F::GROUP_BYTES));
            }
        } else {
            for group in 0..n / F::GROUP {
                for piece in 0..F::GROUP / S::LANES {
                    let value = F::decode(simd, bytes.add(group * F::GROUP_BYTES), piece);
                    simd.store(out.add(group * F::GROUP + piece * S::LANES), value);
                }
            }
        }
    }
}
