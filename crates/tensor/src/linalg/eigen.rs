//! Eigenvalues and condition numbers of symmetric matrices: diagnosis, not part of the hot path.

use super::{LinalgError, check_finite, check_len};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd;
use faer::{MatRef, Par};

/// Returns the eigenvalues of a symmetric matrix `[n, n]`, rising. Takes `8 n^2` bytes of scratch.
/// # Errors
/// [`LinalgError::Shape`], [`LinalgError::NotFinite`], [`LinalgError::NoConvergence`].
pub fn symmetric_eigenvalues(values: &[f64], n: usize) -> Result<Vec<f64>, LinalgError> {
    check_len("matrix", values.len(), n, n)?;
    check_finite("matrix", values)?;
    if n == 0 {
        return Ok(Vec::new());
    }
    let scratch =
        evd::self_adjoint_evd_scratch::<f64>(n, evd::ComputeEigenvectors::No, Par::Seq, Default::default());
    let mut eigenvalues = Diag::<f64>::zeros(n);
    evd::self_adjoint_evd(
        MatRef::from_column_major_slice(values, n, n),
        eigenvalues.as_mut(),
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| LinalgError::NoConvergence { n })?;
    let mut found: Vec<f64> = eigenvalues.column_vector().iter().copied().collect();
    found.sort_by(f64::total_cmp);
    Ok(found)
}

/// Returns the condition number in the 2-norm of a symmetric positive semidefinite matrix: largest over
/// smallest eigenvalue; infinite when the smallest is not above zero.
/// # Errors
/// As [`symmetric_eigenvalues`].
pub fn condition_number(values: &[f64], n: usize) -> Result<f64, LinalgError> {
    let eigenvalues = symmetric_eigenvalues(values, n)?;
    let (Some(smallest), Some(largest)) = (eigenvalues.first(), eigenvalues.last()) else {
        return Ok(1.0);
    };
    Ok(if 0.0 < *smallest { largest / smallest } else { f64::INFINITY })
}
