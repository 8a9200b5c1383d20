//! Cholesky factor, solve and inverse of a symmetric positive definite matrix, all inside one buffer.
//!
//! The buffer is read as column-major, which for a symmetric matrix is the same matrix. The factor `L` lies
//! in its lower triangle. Inverting goes through `L^-1` (recursive halves: two triangular solves each) and
//! `L^-T L^-1` (recursive halves: a symmetric and a triangular product each), LAPACK's `potri` in blocks.

use super::{LinalgError, PANEL, check_finite, check_len, par};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatMut, MatRef};

/// Below this size plain loops beat recursion.
const BASE: usize = 32;

/// Cholesky factor of a symmetric positive definite matrix `[n, n]`; `8 n^2` bytes, the caller's buffer.
#[derive(Debug)]
pub struct SpdFactor {
    n: usize,
    values: Vec<f64>,
}

impl SpdFactor {
    /// Factors `values` in place: `[n, n]`, of which the upper triangle (row-major) is read.
    /// # Errors
    /// [`LinalgError::Shape`], [`LinalgError::NotFinite`], [`LinalgError::NotPositiveDefinite`].
    pub fn new(mut values: Vec<f64>, n: usize) -> Result<Self, LinalgError> {
        check_len("matrix", values.len(), n, n)?;
        check_finite("matrix", &values)?;
        if n == 0 {
            return Ok(Self { n, values });
        }
        let scratch = llt::factor::cholesky_in_place_scratch::<f64>(n, par(), Default::default());
        let mut buffer = MemBuffer::new(scratch);
        llt::factor::cholesky_in_place(
            MatMut::from_column_major_slice_mut(&mut values, n, n),
            Default::default(),
            par(),
            MemStack::new(&mut buffer),
            Default::default(),
        )
        .map_err(|llt::factor::LltError::NonPositivePivot { index }| {
            LinalgError::NotPositiveDefinite { n, pivot: index }
        })?;
        Ok(Self { n, values })
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Column `i` of the lower factor from its diagonal down: `L[i.., i]`.
    /// # Panics
    /// When `i` is not below [`Self::n`].
    #[must_use]
    pub fn column(&self, i: usize) -> &[f64] {
        &self.values[i * self.n + i..(i + 1) * self.n]
    }

    fn lower(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.values, self.n, self.n)
    }

    /// Replaces each row `r` of `rhs` `[n_rhs, n]` by the solution of `A x = r`.
    /// # Errors
    /// [`LinalgError::Shape`] when `rhs` does not hold whole rows of `n`.
    pub fn solve_rows(&self, rhs: &mut [f64]) -> Result<(), LinalgError> {
        self.each_rows(rhs, |lower, mut rows| {
            solve_lower_triangular_in_place(lower, rows.rb_mut(), par());
            solve_upper_triangular_in_place(lower.transpose(), rows, par());
        })
    }

    /// Replaces each row `r` of `rhs` `[n_rhs, n]` by `L^-1 r`: the squared norm of the first `p` values is
    /// `r_p' (A_pp)^-1 r_p` of the leading block of size `p`.
    /// # Errors
    /// [`LinalgError::Shape`] when `rhs` does not hold whole rows of `n`.
    pub fn whiten_rows(&self, rhs: &mut [f64]) -> Result<(), LinalgError> {
        self.each_rows(rhs, |lower, rows| solve_lower_triangular_in_place(lower, rows, par()))
    }

    /// Replaces `rhs` `[n, n_rhs]` by `L^-1 rhs`: like [`Self::whiten_rows`] with the right-hand sides as columns.
    /// # Errors
    /// [`LinalgError::Shape`] when `rhs` does not hold `n` whole rows.
    pub fn whiten_cols(&self, rhs: &mut [f64]) -> Result<(), LinalgError> {
        let n_rhs = rhs.len().checked_div(self.n).unwrap_or(0);
        check_len("right-hand side", rhs.len(), self.n, n_rhs)?;
        if n_rhs != 0 {
            let columns = MatMut::from_row_major_slice_mut(rhs, self.n, n_rhs);
            solve_lower_triangular_in_place(self.lower(), columns, par());
        }
        Ok(())
    }

    fn each_rows(
        &self,
        rhs: &mut [f64],
        solve: impl FnOnce(MatRef<'_, f64>, MatMut<'_, f64>),
    ) -> Result<(), LinalgError> {
        let n_rhs = rhs.len().checked_div(self.n).unwrap_or(0);
        check_len("right-hand side", rhs.len(), n_rhs, self.n)?;
        if n_rhs != 0 {
            solve(self.lower(), MatMut::from_column_major_slice_mut(rhs, self.n, n_rhs));
        }
        Ok(())
    }

    /// Natural logarithm of the determinant.
    #[must_use]
    pub fn log_det(&self) -> f64 {
        (0..self.n).map(|i| 2.0 * self.values[i * self.n + i].ln()).sum()
    }

    /// Turns the factor into the full inverse (both triangles), in the same buffer.
    #[must_use]
    pub fn into_inverse(mut self) -> Vec<f64> {
        let n = self.n;
        if n != 0 {
            let mut matrix = MatMut::from_column_major_slice_mut(&mut self.values, n, n);
            invert_lower(matrix.rb_mut());
            let mut panel = Mat::zeros(n.div_ceil(2), PANEL.min(n));
            square_lower(matrix, panel.as_mut());
            mirror(&mut self.values, n);
        }
        self.values
    }
}

/// Replaces the lower triangle `L` by `L^-1`.
fn invert_lower(mut lower: MatMut<'_, f64>) {
    let n = lower.nrows();
    if n <= BASE {
        for j in 0..n {
            lower[(j, j)] = 1.0 / lower[(j, j)];
            for i in j + 1..n {
                let sum: f64 = (j..i).map(|k| lower[(i, k)] * lower[(k, j)]).sum();
                lower[(i, j)] = -sum / lower[(i, i)];
            }
        }
        return;
    }
    let (mut first, _, mut below, second) = lower.split_at_mut(n / 2, n / 2);
    solve_lower_triangular_in_place(second.rb(), below.rb_mut(), par());
    solve_upper_triangular_in_place(first.rb().transpose(), below.rb_mut().transpose_mut(), par());
    for j in 0..below.ncols() {
        below.rb_mut().col_mut(j).iter_mut().for_each(|value| *value = -*value);
    }
    invert_lower(first.rb_mut());
    invert_lower(second);
}

/// Replaces the lower triangle `M` by the lower triangle of `M' M`. `panel`: scratch, at least `[n / 2, 1]`.
fn square_lower(mut lower: MatMut<'_, f64>, mut panel: MatMut<'_, f64>) {
    let n = lower.nrows();
    if n <= BASE {
        for i in 0..n {
            for j in 0..=i {
                let sum: f64 = (i..n).map(|k| lower[(k, i)] * lower[(k, j)]).sum();
                lower[(i, j)] = sum;
            }
        }
        return;
    }
    let (mut first, _, mut below, second) = lower.split_at_mut(n / 2, n / 2);
    square_lower(first.rb_mut(), panel.rb_mut());
    matmul(
        first,
        BlockStructure::TriangularLower,
        Accum::Add,
        below.rb().transpose(),
        BlockStructure::Rectangular,
        below.rb(),
        BlockStructure::Rectangular,
        1.0,
        par(),
    );
    let (n_rows, n_cols) = (below.nrows(), below.ncols());
    for start in (0..n_cols).step_by(panel.ncols()) {
        let width = panel.ncols().min(n_cols - start);
        let mut product = panel.rb_mut().submatrix_mut(0, 0, n_rows, width);
        let mut target = below.rb_mut().submatrix_mut(0, start, n_rows, width);
        matmul(
            product.rb_mut(),
            BlockStructure::Rectangular,
            Accum::Replace,
            second.rb().transpose(),
            BlockStructure::TriangularUpper,
            target.rb(),
            BlockStructure::Rectangular,
            1.0,
            par(),
        );
        target.copy_from(product.rb());
    }
    square_lower(second, panel);
}

/// Copies the lower triangle (column-major) to the upper one, tile by tile to spare the cache.
fn mirror(values: &mut [f64], n: usize) {
    for col_start in (0..n).step_by(PANEL) {
        for row_start in (col_start..n).step_by(PANEL) {
            for col in col_start..(col_start + PANEL).min(n) {
                for row in row_start.max(col + 1)..(row_start + PANEL).min(n) {
                    values[row * n + col] = values[col * n + row];
                }
            }
        }
    }
}
