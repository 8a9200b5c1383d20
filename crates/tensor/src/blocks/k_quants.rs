//! Dequantisers of the K formats: 256 values in a block, with scales of 16 or 32 values each.

use super::half_at;

/// Sixteen scale bytes (low nibble scale, high nibble min), 64 bytes of 2-bit quants, `d`, `dmin`.
pub(super) fn from_q2_k(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<84>().0;
    for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
        let (scales, rest) = block.split_at(16);
        let (quants, rest) = rest.split_at(64);
        let (d, dmin) = (half_at(rest[0], rest[1]), half_at(rest[2], rest[3]));
        for (idx, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let step = d * f32::from(scale & 15);
            let min = dmin * f32::from(scale >> 4);
            let (start, shift) = quant_place(idx);
            for (value, quant) in values.iter_mut().zip(&quants[start..start + 16]) {
                *value = step * f32::from((quant >> shift) & 3) - min;
            }
        }
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit quants, sixteen 6-bit scales in 12 bytes, `d`.
pub(super) fn from_q3_k(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<110>().0;
    for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
        let (high, rest) = block.split_at(32);
        let (quants, rest) = rest.split_at(64);
        let d = half_at(rest[12], rest[13]);
        let scales = unpack_q3_scales(&rest[..12]);
        for (idx, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let step = d * scale as f32;
            let (start, shift) = quant_place(idx);
            let high = &high[16 * (idx % 2)..16 * (idx % 2) + 16];
            let bit = idx / 2;
            for ((value, quant), high) in values.iter_mut().zip(&quants[start..start + 16]).zip(high) {
                // A set third bit means that four is not taken away.
                let quant = i32::from((quant >> shift) & 3) - 4 * (1 - i32::from((high >> bit) & 1));
                *value = step * quant as f32;
            }
        }
    }
}

/// `d`, `dmin`, eight 6-bit scales and mins in 12 bytes, 128 bytes of nibbles.
pub(super) fn from_q4_k(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<144>().0;
    for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
        let (head, quants) = block.split_at(16);
        let (steps, mins) = unpack_k4_scales(head);
        for (idx, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (step, min, shift) = (steps[idx], mins[idx], 4 * (idx % 2));
            let start = 32 * (idx / 2);
            for (value, quant) in values.iter_mut().zip(&quants[start..start + 32]) {
                *value = step * f32::from((quant >> shift) & 15) - min;
            }
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits between scales and nibbles.
pub(super) fn from_q5_k(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<176>().0;
    for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
        let (head, rest) = block.split_at(16);
        let (high, quants) = rest.split_at(32);
        let (steps, mins) = unpack_k4_scales(head);
        for (idx, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (step, min, shift) = (steps[idx], mins[idx], 4 * (idx % 2));
            let start = 32 * (idx / 2);
            for ((value, quant), high) in values.iter_mut().zip(&quants[start..start + 32]).zip(high) {
                let quant = ((quant >> shift) & 15) | (((high >> idx) & 1) << 4);
                *value = step * f32::from(quant) - min;
            }
        }
    }
}

/// 128 bytes of nibbles, 64 bytes of upper bit pairs, sixteen signed scales, `d`.
pub(super) fn from_q6_k(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<210>().0;
    for (values, block) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, d) = rest.split_at(16);
        let d = half_at(d[0], d[1]);
        for (idx, (values, scale)) in values.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let step = d * f32::from(*scale as i8);
            let (half, sixteen) = (idx / 8, idx % 8);
            let low_start = 64 * half + 16 * (sixteen % 4);
            let low_shift = 4 * (sixteen / 4);
            let high_start = 32 * half + 16 * (sixteen % 2);
            let high_shift = 2 * (sixteen / 2);
            let high = &high[high_start..high_start + 16];
            for ((value, low), high) in values.iter_mut().zip(&low[low_start..low_start + 16]).zip(high) {
                let quant = ((low >> low_shift) & 15) | (((high >> high_shift) & 3) << 4);
                *value = step * (i32::from(quant) - 32) as f32;
            }
        }
    }
}

/// Where the 2-bit quants of the `idx`-th sixteen values begin, and the shift that brings them down:
/// 128 values share 32 bytes, 32 values for each pair of bits.
#[inline(always)]
fn quant_place(idx: usize) -> (usize, usize) {
    (32 * (idx / 8) + 16 * (idx % 2), 2 * ((idx % 8) / 2))
}

/// Sixteen 6-bit scales: low nibbles in 8 bytes, upper pairs of bits in 4.
fn unpack_q3_scales(packed: &[u8]) -> [i32; 16] {
    let mut scales = [0; 16];
    for (idx, scale) in scales.iter_mut().enumerate() {
        let low = (packed[idx % 8] >> (4 * (idx / 8))) & 15;
        let high = (packed[8 + idx % 4] >> (2 * (idx / 4))) & 3;
        *scale = i32::from(low | (high << 4)) - 32;
    }
    scales
}

/// Steps and mins of the eight groups of a Q4_K or Q5_K block, from its first 16 bytes.
fn unpack_k4_scales(head: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, dmin) = (half_at(head[0], head[1]), half_at(head[2], head[3]));
    let packed = &head[4..16];
    let mut steps = [0.0; 8];
    let mut mins = [0.0; 8];
    for idx in 0..4 {
        steps[idx] = d * f32::from(packed[idx] & 63);
        mins[idx] = dmin * f32::from(packed[idx + 4] & 63);
        let step = (packed[idx + 8] & 15) | ((packed[idx] >> 2) & 48);
        let min = (packed[idx + 8] >> 4) | ((packed[idx + 4] >> 2) & 48);
        steps[idx + 4] = d * f32::from(step);
        mins[idx + 4] = dmin * f32::from(min);
    }
    (steps, mins)
}
