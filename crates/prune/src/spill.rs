//! Hidden states of the calibration set on disk: they pass through memory a window at a time.
//!
//! A stream is a file of `n_rows` rows of `hidden_size` little-endian f32. Memory cost: the caller's window.

use bytemuck::{cast_slice, cast_slice_mut};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

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
