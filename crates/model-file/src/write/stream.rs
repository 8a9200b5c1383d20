//! Streams one tensor: copied when it has its dtype already, converted block of rows by block of rows otherwise.

use super::file::Target;
use super::plan::{Origin, Planned};
use crate::WriteError;
use secateur_model::{WeightId, WeightSource};
use secateur_tensor::{DType, WeightMatrix, blocks};

/// Values converted at once; a block holds at least one row.
pub const BLOCK_VALUES: usize = 1 << 17;
/// Bytes read from the source before it is told that their pages may go.
const GIVE_BACK_BYTES: usize = 1 << 21;

/// Writes the data of `tensor`.
pub(super) fn write_tensor(
    target: &mut Target,
    source: &dyn WeightSource,
    tensor: &Planned,
) -> Result<(), WriteError> {
    match &tensor.origin {
        Origin::Constant(value) => write_constant(target, tensor, *value),
        Origin::Values(values) => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            target.put(&bytes)
        }
        Origin::Source(id) | Origin::SourceInPairs(id) | Origin::SourceInHalves(id) => {
            let matrix = source.require(*id)?;
            check_same(*id, tensor, &matrix)?;
            let result = write_matrix(target, source, *id, tensor, &matrix);
            drop(matrix);
            source.give_back(*id);
            result
        }
    }
}

/// The weight must still be what it was when offsets were computed.
fn check_same(id: WeightId, tensor: &Planned, matrix: &WeightMatrix) -> Result<(), WriteError> {
    let got = [matrix.n_rows(), matrix.n_cols()];
    if got != tensor.shape {
        return Err(WriteError::Shape { id, want: tensor.shape, got });
    }
    if matrix.dtype() != tensor.source_dtype {
        return Err(WriteError::Unstable { id, want: tensor.source_dtype, got: matrix.dtype() });
    }
    Ok(())
}

fn write_constant(target: &mut Target, tensor: &Planned, value: f32) -> Result<(), WriteError> {
    let [n_rows, n_cols] = tensor.shape;
    let row: Vec<u8> = match tensor.dtype {
        DType::F32 => value.to_le_bytes().repeat(n_cols),
        _ => half_bytes(value).repeat(n_cols),
    };
    (0..n_rows).try_for_each(|_| target.put(&row))
}

fn half_bytes(value: f32) -> [u8; 2] {
    let mut bytes = [0; 2];
    blocks::quantize(DType::F16, &[value], &mut bytes).expect("zero and one are halves");
    bytes
}

fn write_matrix(
    target: &mut Target,
    source: &dyn WeightSource,
    id: WeightId,
    tensor: &Planned,
    matrix: &WeightMatrix,
) -> Result<(), WriteError> {
    let head_dim = tensor.head_dim;
    let order = |row| match tensor.origin {
        Origin::SourceInPairs(_) => row_in_halves(row, head_dim),
        Origin::SourceInHalves(_) => row_in_pairs(row, head_dim),
        _ => row,
    };
    let is_turned = matches!(tensor.origin, Origin::SourceInPairs(_) | Origin::SourceInHalves(_));
    if is_turned && tensor.is_vector {
        return write_vector(target, matrix, order);
    }
    let n_rows = tensor.shape[0];
    let rows_at_once = (BLOCK_VALUES / tensor.shape[1]).clamp(1, n_rows);
    let mut converter = Converter::new(tensor, rows_at_once);
    let mut unreturned = 0;
    for start in (0..n_rows).step_by(rows_at_once) {
        let count = rows_at_once.min(n_rows - start);
        if tensor.dtype == tensor.source_dtype {
            if is_turned {
                (start..start + count).try_for_each(|row| target.put(matrix.row(order(row))))?;
            } else {
                target.put(matrix.rows(start, count).data())?;
            }
        } else {
            for slot in 0..count {
                converter.take_row(slot, matrix, order(start + slot));
            }
            let bytes = converter.finish(count).map_err(|(slot, source)| {
                let row = start + slot;
                WriteError::Quantize { id, row, source }
            })?;
            target.put(bytes)?;
        }
        unreturned += count * matrix.row_bytes();
        if GIVE_BACK_BYTES <= unreturned {
            source.give_back(id);
            unreturned = 0;
        }
    }
    Ok(())
}

/// The row of a head in halves order that becomes row `row` in pairs order: `2i` is `i`, `2i + 1` is
/// `i + head_dim / 2`.
fn row_in_halves(row: usize, head_dim: usize) -> usize {
    let (head, place) = (row / head_dim, row % head_dim);
    head * head_dim + place / 2 + (place % 2) * (head_dim / 2)
}

/// The row of a head in pairs order that becomes row `row` in halves order.
fn row_in_pairs(row: usize, head_dim: usize) -> usize {
    let (head, place, half) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + 2 * (place % half) + place / half
}

fn write_vector(
    target: &mut Target,
    matrix: &WeightMatrix,
    order: impl Fn(usize) -> usize,
) -> Result<(), WriteError> {
    let values = matrix.to_f32();
    let bytes: Vec<u8> = (0..values.len()).flat_map(|place| values[order(place)].to_le_bytes()).collect();
    target.put(&bytes)
}

/// Two buffers of one block of rows.
struct Converter {
    dtype: DType,
    n_cols: usize,
    row_bytes: usize,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Converter {
    fn new(tensor: &Planned, rows_at_once: usize) -> Self {
        let n_cols = tensor.shape[1];
        let row_bytes = tensor.dtype.row_bytes(n_cols).expect("the dtype was chosen to divide the row");
        let is_needed = tensor.dtype != tensor.source_dtype;
        let rows = if is_needed { rows_at_once } else { 0 };
        Self {
            dtype: tensor.dtype,
            n_cols,
            row_bytes,
            values: vec![0.0; rows * n_cols],
            bytes: vec![0; rows * row_bytes],
        }
    }

    fn take_row(&mut self, slot: usize, matrix: &WeightMatrix, row: usize) {
        matrix.dequantize_row(row, &mut self.values[slot * self.n_cols..(slot + 1) * self.n_cols]);
    }

    /// Bytes of the first `count` rows; on failure the row that cannot be stored.
    fn finish(&mut self, count: usize) -> Result<&[u8], (usize, blocks::QuantizeError)> {
        let values = &self.values[..count * self.n_cols];
        let bytes = &mut self.bytes[..count * self.row_bytes];
        match blocks::quantize(self.dtype, values, bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => {
                let index = match &error {
                    blocks::QuantizeError::OutOfRange { index, .. } => *index,
                    _ => 0,
                };
                Err((index / self.n_cols, error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_pairs_within_each_head() {
        let order: Vec<usize> = (0..16).map(|row| row_in_halves(row, 8)).collect();
        assert_eq!(order, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        assert!((0..48).all(|row| row_in_pairs(row_in_halves(row, 8), 8) == row));
    }
}
