//! What lies in files while a job runs: hidden states of the calibration set, which pass through memory a window
//! at a time, and the large sums of a projection when the budget is small.
//!
//! A stream is a file of `n_rows` rows of `hidden_size` little-endian f32. Memory cost: the caller's window.

use crate::matrix::RowStore;
use bytemuck::{cast_slice, cast_slice_mut};
use secateur_model::{WeightError, WeightId, WeightSource};
use secateur_tensor::WeightMatrix;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// One file of hidden states.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    hidden_size: usize,
}

impl Spill {
    /// Opens the stream at `path`, creating it when it is not there.
    pub(crate) fn open(path: &Path, hidden_size: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, hidden_size })
    }

    fn offset(&self, row: usize) -> u64 {
        (row * self.hidden_size * size_of::<f32>()) as u64
    }

    /// Fills `out` with the rows from `row` on.
    pub(crate) fn read(&self, row: usize, out: &mut [f32]) -> io::Result<()> {
        self.file.read_exact_at(cast_slice_mut(out), self.offset(row))
    }

    /// Writes `rows` from `row` on.
    pub(crate) fn write(&self, row: usize, rows: &[f32]) -> io::Result<()> {
        self.file.write_all_at(cast_slice(rows), self.offset(row))
    }

    /// Makes everything written so far survive a crash.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A matrix of f32 in a file. Nothing of it is in memory, and it need not survive a crash.
#[derive(Debug)]
pub(crate) struct DiskMatrix {
    file: File,
    n_cols: usize,
}

impl DiskMatrix {
    /// An empty matrix with rows of `n_cols` in the file at `path`, whatever was there before.
    pub(crate) fn create(path: &Path, n_cols: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self { file, n_cols })
    }

    fn offset(&self, row: usize) -> u64 {
        (row * self.n_cols * size_of::<f32>()) as u64
    }
}

impl RowStore for DiskMatrix {
    fn read_rows(&self, first: usize, out: &mut [f32]) -> io::Result<()> {
        self.file.read_exact_at(cast_slice_mut(out), self.offset(first))
    }

    fn write_rows(&self, first: usize, rows: &[f32]) -> io::Result<()> {
        self.file.write_all_at(cast_slice(rows), self.offset(first))
    }
}

/// A weight of a model as a matrix of f32: rows are decoded when they are asked for, and the pages they come from
/// are given back.
pub(crate) struct WeightRows {
    source: Arc<dyn WeightSource>,
    id: WeightId,
    weight: WeightMatrix,
}

impl WeightRows {
    pub(crate) fn new(source: Arc<dyn WeightSource>, id: WeightId) -> Result<Self, WeightError> {
        let weight = source.require(id)?;
        Ok(Self { source, id, weight })
    }
}

impl std::fmt::Debug for WeightRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WeightRows").field(&self.id).finish()
    }
}

impl RowStore for WeightRows {
    fn read_rows(&self, first: usize, out: &mut [f32]) -> io::Result<()> {
        for (nth, row) in out.chunks_exact_mut(self.weight.n_cols()).enumerate() {
            self.weight.dequantize_row(first + nth, row);
        }
        self.source.give_back(self.id);
        Ok(())
    }

    fn write_rows(&self, _first: usize, _rows: &[f32]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "weights are read-only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::open(&dir.path().join("h"), 3).unwrap();
        let rows: Vec<f32> = (0..12).map(|value| value as f32 * 0.5).collect();
        spill.write(0, &rows).unwrap();
        spill.write(1, &[9.0, 8.0, 7.0]).unwrap();
        spill.sync().unwrap();
        let mut out = vec![0.0; 6];
        spill.read(1, &mut out).unwrap();
        assert_eq!(out, [9.0, 8.0, 7.0, 3.0, 3.5, 4.0]);
        assert!(spill.read(3, &mut out).is_err(), "reading past the end must fail");
    }
}
