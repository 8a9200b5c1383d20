//! Scratch memory that is kept from one call to the next.

/// The first `len` values of `buffer`, made longer when it is too short; what they hold is left open.
pub fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        // Nothing of the old values is needed: freeing first keeps the peak low.
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
    &mut buffer[..len]
}
