//! What can go wrong in the pruning maths.

use secateur_tensor::linalg::LinalgError;

/// Failure of a score, a selection, a fit or an allocation.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum NumericError {
    /// A statistic that the method needs was not collected.
    #[error("{what} was not collected")]
    Missing {
        /// Which statistic.
        what: &'static str,
    },
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
    /// A count or share is outside of what makes sense.
    #[error("{what} is {value}, allowed is {allowed}")]
    Range {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// The widths that exist do not add up to the budget.
    #[error("{asked} parameters cannot be removed: the closest the widths allow is {reached}")]
    Unreachable {
        /// Parameters to remove.
        asked: u64,
        /// Closest that can be removed.
        reached: u64,
    },
    /// A matrix outside of memory could not be read or written.
    #[error("work file of a matrix: {message}")]
    Unreadable {
        /// What the system says.
        message: String,
    },
    /// A linear system could not be solved.
    #[error(transparent)]
    Linalg(#[from] LinalgError),
}

/// Checks a length against a shape.
pub(crate) fn check_len(
    what: &'static str,
    got: usize,
    rows: usize,
    cols: usize,
) -> Result<(), NumericError> {
    let want = rows.saturating_mul(cols);
    if want == got { Ok(()) } else { Err(NumericError::Shape { what, want, got }) }
}

/// Checks that indices rise and stay below `n`.
pub(crate) fn check_rising(what: &'static str, indices: &[usize], n: usize) -> Result<(), NumericError> {
    let bad = |value: usize, allowed| Err(NumericError::Range { what, value: value as f64, allowed });
    if let Some(pair) = indices.windows(2).find(|pair| pair[1] <= pair[0]) {
        return bad(pair[1], "rising indices");
    }
    match indices.last() {
        Some(&last) if n <= last => bad(last, "indices inside of the layer"),
        _ => Ok(()),
    }
}
