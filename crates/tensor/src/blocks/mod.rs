//! Block formats of ggml: bytes to f32 and back.

use crate::DType;

/// Writes the values stored in `bytes` to `out`.
///
/// `bytes` holds whole blocks of `dtype` for exactly `out.len()` values.
/// # Panics
/// When the lengths do not belong together.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let _ = (dtype, bytes, out);
    unimplemented!()
}
