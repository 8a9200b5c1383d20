//! Matrix products of row-major slices, in f32 or f64, and sums over their columns.
//!
//! These are the products inside the pruning maths (rank-64 updates, `W G W'`), each a few hundred
//! megaflops; the products over calibration tokens belong to `kernels`, which use all threads.

use super::{LinalgError, check_len, is_shared, par};
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// A row-major matrix as a factor of a product.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a, T> {
    values: &'a [T],
    n_rows: usize,
    n_cols: usize,
    transposed: bool,
}

impl<'a, T> Operand<'a, T> {
    /// `values` as `[n_rows, n_cols]`.
    #[must_use]
    pub fn new(values: &'a [T], n_rows: usize, n_cols: usize) -> Self {
        Self { values, n_rows, n_cols, transposed: false }
    }

    /// The same matrix, transposed in the product (nothing is moved).
    #[must_use]
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn view(self) -> MatRef<'a, T> {
        let stored = MatRef::from_row_major_slice(self.values, self.n_rows, self.n_cols);
        if self.transposed { stored.transpose() } else { stored }
    }

    /// Rows and columns as they enter the product.
    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.n_cols, self.n_rows) } else { (self.n_rows, self.n_cols) }
    }
}

/// What happens to the target of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Product<T> {
    /// `out = alpha * A B`.
    Replace(T),
    /// `out += alpha * A B`.
    Add(T),
}

/// Multiplies `a` by `b` into `out` (row-major).
/// # Errors
/// [`LinalgError::Shape`] when the lengths do not fit.
pub fn multiply<T: ComplexField + Copy>(
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    product: Product<T>,
    out: &mut [T],
) -> Result<(), LinalgError> {
    let ((n_rows, inner), (b_rows, n_cols)) = (a.shape(), b.shape());
    check_len("left factor", a.values.len(), a.n_rows, a.n_cols)?;
    check_len("right factor", b.values.len(), b.n_rows, b.n_cols)?;
    check_len("inner size", inner, b_rows, 1)?;
    check_len("product", out.len(), n_rows, n_cols)?;
    let (accum, alpha) = match product {
        Product::Replace(alpha) => (Accum::Replace, alpha),
        Product::Add(alpha) => (Accum::Add, alpha),
    };
    matmul(MatMut::from_row_major_slice_mut(out, n_rows, n_cols), accum, a.view(), b.view(), alpha, par());
    Ok(())
}

/// Columns whose energies one thread adds up.
const ENERGY_COLUMNS: usize = 512;

/// Returns the sum of the squares of each column of a row-major matrix of rows of `n_cols`, `[n_cols]`; what is beyond the
/// last whole row does not count.
#[must_use]
pub fn column_energies(values: &[f32], n_cols: usize) -> Vec<f64> {
    let mut energies = vec![0.0f64; n_cols];
    let add = |(nth, energies): (usize, &mut [f64])| {
        for row in values.chunks_exact(n_cols) {
            for (energy, &value) in energies.iter_mut().zip(&row[nth * ENERGY_COLUMNS..]) {
                *energy += f64::from(value) * f64::from(value);
            }
        }
    };
    if is_shared() {
        energies.par_chunks_mut(ENERGY_COLUMNS).enumerate().for_each(add);
    } else {
        energies.chunks_mut(ENERGY_COLUMNS).enumerate().for_each(add);
    }
    energies
}
