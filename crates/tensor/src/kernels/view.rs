//! Strided f32 views: the operands of [`super::gemm`].
//!
//! Constructors prove that every element lies in the slice, so kernels may use plain addresses.

/// Where the elements of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl Layout {
    /// # Panics
    /// When rows overlap or do not fit into `len` elements.
    fn with_row_stride(len: usize, n_rows: usize, n_cols: usize, row_stride: usize) -> Self {
        assert!(n_cols <= row_stride || n_rows <= 1, "rows of {n_cols} overlap at stride {row_stride}");
        if 0 < n_rows && 0 < n_cols {
            let end = (n_rows - 1).checked_mul(row_stride).and_then(|last| last.checked_add(n_cols));
            assert!(
                end.is_some_and(|end| end <= len),
                "[{n_rows}, {n_cols}] at stride {row_stride} in {len} values"
            );
        }
        Self { n_rows, n_cols, row_stride, col_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A matrix to read.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) layout: Layout,
}

impl<'a> MatRef<'a> {
    /// Rows that follow each other without gaps.
    /// # Panics
    /// When `data` is too short.
    #[must_use]
    pub fn row_major(data: &'a [f32], n_rows: usize, n_cols: usize) -> Self {
        Self::with_row_stride(data, n_rows, n_cols, n_cols)
    }

    /// Rows that start `row_stride` values apart.
    /// # Panics
    /// When `data` is too short or rows overlap.
    #[must_use]
    pub fn with_row_stride(data: &'a [f32], n_rows: usize, n_cols: usize, row_stride: usize) -> Self {
        Self { data, layout: Layout::with_row_stride(data.len(), n_rows, n_cols, row_stride) }
    }

    /// The same values with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { layout: self.layout.transposed(), ..self }
    }

    /// Rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.layout.n_rows
    }

    /// Columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.layout.n_cols
    }
}

/// A matrix to write.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) layout: Layout,
}

impl<'a> MatMut<'a> {
    /// Rows that follow each other without gaps.
    /// # Panics
    /// When `data` is too short.
    #[must_use]
    pub fn row_major(data: &'a mut [f32], n_rows: usize, n_cols: usize) -> Self {
        Self::with_row_stride(data, n_rows, n_cols, n_cols)
    }

    /// Rows that start `row_stride` values apart; the values between them are left alone.
    /// # Panics
    /// When `data` is too short or rows overlap.
    #[must_use]
    pub fn with_row_stride(data: &'a mut [f32], n_rows: usize, n_cols: usize, row_stride: usize) -> Self {
        let layout = Layout::with_row_stride(data.len(), n_rows, n_cols, row_stride);
        Self { data, layout }
    }

    /// The same values with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { layout: self.layout.transposed(), ..self }
    }
}
