//! A matrix of f32 that is read a few rows at a time, from memory or from wherever else it lies.
//!
//! The maths asks for rows and never for the whole, so that a Gram matrix may lie in a file while the factor that is
//! made of it is in memory. What is computed is the same either way, bit by bit.

use crate::numeric::{NumericError, check_len};
use std::fmt::Debug;
use std::io;

/// Rows that are read at once.
pub(crate) const PANEL: usize = 64;

/// A matrix outside of memory.
pub trait RowStore: Debug + Send + Sync {
    /// Fills `out` with whole rows from `first` on.
    /// # Errors
    /// The operating system's error.
    fn read_rows(&self, first: usize, out: &mut [f32]) -> io::Result<()>;

    /// Replaces whole rows from `first` on.
    /// # Errors
    /// The operating system's error; always where the matrix is read-only.
    fn write_rows(&self, first: usize, rows: &[f32]) -> io::Result<()>;
}

/// A matrix in memory, row-major, or outside of it.
#[derive(Clone, Copy, Debug)]
pub enum MatrixView<'a> {
    /// All values.
    Memory(&'a [f32]),
    /// Rows on demand.
    Stored(&'a dyn RowStore),
}

impl<'a> From<&'a [f32]> for MatrixView<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::Memory(values)
    }
}

impl<'a> From<&'a Vec<f32>> for MatrixView<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::Memory(values)
    }
}

impl MatrixView<'_> {
    /// Checks the size of a matrix in memory; a store answers for its own.
    pub(crate) fn check(&self, what: &'static str, n_rows: usize, n_cols: usize) -> Result<(), NumericError> {
        match self {
            Self::Memory(values) => check_len(what, values.len(), n_rows, n_cols),
            Self::Stored(_) => Ok(()),
        }
    }

    /// The rows `first..first + n_rows` of `n_cols` values; `buffer` holds them when they are not in memory.
    pub(crate) fn rows<'b>(
        &'b self,
        (first, n_rows): (usize, usize),
        n_cols: usize,
        buffer: &'b mut Vec<f32>,
    ) -> Result<&'b [f32], NumericError> {
        match self {
            Self::Memory(values) => Ok(&values[first * n_cols..(first + n_rows) * n_cols]),
            Self::Stored(store) => {
                buffer.resize(n_rows * n_cols, 0.0);
                store.read_rows(first, buffer).map_err(|error| unreadable(&error))?;
                Ok(buffer)
            }
        }
    }
}

pub(crate) fn unreadable(error: &io::Error) -> NumericError {
    NumericError::Unreadable { message: error.to_string() }
}

/// The panels of a matrix with `n_rows` rows: first row and number of rows.
pub(crate) fn panels(n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    panels_of(PANEL, n_rows)
}

/// The same with panels of `panel_len` rows.
pub(crate) fn panels_of(panel_len: usize, n_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n_rows).step_by(panel_len).map(move |first| (first, panel_len.min(n_rows - first)))
}

/// Copies the rows and columns `columns` (rising) of a symmetric matrix `[n, n]` into f64.
pub(crate) fn gather(matrix: &MatrixView<'_>, n: usize, columns: &[usize]) -> Result<Vec<f64>, NumericError> {
    crate::numeric::check_rising("kept columns", columns, n)?;
    matrix.check("Gram matrix", n, n)?;
    let mut gathered = Vec::with_capacity(columns.len() * columns.len());
    let mut buffer = Vec::new();
    let mut left = columns;
    for (first, n_rows) in panels(n) {
        let (wanted, rest) = left.split_at(left.partition_point(|&column| column < first + n_rows));
        left = rest;
        if wanted.is_empty() {
            continue;
        }
        let rows = matrix.rows((first, n_rows), n, &mut buffer)?;
        for row in wanted {
            let row = &rows[(row - first) * n..(row - first + 1) * n];
            gathered.extend(columns.iter().map(|&column| f64::from(row[column])));
        }
    }
    Ok(gathered)
}
