//! Second-order removal of columns: optimal brain surgeon on the least-squares problem of a projection.
//!
//! For `X` `[r, k]` at the minimum of a quadratic with Hessian `H` (per row of X), taking away the columns M
//! and moving the others to their new optimum raises the squared error by
//! `tr(X_M ((H^-1)_MM)^-1 X_M')`, moves X by `- X_M K` and the inverse by `- H^-1_:M K` with
//! `K = ((H^-1)_MM)^-1 H^-1_M:` (Hassibi & Stork 1992; for groups OSSCAR, arXiv 2403.12983, and ZipLM,
//! arXiv 2302.04089). Weights (X = W) and masks (X = m, one row) go through the same code.
//! Memory: everything happens in the given inverse (`4 k^2` bytes) and coefficients (`4 r k`); besides that
//! panels of `12 * step * (k + r)` bytes. Time about `2/3 k^3 + r k^2` multiply-adds for all columns.

use crate::numeric::{NumericError, check_len};
use crate::refit::FitProblem;
use secateur_tensor::linalg::{LinalgError, Operand, Product, SpdFactor, column_energies, multiply};
use std::ops::ControlFlow;

/// A quadratic at its minimum.
#[derive(Clone, Debug)]
pub struct Quadratic {
    /// `H^-1`, `[k, k]`, as the f32 words of a buffer that held it in f64 before.
    inverse: Vec<f64>,
    /// X, `[r, k]`.
    coefficients: Vec<f32>,
    n_rows: usize,
    n_cols: usize,
}

impl Quadratic {
    /// `factor` of H `[k, k]` and the minimum `coefficients` `[r, k]`. The inverse is formed in the factor's
    /// buffer, narrowed to f32 in place, and the upper half of the buffer is given back.
    /// # Errors
    /// [`NumericError::Shape`].
    pub fn new(factor: SpdFactor, coefficients: Vec<f32>) -> Result<Self, NumericError> {
        let n_cols = factor.n();
        let n_rows = coefficients.len().checked_div(n_cols).unwrap_or(0);
        check_len("coefficients", coefficients.len(), n_rows, n_cols)?;
        let mut inverse = factor.into_inverse();
        let n = inverse.len();
        for at in 0..n {
            // Value `at` is written to the first half of the words that value `at / 2` has left.
            let narrow = (inverse[at] as f32).to_bits();
            bytemuck::cast_slice_mut::<f64, u32>(&mut inverse)[at] = narrow;
        }
        inverse.truncate(n.div_ceil(2));
        inverse.shrink_to_fit();
        Ok(Self { inverse, coefficients, n_rows, n_cols })
    }

    /// The quadratic of a fit over all columns of a projection (recipe step 3): X = optimal weights.
    /// # Errors
    /// [`NumericError::Linalg`].
    pub fn of_weights(problem: &FitProblem<'_>) -> Result<Self, NumericError> {
        let columns: Vec<usize> = (0..problem.n_in()).collect();
        let (coefficients, factor) = problem.solve(&columns)?;
        Self::new(factor, coefficients)
    }

    fn inverse(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.inverse)[..self.n_cols * self.n_cols]
    }
}

/// What to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovalOptions {
    /// Columns of a unit, which leave together.
    pub unit_len: usize,
    /// Units that stay.
    pub keep: usize,
    /// Units removed at once, jointly: 64 neurons are as good as one at a time; 1 for KV groups.
    pub step: usize,
}

/// State after a round of removal.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// Units removed so far.
    pub n_removed: usize,
    /// Squared error added so far.
    pub error: f64,
    /// X on the columns that are left, `[r, left]`.
    pub coefficients: &'a [f32],
}

/// Result of a removal.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// Units that stay, rising.
    pub kept: Vec<usize>,
    /// Units in the order they were removed.
    pub order: Vec<usize>,
    /// `errors[i]`: squared error (fit and ridge) added by removing the first i of `order` when all others
    /// are refitted; `errors[0] = 0`, never falling.
    pub errors: Vec<f64>,
    /// X on the columns that stay, `[r, kept columns]`; f32 updates, so refit it exactly before use.
    pub coefficients: Vec<f32>,
}

impl Removal {
    /// The units that stay when only the first `n_removed` of the order leave, rising.
    #[must_use]
    pub fn kept_after(&self, n_removed: usize) -> Vec<usize> {
        let returned = self.order.iter().skip(n_removed);
        let mut kept: Vec<usize> = self.kept.iter().chain(returned).copied().collect();
        kept.sort_unstable();
        kept
    }
}

/// Removes units until `keep` are left, each round those with the lowest second-order score.
///
/// Score of a unit M: `tr(X_M ((H^-1)_MM)^-1 X_M')`, for one column `||X_j||^2 / (H^-1)_jj`; of equal scores
/// the lower index leaves first. `observe` sees each round and may stop there (cancel, or a bound).
/// # Errors
/// [`NumericError::Range`], [`NumericError::Linalg`] when the inverse is no longer positive definite.
pub fn remove_units(
    mut quadratic: Quadratic,
    options: &RemovalOptions,
    observe: &mut dyn FnMut(&Round<'_>) -> ControlFlow<()>,
) -> Result<Removal, NumericError> {
    let n_units = quadratic.n_cols.checked_div(options.unit_len).unwrap_or(0);
    check_len("units", quadratic.n_cols, n_units, options.unit_len)?;
    let range = |what, value: usize, allowed| Err(NumericError::Range { what, value: value as f64, allowed });
    if n_units < options.keep {
        return range("kept units", options.keep, "at most the units there are");
    }
    if options.step == 0 {
        return range("step", 0, "1 or more");
    }
    let mut left: Vec<usize> = (0..n_units).collect();
    let mut removal =
        Removal { kept: Vec::new(), order: Vec::new(), errors: vec![0.0], coefficients: Vec::new() };
    let mut error = 0.0;
    while options.keep < left.len() {
        let scores = unit_scores(&quadratic, options.unit_len)?;
        let mut chosen: Vec<usize> = (0..left.len()).collect();
        chosen.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        chosen.truncate(options.step.min(left.len() - options.keep));
        for unit_error in eliminate(&mut quadratic, options.unit_len, &chosen)? {
            error += unit_error;
            removal.errors.push(error);
        }
        removal.order.extend(chosen.iter().map(|&at| left[at]));
        chosen.sort_unstable();
        let mut leaving = chosen.iter().copied().peekable();
        let mut at = 0;
        left.retain(|_| {
            at += 1;
            leaving.next_if_eq(&(at - 1)).is_none()
        });
        let round = Round { n_removed: removal.order.len(), error, coefficients: &quadratic.coefficients };
        if observe(&round).is_break() {
            break;
        }
    }
    removal.kept = left;
    removal.coefficients = quadratic.coefficients;
    Ok(removal)
}

/// Squared error of removing each unit alone.
pub(crate) fn unit_scores(quadratic: &Quadratic, unit_len: usize) -> Result<Vec<f64>, NumericError> {
    let n = quadratic.n_cols;
    let inverse = quadratic.inverse();
    if unit_len == 1 {
        let mut scores = column_energies(&quadratic.coefficients, n);
        for (j, score) in scores.iter_mut().enumerate() {
            let pivot = f64::from(inverse[j * n + j]);
            if pivot.is_nan() || pivot <= 0.0 {
                return Err(LinalgError::NotPositiveDefinite { n, pivot: j }.into());
            }
            *score /= pivot;
        }
        return Ok(scores);
    }
    let units: Vec<usize> = (0..n / unit_len.max(1)).collect();
    let score = |&unit: &usize| -> Result<f64, NumericError> {
        let columns: Vec<usize> = (unit * unit_len..(unit + 1) * unit_len).collect();
        let white = whitened(quadratic, &columns)?.1;
        Ok(white.iter().map(|value| value * value).sum())
    };
    units.iter().map(score).collect()
}

/// Factor `L L'` of `(H^-1)_MM`, and `L^-1 X_M'` as rows `[r, M]`.
fn whitened(quadratic: &Quadratic, columns: &[usize]) -> Result<(SpdFactor, Vec<f64>), NumericError> {
    let n = quadratic.n_cols;
    let inverse = quadratic.inverse();
    let mut block = Vec::with_capacity(columns.len() * columns.len());
    for &row in columns {
        block.extend(columns.iter().map(|&column| f64::from(inverse[row * n + column])));
    }
    let factor = SpdFactor::new(block, columns.len())?;
    let mut rows = Vec::with_capacity(quadratic.n_rows * columns.len());
    for row in quadratic.coefficients.chunks_exact(n.max(1)) {
        rows.extend(columns.iter().map(|&column| f64::from(row[column])));
    }
    factor.whiten_rows(&mut rows)?;
    Ok((factor, rows))
}

/// Removes the units `chosen` (positions among those that are left, in order of removal) together; returns
/// the error each adds on top of those before it.
///
/// With `V = L^-1 H^-1_M:` and `U = L^-1 X_M'` the updates are `H^-1 -= V'V` and `X -= U'V`, and `|U|^2` by
/// rows is the error: the leading rows of U belong to the leading columns of M alone.
fn eliminate(quadratic: &mut Quadratic, unit_len: usize, chosen: &[usize]) -> Result<Vec<f64>, NumericError> {
    let n = quadratic.n_cols;
    let leaving: Vec<usize> = chosen.iter().flat_map(|unit| unit * unit_len..(unit + 1) * unit_len).collect();
    let m = leaving.len();
    let (factor, white) = whitened(quadratic, &leaving)?;
    let mut errors = vec![0.0; chosen.len()];
    for row in white.chunks_exact(m) {
        for (error, unit) in errors.iter_mut().zip(row.chunks_exact(unit_len)) {
            *error += unit.iter().map(|value| value * value).sum::<f64>();
        }
    }
    let mut stays = vec![true; n];
    leaving.iter().for_each(|&column| stays[column] = false);
    let staying: Vec<usize> = (0..n).filter(|&column| stays[column]).collect();
    let mut panel = Vec::with_capacity(m * staying.len());
    for &row in &leaving {
        let row = &quadratic.inverse()[row * n..(row + 1) * n];
        panel.extend(staying.iter().map(|&column| f64::from(row[column])));
    }
    factor.whiten_cols(&mut panel)?;
    let panel: Vec<f32> = panel.iter().map(|&value| value as f32).collect();
    let white: Vec<f32> = white.iter().map(|&value| value as f32).collect();

    let left = staying.len();
    let inverse: &mut [f32] = bytemuck::cast_slice_mut(&mut quadratic.inverse);
    compact(inverse, n, &staying, &staying);
    let all_rows: Vec<usize> = (0..quadratic.n_rows).collect();
    compact(&mut quadratic.coefficients, n, &all_rows, &staying);
    quadratic.coefficients.truncate(quadratic.n_rows * left);
    quadratic.n_cols = left;

    let rows = Operand::new(&panel, m, left);
    multiply(rows.t(), rows, Product::Add(-1.0), &mut inverse[..left * left])?;
    let white = Operand::new(&white, quadratic.n_rows, m);
    multiply(white, rows, Product::Add(-1.0), &mut quadratic.coefficients)?;
    Ok(errors)
}

/// Moves the rows and columns that stay to the front of a matrix with `n` columns.
fn compact(values: &mut [f32], n: usize, rows: &[usize], columns: &[usize]) {
    let runs: Vec<&[usize]> = columns.chunk_by(|a, b| a + 1 == *b).collect();
    let mut to = 0;
    for &row in rows {
        for run in &runs {
            let from = row * n + run[0];
            values.copy_within(from..from + run.len(), to);
            to += run.len();
        }
    }
}
