//! Dense linear algebra for pruning: symmetric positive definite systems in f64, products, eigenvalues.
//!
//! Everything runs on the calling thread, or inside of [`on_threads`] on its threads. The result is the same bytes for
//! any number of them: products are shared out by rows and columns, never along a sum.
//! Matrices are row-major slices; a symmetric matrix is its own transpose, so the order does not matter there.
//!
//! Memory: [`SpdFactor`] works inside the caller's buffer of `8 n^2` bytes, from factor to inverse; beyond it
//! only panels of `8 * n * 64` bytes are taken. Eigenvalues need a second buffer of `8 n^2` bytes.

mod eigen;
mod product;
mod ridge;
mod spd;
#[cfg(test)]
mod tests;

pub use eigen::{condition_number, symmetric_eigenvalues};
pub use product::{Operand, Product, column_energies, multiply};
pub use ridge::{gather_symmetric, ridge_solve};
pub use spd::SpdFactor;

use faer::Par;

/// Runs `work`, whose linear algebra then uses `n_threads` threads. They are started for it and end with it, because faer
/// keeps buffers as large as the last cache level for each thread that multiplies. Where threads cannot be started,
/// `work` runs on the calling one.
pub fn on_threads<T: Send>(n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let name = |_| "solve".to_owned();
    match rayon::ThreadPoolBuilder::new().num_threads(n_threads.max(1)).thread_name(name).build() {
        Ok(pool) => pool.install(work),
        Err(_) => work(),
    }
}

/// Whether the calling thread is one of several of [`on_threads`].
fn is_shared() -> bool {
    rayon::current_thread_index().is_some() && 1 < rayon::current_num_threads()
}

/// How faer shares work out: over the threads of [`on_threads`], or not at all.
fn par() -> Par {
    if is_shared() { Par::rayon(0) } else { Par::Seq }
}

/// Columns taken at once where a temporary copy is needed.
const PANEL: usize = 64;

/// Why a matrix could not be worked on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinalgError {
    /// A slice has not the length its shape asks for.
    #[error("{what}: {want} values expected, {got} given")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// Values the shape asks for.
        want: usize,
        /// Values given.
        got: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what} holds NaN or infinity at value {at}")]
    NotFinite {
        /// Which argument.
        what: &'static str,
        /// Position in the slice.
        at: usize,
    },
    /// The matrix is not positive definite to working precision.
    #[error("matrix of size {n} is not positive definite: pivot {pivot} is not above zero")]
    NotPositiveDefinite {
        /// Rows of the matrix.
        n: usize,
        /// First pivot that failed.
        pivot: usize,
    },
    /// The eigenvalue iteration did not converge.
    #[error("eigenvalues of a matrix of size {n} did not converge")]
    NoConvergence {
        /// Rows of the matrix.
        n: usize,
    },
    /// An index points outside of the matrix, or the indices do not rise.
    #[error("index {index} is out of order or not below {n}")]
    Index {
        /// The index.
        index: usize,
        /// Rows of the matrix.
        n: usize,
    },
}

/// Checks a length; the product is checked because the sizes may come from a file.
pub(crate) fn check_len(what: &'static str, got: usize, rows: usize, cols: usize) -> Result<(), LinalgError> {
    let want = rows.saturating_mul(cols);
    if want == got { Ok(()) } else { Err(LinalgError::Shape { what, want, got }) }
}

/// Refuses NaN and infinity, which a factorisation would smear over the whole result.
/// # Errors
/// [`LinalgError::NotFinite`] with the first position.
pub fn check_finite(what: &'static str, values: &[f64]) -> Result<(), LinalgError> {
    // The sum over a chunk is finite exactly when all are (or overflows, which is then looked at in detail).
    for (chunk_idx, chunk) in values.chunks(4096).enumerate() {
        if !chunk.iter().map(|value| value * 0.0).sum::<f64>().is_finite()
            && let Some(at) = chunk.iter().position(|value| !value.is_finite())
        {
            return Err(LinalgError::NotFinite { what, at: chunk_idx * 4096 + at });
        }
    }
    Ok(())
}
