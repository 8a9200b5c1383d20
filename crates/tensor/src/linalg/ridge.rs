//! Ridge least squares from normal equations, with the ridge pulling to a prior instead of to zero.

use super::{LinalgError, SpdFactor, check_len};

/// Copies the rows and columns `indices` (rising) of a symmetric f32 matrix `[n, n]` into f64.
/// # Errors
/// [`LinalgError::Shape`], [`LinalgError::Index`].
pub fn gather_symmetric(matrix: &[f32], n: usize, indices: &[usize]) -> Result<Vec<f64>, LinalgError> {
    check_len("matrix", matrix.len(), n, n)?;
    let rising = |pair: &[usize]| pair[0] < pair[1];
    if let Some(pair) = indices.windows(2).find(|pair| !rising(pair)) {
        return Err(LinalgError::Index { index: pair[1], n });
    }
    if let Some(&index) = indices.last().filter(|&&last| n <= last) {
        return Err(LinalgError::Index { index, n });
    }
    let mut gathered = Vec::with_capacity(indices.len() * indices.len());
    for &row in indices {
        let row = &matrix[row * n..(row + 1) * n];
        gathered.extend(indices.iter().map(|&col| f64::from(row[col])));
    }
    Ok(gathered)
}

/// Solves `min_X sum_r ||A x_r - t_r||^2 + (x_r - p_r)' diag(lambda) (x_r - p_r)` for all rows `r` at once.
///
/// `normal`: `A'A`, `[n, n]`, consumed as working memory. `rows`: `[n_rows, n]`, in: `A' t_r`, out: `x_r`.
/// `prior`: `[n_rows, n]`. The solution is `(A'A + diag(lambda))^-1 (A't_r + lambda * p_r)`, which equals
/// `p_r + (A'A + diag(lambda))^-1 (A't_r - A'A p_r)` without the product. Returns the factor of
/// `A'A + diag(lambda)`, whose inverse costs no further memory.
/// # Errors
/// Any [`LinalgError`].
pub fn ridge_solve(
    mut normal: Vec<f64>,
    lambda: &[f64],
    prior: &[f32],
    rows: &mut [f64],
) -> Result<SpdFactor, LinalgError> {
    let n = lambda.len();
    check_len("normal matrix", normal.len(), n, n)?;
    check_len("prior", prior.len(), rows.len(), 1)?;
    for (i, &lambda) in lambda.iter().enumerate() {
        normal[i * n + i] += lambda;
    }
    let factor = SpdFactor::new(normal, n)?;
    let n_rows = rows.len().checked_div(n).unwrap_or(0);
    check_len("right-hand side", rows.len(), n_rows, n)?;
    if n_rows != 0 {
        for (row, prior) in rows.chunks_exact_mut(n).zip(prior.chunks_exact(n)) {
            for ((value, &prior), &lambda) in row.iter_mut().zip(prior).zip(lambda) {
                *value += lambda * f64::from(prior);
            }
        }
        super::check_finite("right-hand side", rows)?;
        factor.solve_rows(rows)?;
    }
    Ok(factor)
}
