//! A weight matrix over bytes that somebody else owns: usually a mapped file.

use crate::DType;
use bytes::Bytes;

/// Why bytes are not a matrix.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    /// A row does not divide into whole blocks of the dtype.
    #[error("rows of {n_cols} values do not divide into {dtype} blocks of {}", dtype.block_len())]
    RowBlocks {
        /// Storage type.
        dtype: DType,
        /// Values in a row.
        n_cols: usize,
    },
    /// The byte count does not belong to the shape.
    #[error("[{n_rows}, {n_cols}] in {dtype}: {want} bytes expected, {got} given")]
    Size {
        /// Storage type.
        dtype: DType,
        /// Rows.
        n_rows: usize,
        /// Values in a row.
        n_cols: usize,
        /// Bytes the shape needs.
        want: usize,
        /// Bytes given.
        got: usize,
    },
}

/// A row-major matrix `[n_rows, n_cols]` = `[out, in]` in its storage dtype. Cloning shares the bytes.
///
/// The constructor proves `data.len() == n_rows * row_bytes`, so kernels may rely on it.
#[derive(Clone, Debug)]
pub struct WeightMatrix {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    row_bytes: usize,
    data: Bytes,
}

impl WeightMatrix {
    /// Wraps `data` as a matrix.
    /// # Errors
    /// [`MatrixError`] when shape, dtype and byte count do not belong together.
    pub fn new(dtype: DType, n_rows: usize, n_cols: usize, data: Bytes) -> Result<Self, MatrixError> {
        let row_bytes = dtype.row_bytes(n_cols).ok_or(MatrixError::RowBlocks { dtype, n_cols })?;
        let want = n_rows.checked_mul(row_bytes).ok_or(MatrixError::RowBlocks { dtype, n_cols })?;
        if want != data.len() {
            return Err(MatrixError::Size { dtype, n_rows, n_cols, want, got: data.len() });
        }
        Ok(Self { dtype, n_rows, n_cols, row_bytes, data })
    }

    /// Storage type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Output features.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All bytes.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The bytes of one row.
    /// # Panics
    /// When `row` is not below [`Self::n_rows`].
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.data[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// The rows `start..start + count` as a matrix over the same bytes.
    /// # Panics
    /// When they are not all there.
    #[must_use]
    pub fn rows(&self, start: usize, count: usize) -> Self {
        let data = self.data.slice(start * self.row_bytes..(start + count) * self.row_bytes);
        Self { n_rows: count, data, ..self.clone() }
    }

    /// Writes row `row` as f32 into `out`, which holds [`Self::n_cols`] values.
    /// # Panics
    /// When `row` or the length of `out` is off.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        crate::blocks::dequantize(self.dtype, self.row(row), out);
    }

    /// The whole matrix as f32, row-major.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_rows * self.n_cols];
        crate::blocks::dequantize(self.dtype, &self.data, &mut out);
        out
    }
}
