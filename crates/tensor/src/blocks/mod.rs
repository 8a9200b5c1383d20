//! Block formats of ggml: bytes to f32 and back.
//!
//! Portable code over whole blocks, written so that the compiler can vectorise it: no branches and no
//! bounds checks inside a block. Memory: nothing beyond the caller's buffers.

mod k_quants;
mod legacy;
mod quantize;

use crate::DType;
pub use quantize::{QuantizeError, quantize};

/// Writes the values stored in `bytes` to `out`.
///
/// `bytes` holds whole blocks of `dtype` for exactly `out.len()` values. The values are those of the
/// reference implementation bit for bit.
/// # Panics
/// When the lengths do not belong together.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        dtype.row_bytes(out.len()),
        Some(bytes.len()),
        "{} values of {dtype} do not fill {} bytes",
        out.len(),
        bytes.len()
    );
    match dtype {
        DType::F32 => legacy::from_f32(bytes, out),
        DType::F16 => legacy::from_f16(bytes, out),
        DType::BF16 => legacy::from_bf16(bytes, out),
        DType::Q8_0 => legacy::from_q8_0(bytes, out),
        DType::Q4_0 => legacy::from_q4_0(bytes, out),
        DType::Q4_1 => legacy::from_q4_1(bytes, out),
        DType::Q5_0 => legacy::from_q5_0(bytes, out),
        DType::Q5_1 => legacy::from_q5_1(bytes, out),
        DType::Q2_K => k_quants::from_q2_k(bytes, out),
        DType::Q3_K => k_quants::from_q3_k(bytes, out),
        DType::Q4_K => k_quants::from_q4_k(bytes, out),
        DType::Q5_K => k_quants::from_q5_k(bytes, out),
        DType::Q6_K => k_quants::from_q6_k(bytes, out),
    }
}

/// Exact conversion of the bits of an IEEE half to f32, without branches.
///
/// Subnormal halves are made by a subtraction of normal numbers, so no slow subnormal arithmetic is met.
#[inline(always)]
#[must_use]
pub fn f16_bits_to_f32(bits: u16) -> f32 {
    const ONE_ABOVE: u32 = 113 << 23;
    let sign = (u32::from(bits) & 0x8000) << 16;
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let normal = magnitude + (112 << 23);
    let special = magnitude | 0x7f80_0000;
    let subnormal = (f32::from_bits(magnitude + ONE_ABOVE) - f32::from_bits(ONE_ABOVE)).to_bits();
    let finite = if magnitude < (1 << 23) { subnormal } else { normal };
    let value = if magnitude < (31 << 23) { finite } else { special };
    f32::from_bits(sign | value)
}

/// The half stored little-endian in two bytes, as f32.
#[inline(always)]
fn half_at(low: u8, high: u8) -> f32 {
    f16_bits_to_f32(u16::from_le_bytes([low, high]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_exactly() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            let got = f16_bits_to_f32(bits);
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#06x}");
        }
    }

    #[test]
    #[should_panic(expected = "do not fill")]
    fn half_a_block_is_refused() {
        dequantize(DType::Q4_0, &[0; 18], &mut [0.0; 16]);
    }
}
