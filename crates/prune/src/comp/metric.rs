//! Neuron importance by matrix condition, on the mask Gram matrix `H = (Z'Z) o (W'W)`.
//!
//! H is what Kwon et al. 2022 (arXiv 2204.09656, sec. 3.4) accumulate for mask tuning of an MLP. Two readings
//! of "matrix condition":
//! - (a) componentwise relative condition of the output with respect to mask entry j (Gohberg & Koltracht
//!   1993): `||z_j|| ||w_j|| / ||Y||_F`; comparable across layers.
//! - (c) Stewart's collinearity index (Stewart 1987, sec. 3): `kappa_j = ||a_j|| ||a_j^+|| =
//!   sqrt(H_jj (H^-1)_jj)`, large when a neuron is nearly a combination of others, and the importance that
//!   belongs to it, `1 / (2 (H^-1)_jj)`: half the squared error that dropping j costs when the others' mask
//!   entries are re-tuned.
//!
//! Memory: H takes `8 s^2` bytes for s columns, its inverse the same buffer.

use super::target_or_own;
use crate::methods::Linear;
use crate::numeric::{NumericError, check_len, check_rising};
use crate::refit::Damping;
use crate::select::{Quadratic, Removal, RemovalOptions, remove_units};
use crate::stats::LayerStats;
use secateur_tensor::linalg::{Operand, Product, SpdFactor, multiply, ridge_solve};
use std::ops::ControlFlow;

/// Rows of the mask Gram matrix that are made at once.
const PANEL: usize = 64;

/// Returns `(Z'Z) o (W'W)` on `columns` (rising), `[s, s]`. `gram`: `[k, k]`.
/// # Errors
/// [`NumericError::Shape`], [`NumericError::Range`].
pub fn mask_gram(linear: &Linear<'_>, gram: &[f32], columns: &[usize]) -> Result<Vec<f64>, NumericError> {
    let (k, d, n) = (linear.n_in, linear.n_out, columns.len());
    check_len("Gram matrix", gram.len(), k, k)?;
    check_rising("columns", columns, k)?;
    let pick = |wanted: &[usize]| -> Vec<f32> {
        let row = |row: &[f32]| wanted.iter().map(|&column| row[column]).collect::<Vec<f32>>();
        linear.weight.chunks_exact(k.max(1)).flat_map(row).collect()
    };
    let kept = pick(columns);
    let mut masked = Vec::with_capacity(n * n);
    for rows in columns.chunks(PANEL) {
        let mut weights = vec![0.0f32; rows.len() * n];
        let left = pick(rows);
        let left = Operand::new(&left, d, rows.len()).t();
        multiply(left, Operand::new(&kept, d, n), Product::Replace(1.0), &mut weights)?;
        for (&row, weights) in rows.iter().zip(weights.chunks_exact(n)) {
            let gram = &gram[row * k..(row + 1) * k];
            let entry = |(&column, &weight): (&usize, &f32)| f64::from(gram[column]) * f64::from(weight);
            masked.extend(columns.iter().zip(weights).map(entry));
        }
    }
    Ok(masked)
}

/// Returns `A' vec(T)` on `columns`: `b_j = sum over o of (Z'T)_jo W_oj`.
pub(crate) fn mask_rhs(
    linear: &Linear<'_>,
    cross: &[f32],
    columns: &[usize],
) -> Result<Vec<f64>, NumericError> {
    check_len("cross products", cross.len(), linear.n_in, linear.n_out)?;
    let entry = |&column: &usize| {
        let cross = &cross[column * linear.n_out..(column + 1) * linear.n_out];
        let weights = linear.weight.iter().skip(column).step_by(linear.n_in);
        cross.iter().zip(weights).map(|(&cross, &weight)| f64::from(cross) * f64::from(weight)).sum()
    };
    Ok(columns.iter().map(entry).collect())
}

/// Metric (a) for every unit: `||Z_M W_M'||_F / ||Z W'||_F`, for one column `||z_j|| ||w_j|| / ||Y||_F`;
/// higher means keep.
/// # Errors
/// [`NumericError::Missing`] without Gram, [`NumericError::Shape`].
pub fn condition_scores(linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
    linear.check(stats, None)?;
    let gram = stats.gram()?;
    let output_energy = stats.own_target(linear.weight)?.energy;
    let score = |unit: usize| -> Result<f64, NumericError> {
        let block = mask_gram(linear, gram, &linear.columns(&[unit]))?;
        let energy: f64 = block.iter().sum();
        Ok(if 0.0 < output_energy { (energy.max(0.0) / output_energy).sqrt() } else { 0.0 })
    };
    (0..linear.n_units()).map(score).collect()
}

/// Metric (c) of every unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Collinearity {
    /// `1/2 tr(1' ((H^-1)_MM)^-1 1)`, for one column `1 / (2 (H^-1)_jj)`; higher means keep.
    pub scores: Vec<f64>,
    /// `sqrt(H_jj (H^-1)_jj)`, at least 1; for a unit the root of the mean over its columns. Higher means
    /// more redundant.
    pub indices: Vec<f64>,
}

/// Returns metric (c) for every unit, on the damped mask Gram matrix. Takes `16 k^2` bytes.
/// # Errors
/// [`NumericError::Missing`] without Gram, [`NumericError::Linalg`].
pub fn collinearity(linear: &Linear<'_>, stats: &LayerStats) -> Result<Collinearity, NumericError> {
    linear.check(stats, None)?;
    let (k, unit_len) = (linear.n_in, linear.unit_len);
    let columns: Vec<usize> = (0..k).collect();
    let mut masked = mask_gram(linear, stats.gram()?, &columns)?;
    let lambda = Damping::DEFAULT.lambda(&diagonal(&masked, k));
    (0..k).for_each(|j| masked[j * k + j] += lambda[j]);
    let energies = diagonal(&masked, k);
    let inverse = SpdFactor::new(masked, k)?.into_inverse();
    let mut found = Collinearity { scores: Vec::new(), indices: Vec::new() };
    for unit in 0..linear.n_units() {
        let members = unit * unit_len..(unit + 1) * unit_len;
        let row = |j: usize| inverse[j * k + members.start..j * k + members.end].iter().copied();
        let block: Vec<f64> = members.clone().flat_map(row).collect();
        let mut ones = vec![1.0; unit_len];
        SpdFactor::new(block, unit_len)?.whiten_rows(&mut ones)?;
        found.scores.push(0.5 * ones.iter().map(|value| value * value).sum::<f64>());
        let products: f64 = members.map(|j| energies[j] * inverse[j * k + j]).sum();
        found.indices.push((products / unit_len as f64).sqrt());
    }
    Ok(found)
}

/// What removal in mask space found.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskRemoval {
    /// Kept units, order and error curve.
    pub removal: Removal,
    /// Units removed and variance of the re-tuned mask after each step: COMP's alarm. The first entry that
    /// exceeds the bound says how far this layer may go.
    pub variances: Vec<(usize, f64)>,
}

impl MaskRemoval {
    /// Most units that can leave with the variance within `bound` at every step up to there.
    #[must_use]
    pub fn removable_within(&self, bound: f64) -> usize {
        let within = self.variances.iter().take_while(|(_, variance)| *variance <= bound);
        within.last().map_or(0, |&(n_removed, _)| n_removed)
    }
}

/// Removes units in steps by metric (c), the mask of all others re-solved after each step, until `keep` stay.
/// # Errors
/// [`NumericError::Missing`] without Gram, [`NumericError::Range`], [`NumericError::Linalg`].
pub fn select_by_collinearity(
    linear: &Linear<'_>,
    stats: &LayerStats,
    keep: usize,
    step: usize,
) -> Result<MaskRemoval, NumericError> {
    linear.check(stats, None)?;
    let columns: Vec<usize> = (0..linear.n_in).collect();
    let mut own = None;
    let target = target_or_own(linear, stats, &mut own)?;
    let mut rows = mask_rhs(linear, &target.cross, &columns)?;
    drop(own);
    let masked = mask_gram(linear, stats.gram()?, &columns)?;
    let lambda = Damping::DEFAULT.lambda(&diagonal(&masked, linear.n_in));
    let factor = ridge_solve(masked, &lambda, &vec![1.0; linear.n_in], &mut rows)?;
    let mask = rows.iter().map(|&value| value as f32).collect();
    let options = RemovalOptions { unit_len: linear.unit_len, keep, step };
    let mut variances = Vec::new();
    let removal = remove_units(Quadratic::new(factor, mask)?, &options, &mut |round| {
        let scale: Vec<f64> = round.coefficients.iter().copied().map(f64::from).collect();
        variances.push((round.n_removed, variance(&scale)));
        ControlFlow::Continue(())
    })?;
    Ok(MaskRemoval { removal, variances })
}

/// Diagonal of a matrix `[n, n]`.
pub(crate) fn diagonal(matrix: &[f64], n: usize) -> Vec<f64> {
    (0..n).map(|j| matrix[j * n + j]).collect()
}

/// Population variance; 0 for no values.
pub(crate) fn variance(values: &[f64]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n
}
