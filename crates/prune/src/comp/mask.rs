//! Mask tuning: one scale per kept column, by least squares, with a bound on their variance.
//!
//! `min over m of ||A_S m - vec(T)||^2 + sum of lambda_j (m_j - 1)^2` (Kwon et al. 2022, arXiv 2204.09656,
//! sec. 3.4, where the damping is one number and the solver LSMR). The target may be anything: student inputs
//! differ from the teacher's, so the right-hand side is general. A scale is folded into its column and costs
//! nothing at run time. COMP keeps the variance of the mask in a range to avoid over-fitting: while it is
//! above the bound the ridge grows, and when even a strong ridge does not help the layer is left alone.

use super::metric::{diagonal, mask_gram, mask_rhs, variance};
use crate::methods::Linear;
use crate::numeric::{NumericError, check_len};
use crate::refit::Damping;
use secateur_tensor::linalg::ridge_solve;

/// Factor by which the ridge grows from try to try.
const RIDGE_GROWTH: f64 = 4.0;
/// Strongest ridge, as a multiple of the first: at the default damping ten times the energy of a column.
const MAX_RIDGE_FACTOR: f64 = 1024.0;

/// Settings of mask tuning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskTuning {
    /// Ridge to 1, relative to the diagonal of the mask Gram matrix.
    pub damping: Damping,
    /// Largest variance of the mask that is believed. A healthy one has 0.001 to 0.005.
    pub variance_bound: f64,
}

impl MaskTuning {
    /// What works on real layers.
    pub const DEFAULT: Self = Self { damping: Damping::DEFAULT, variance_bound: 0.05 };
}

/// A tuned mask.
#[derive(Clone, Debug, PartialEq)]
pub struct TunedMask {
    /// Scale of each kept column; all 1 when tuning stopped.
    pub scale: Vec<f64>,
    /// Variance of the scales; when tuning stopped, that of the last try.
    pub variance: f64,
    /// By how much the ridge had to grow.
    pub ridge_factor: f64,
    /// Whether the bound was met.
    pub outcome: TuningOutcome,
}

/// How tuning ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TuningOutcome {
    /// The variance is within the bound.
    Tuned,
    /// It stayed above: this layer should not lose as much, or not be tuned.
    Stopped,
}

/// Tunes the mask of the kept units (rising). `gram`: `Z'Z`, `[k, k]`; `cross`: `Z'T`, `[k, d]`.
/// Takes `8 s^2 + 4 s d` bytes for s kept columns.
/// # Errors
/// [`NumericError::Shape`], [`NumericError::Range`], [`NumericError::Linalg`].
pub fn tune(
    linear: &Linear<'_>,
    gram: &[f32],
    cross: &[f32],
    kept: &[usize],
    tuning: &MaskTuning,
) -> Result<TunedMask, NumericError> {
    let columns = linear.columns(kept);
    let ones = vec![1.0f32; columns.len()];
    let rhs = mask_rhs(linear, cross, &columns)?;
    let mut ridge_factor = 1.0;
    loop {
        // Made anew for each try: tries are rare, and the solve works inside of it.
        let masked = mask_gram(linear, gram, &columns)?;
        let mut lambda = tuning.damping.lambda(&diagonal(&masked, columns.len()));
        lambda.iter_mut().for_each(|lambda| *lambda *= ridge_factor);
        let mut scale = rhs.clone();
        ridge_solve(masked, &lambda, &ones, &mut scale)?;
        let variance = variance(&scale);
        if variance <= tuning.variance_bound {
            return Ok(TunedMask { scale, variance, ridge_factor, outcome: TuningOutcome::Tuned });
        }
        if MAX_RIDGE_FACTOR <= ridge_factor {
            let scale = vec![1.0; columns.len()];
            return Ok(TunedMask { scale, variance, ridge_factor, outcome: TuningOutcome::Stopped });
        }
        ridge_factor *= RIDGE_GROWTH;
    }
}

/// Multiplies each column of `weight` `[d, s]` by its scale.
/// # Errors
/// [`NumericError::Shape`] when `weight` is not whole rows of `scale`.
pub fn fold(weight: &mut [f32], scale: &[f64]) -> Result<(), NumericError> {
    let n_rows = weight.len().checked_div(scale.len()).unwrap_or(0);
    check_len("weight", weight.len(), n_rows, scale.len())?;
    for row in weight.chunks_exact_mut(scale.len().max(1)) {
        for (value, scale) in row.iter_mut().zip(scale) {
            *value = (f64::from(*value) * scale) as f32;
        }
    }
    Ok(())
}
