//! Quantisers: f32 to bytes, rounding as the reference implementation does.

use crate::DType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Why values could not be stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantizeError {
    /// There is a reader for this dtype, but no writer.
    #[error("{0} cannot be written; f32, f16, bf16, q8_0, q4_0 and q4_1 can")]
    Unsupported(DType),
    /// The values do not fill whole blocks, or the output has another size than they need.
    #[error("{n_values} values in {dtype} do not fill {n_bytes} bytes")]
    Size {
        /// Storage type.
        dtype: DType,
        /// Values given.
        n_values: usize,
        /// Bytes given.
        n_bytes: usize,
    },
    /// A value is NaN, infinite, or beyond what the dtype can hold.
    #[error("value {index} cannot be stored in {dtype}: not finite, or too large")]
    OutOfRange {
        /// Storage type.
        dtype: DType,
        /// Position of the value, or of the first value of its block.
        index: usize,
    },
}

/// Writes `values` to `out` in `dtype`: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.
///
/// Rounding is that of the reference quantisers, bit for bit.
/// # Errors
/// [`QuantizeError`]; `out` then holds unspecified bytes.
pub fn quantize(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantizeError> {
    if dtype.row_bytes(values.len()) != Some(out.len()) {
        return Err(QuantizeError::Size { dtype, n_values: values.len(), n_bytes: out.len() });
    }
    let bad = match dtype {
        DType::F32 => to_f32(values, out),
        DType::F16 => to_f16(values, out),
        DType::BF16 => to_bf16(values, out),
        DType::Q8_0 => to_blocks(values, out, to_q8_0),
        DType::Q4_0 => to_blocks(values, out, to_q4_0),
        DType::Q4_1 => to_blocks(values, out, to_q4_1),
        _ => return Err(QuantizeError::Unsupported(dtype)),
    };
    bad.map_or(Ok(()), |index| Err(QuantizeError::OutOfRange { dtype, index }))
}

/// Index of the first value that is NaN or infinite. The common case is one vectorised pass.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    let bad = values.iter().fold(false, |bad, value| bad | !value.is_finite());
    if bad { values.iter().position(|value| !value.is_finite()) } else { None }
}

fn to_f32(values: &[f32], out: &mut [u8]) -> Option<usize> {
    for (word, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
    first_not_finite(values)
}

fn to_f16(values: &[f32], out: &mut [u8]) -> Option<usize> {
    const PIECE: usize = 256;
    let mut buffer = [f16::ZERO; PIECE];
    let mut finite = true;
    // Pieces are converted as whole vectors.
    for (words, values) in out.as_chunks_mut::<2>().0.chunks_mut(PIECE).zip(values.chunks(PIECE)) {
        let halves = &mut buffer[..values.len()];
        halves.convert_from_f32_slice(values);
        for (word, half) in words.iter_mut().zip(halves) {
            finite &= half.is_finite();
            *word = half.to_le_bytes();
        }
    }
    if finite { None } else { values.iter().position(|&value| !f16::from_f32(value).is_finite()) }
}

fn to_bf16(values: &[f32], out: &mut [u8]) -> Option<usize> {
    for (index, (word, value)) in out.as_chunks_mut::<2>().0.iter_mut().zip(values).enumerate() {
        let half = bf16::from_f32(*value);
        if !half.is_finite() {
            return Some(index);
        }
        *word = half.to_le_bytes();
    }
    None
}

/// Runs a quantiser of 32-value blocks; returns the index of a value that does not fit.
fn to_blocks<const N: usize>(
    values: &[f32],
    out: &mut [u8],
    block: fn(&[f32; 32], &mut [u8; N]) -> bool,
) -> Option<usize> {
    if let Some(index) = first_not_finite(values) {
        return Some(index);
    }
    let blocks = out.as_chunks_mut::<N>().0;
    values
        .as_chunks::<32>()
        .0
        .iter()
        .zip(blocks)
        .position(|(values, out)| !block(values, out))
        .map(|b| b * 32)
}

/// One over `step`; zero for a block of zeros.
#[inline(always)]
fn inverse(step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { 1.0 / step }
}

/// Rounds half away from zero, as C's `roundf`; exact for magnitudes below 2^23.
#[inline(always)]
fn round_half_away(value: f32) -> i32 {
    let magnitude = value.abs();
    let whole = magnitude as i32;
    let up = i32::from(0.5 <= magnitude - whole as f32);
    if value < 0.0 { -(whole + up) } else { whole + up }
}

fn to_q8_0(values: &[f32; 32], out: &mut [u8; 34]) -> bool {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let step = largest / 127.0;
    let scale = inverse(step);
    let [d0, d1, quants @ ..] = out;
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = round_half_away(value * scale) as i8 as u8;
    }
    let half = f16::from_f32(step);
    [*d0, *d1] = half.to_le_bytes();
    half.is_finite()
}

fn to_q4_0(values: &[f32; 32], out: &mut [u8; 18]) -> bool {
    // The first value of the largest magnitude, with its sign, maps to -8.
    let extreme = values.iter().fold(
        0.0f32,
        |extreme, &value| {
            if extreme.abs() < value.abs() { value } else { extreme }
        },
    );
    let step = extreme / -8.0;
    let scale = inverse(step);
    let [d0, d1, quants @ ..] = out;
    let (low, high) = values.split_at(16);
    for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
        let low = ((low * scale + 8.5) as u8).min(15);
        let high = ((high * scale + 8.5) as u8).min(15);
        *quant = low | (high << 4);
    }
    let half = f16::from_f32(step);
    [*d0, *d1] = half.to_le_bytes();
    half.is_finite()
}

fn to_q4_1(values: &[f32; 32], out: &mut [u8; 20]) -> bool {
    let min = values.iter().fold(f32::INFINITY, |min, &value| min.min(value));
    let max = values.iter().fold(f32::NEG_INFINITY, |max, &value| max.max(value));
    let step = (max - min) / 15.0;
    let scale = inverse(step);
    let [d0, d1, m0, m1, quants @ ..] = out;
    let (low, high) = values.split_at(16);
    for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
        let low = (((low - min) * scale + 0.5) as u8).min(15);
        let high = (((high - min) * scale + 0.5) as u8).min(15);
        *quant = low | (high << 4);
    }
    let (step, min) = (f16::from_f32(step), f16::from_f32(min));
    [*d0, *d1] = step.to_le_bytes();
    [*m0, *m1] = min.to_le_bytes();
    step.is_finite() && min.is_finite()
}
