//! Stores matrices `[in, out]` anew as `[out, in]`, in blocks of rows of the result.
//!
//! The source is read with `pread`, not through its mapping, so no page of it becomes resident. Memory: two blocks,
//! [`BLOCK_BYTES`] and a sixteenth of it at most.

use crate::import::scratch::Scratch;
use crate::{Mapped, ModelFileError};
use std::ops::Range;

/// Bytes of the result that are put together at once; at least one row.
const BLOCK_BYTES: usize = 4 << 20;
/// Rows of the source that are read before their values are put in their places.
const ROWS_AT_ONCE: usize = 16;

/// Columns of a matrix in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    /// Where the matrix begins in its file.
    pub(super) offset: u64,
    /// Rows of the source: values in a row of the result.
    pub(super) n_rows: usize,
    /// Values in a row of the source.
    pub(super) stride: usize,
    /// Columns wanted: rows of the result.
    pub(super) columns: Range<usize>,
    /// Bytes of a value: 2 or 4.
    pub(super) value_bytes: usize,
}

/// Appends the columns to `scratch`, each as a row.
pub(super) fn transpose(
    file: &Mapped,
    from: &Columns,
    scratch: &mut Scratch,
) -> Result<Range<usize>, ModelFileError> {
    let &Columns { n_rows, value_bytes, .. } = from;
    let row_bytes = n_rows * value_bytes;
    let place = scratch.begin((row_bytes * from.columns.len()) as u64)?;
    let at_once = (BLOCK_BYTES / row_bytes).clamp(1, from.columns.len().max(1));
    let mut block = vec![0; at_once * row_bytes];
    let mut rows = vec![0; ROWS_AT_ONCE.min(n_rows) * at_once * value_bytes];
    for first in from.columns.clone().step_by(at_once) {
        let n_columns = at_once.min(from.columns.end - first);
        for row in (0..n_rows).step_by(ROWS_AT_ONCE) {
            let count = ROWS_AT_ONCE.min(n_rows - row);
            let part_bytes = n_columns * value_bytes;
            for (nth, part) in rows.chunks_exact_mut(part_bytes).take(count).enumerate() {
                let at = ((row + nth) * from.stride + first) * value_bytes;
                read_exact(file, part, from.offset + at as u64)?;
            }
            let to = Tile { block: &mut block, row_bytes, column: row };
            match value_bytes {
                2 => turn::<2>(&rows, n_columns, count, to),
                _ => turn::<4>(&rows, n_columns, count, to),
            }
        }
        scratch.put(&block[..n_columns * row_bytes])?;
    }
    Ok(place)
}

/// A place in a block of rows.
struct Tile<'b> {
    block: &'b mut [u8],
    row_bytes: usize,
    /// First value of each row that is written.
    column: usize,
}

/// Writes `rows`, `[count, n_columns]`, as columns `to.column..` of the block's rows.
fn turn<const BYTES: usize>(rows: &[u8], n_columns: usize, count: usize, to: Tile<'_>) {
    let (values, _) = rows.as_chunks::<BYTES>();
    for (nth, row) in to.block.chunks_exact_mut(to.row_bytes).take(n_columns).enumerate() {
        let (places, _) = row.as_chunks_mut::<BYTES>();
        for (at, place) in places[to.column..to.column + count].iter_mut().enumerate() {
            *place = values[at * n_columns + nth];
        }
    }
}

fn read_exact(file: &Mapped, mut part: &mut [u8], mut offset: u64) -> Result<(), ModelFileError> {
    while !part.is_empty() {
        let len = file.read_at(part, offset)?;
        if len == 0 {
            // The range was checked against the length at opening.
            file.check_unchanged()?;
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(ModelFileError::Io { path: file.path().to_owned(), source });
        }
        part = &mut part[len..];
        offset += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn columns_become_rows() {
        let dir = tempfile::tempdir().unwrap();
        for (n_rows, stride, columns, value_bytes) in
            [(1, 1, 0..1, 4), (5, 3, 0..3, 2), (40, 7, 2..6, 4), (33, 70_000, 1..69_999, 4), (16, 2, 1..1, 2)]
        {
            let value = |row: usize, column: usize| {
                ((row * stride + column) as u32 * 7 + 1).to_le_bytes()[..value_bytes].to_vec()
            };
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let all = (0..n_rows).flat_map(|row| (0..stride).map(move |column| (row, column)));
            let bytes: Vec<u8> = all.flat_map(|(row, column)| value(row, column)).collect();
            file.write_all(&[9; 3]).unwrap();
            file.write_all(&bytes).unwrap();
            let mapped = Mapped::open(file.path()).unwrap();
            let from = Columns { offset: 3, n_rows, stride, columns: columns.clone(), value_bytes };
            let mut scratch = Scratch::create(dir.path(), 0).unwrap();
            let place = transpose(&mapped, &from, &mut scratch).unwrap();
            let got = scratch.finish().unwrap();
            let want = columns.flat_map(|column| (0..n_rows).map(move |row| (row, column)));
            let want: Vec<u8> = want.flat_map(|(row, column)| value(row, column)).collect();
            assert!(got.bytes()[place] == want[..], "{from:?}");
        }
    }
}
