//! Dequantisers of the float types and of the formats with 32 values in a block.

use super::{f16_bits_to_f32, half_at};

pub(super) fn from_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, word) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*word);
    }
}

pub(super) fn from_f16(bytes: &[u8], out: &mut [f32]) {
    for (value, word) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16_bits_to_f32(u16::from_le_bytes(*word));
    }
}

pub(super) fn from_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, word) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
    }
}

/// `d` (half), 32 signed bytes.
pub(super) fn from_q8_0(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<34>().0;
    for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
        let [d0, d1, quants @ ..] = block;
        let scale = half_at(*d0, *d1);
        for (value, quant) in values.iter_mut().zip(quants) {
            *value = f32::from(*quant as i8) * scale;
        }
    }
}

/// `d` (half), 16 bytes: low nibbles are values 0..16, high nibbles 16..32; value = d * (nibble - 8).
pub(super) fn from_q4_0(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<18>().0;
    for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
        let [d0, d1, quants @ ..] = block;
        let scale = half_at(*d0, *d1);
        let (low, high) = values.split_at_mut(16);
        for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
            *low = scale * (i32::from(quant & 15) - 8) as f32;
            *high = scale * (i32::from(quant >> 4) - 8) as f32;
        }
    }
}

/// `d`, `m` (halves), 16 bytes of nibbles; value = d * nibble + m.
pub(super) fn from_q4_1(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<20>().0;
    for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
        let [d0, d1, m0, m1, quants @ ..] = block;
        let (scale, min) = (half_at(*d0, *d1), half_at(*m0, *m1));
        let (low, high) = values.split_at_mut(16);
        for ((low, high), quant) in low.iter_mut().zip(high).zip(quants) {
            *low = scale * i32::from(quant & 15) as f32 + min;
            *high = scale * i32::from(quant >> 4) as f32 + min;
        }
    }
}

/// `d` (half), 4 bytes of fifth bits, 16 bytes of nibbles; value = d * (quant - 16).
pub(super) fn from_q5_0(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<22>().0;
    for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
        let [d0, d1, h0, h1, h2, h3, quants @ ..] = block;
        let scale = half_at(*d0, *d1);
        let bits = u32::from_le_bytes([*h0, *h1, *h2, *h3]);
        for (value, quant) in values.iter_mut().zip(unpack_q5(bits, quants)) {
            *value = scale * (quant - 16) as f32;
        }
    }
}

/// `d`, `m` (halves), 4 bytes of fifth bits, 16 bytes of nibbles; value = d * quant + m.
pub(super) fn from_q5_1(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<24>().0;
    for (values, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
        let [d0, d1, m0, m1, h0, h1, h2, h3, quants @ ..] = block;
        let (scale, min) = (half_at(*d0, *d1), half_at(*m0, *m1));
        let bits = u32::from_le_bytes([*h0, *h1, *h2, *h3]);
        for (value, quant) in values.iter_mut().zip(unpack_q5(bits, quants)) {
            *value = scale * quant as f32 + min;
        }
    }
}

/// Joins 32 nibbles with their fifth bits.
#[inline(always)]
fn unpack_q5(bits: u32, nibbles: &[u8; 16]) -> [i32; 32] {
    let mut quants = [0; 32];
    for (idx, nibble) in nibbles.iter().enumerate() {
        quants[idx] = i32::from(nibble & 15) | (((bits >> idx) & 1) as i32 * 16);
        quants[idx + 16] = i32::from(nibble >> 4) | (((bits >> (idx + 16)) & 1) as i32 * 16);
    }
    quants
}
