//! FLAP (An et al. 2024, arXiv 2312.11983): fluctuation of a column's input, one threshold for the whole
//! model, and a bias that carries the mean of what was removed.
//!
//! WIFV (eq. 4): `score_j = var(z_j) * ||W_:j||^2`, for attention squared once more as the authors' code does.
//! Standardised inside each layer over columns, KV groups averaged over their columns, then pooled (eq. 5);
//! a unit counts by its parameters. Statistics come from the dense model.

use super::{InputSource, Linear, Needs, Recovery, WidthMethod};
use crate::numeric::NumericError;
use crate::stats::{LayerStats, apply};

/// FLAP on MLP neurons and KV groups.
#[derive(Clone, Copy, Debug)]
pub struct Flap;

impl WidthMethod for Flap {
    fn name(&self) -> &'static str {
        "flap"
    }

    fn needs(&self) -> Needs {
        Needs::Moments
    }

    fn inputs(&self) -> InputSource {
        InputSource::Dense
    }

    /// Standardised, so that scores of different layers may be pooled.
    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        linear.check(stats, None)?;
        let mut columns = vec![0.0; linear.n_in];
        for row in linear.weight.chunks_exact(linear.n_in.max(1)) {
            for (sum, &weight) in columns.iter_mut().zip(row) {
                *sum += f64::from(weight) * f64::from(weight);
            }
        }
        for (score, variance) in columns.iter_mut().zip(stats.variance()) {
            *score *= variance;
            if 1 < linear.unit_len {
                *score *= *score;
            }
        }
        standardise(&mut columns);
        let unit_len = linear.unit_len.max(1) as f64;
        Ok(linear.sum_units(&columns).iter().map(|sum| sum / unit_len).collect())
    }

    /// Keeps the columns as they are; the bias is `sum over removed j of W_:j mean(z_j)` (eq. 6).
    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError> {
        linear.check(stats, Some(kept))?;
        let mut removed = stats.mean();
        linear.columns(kept).into_iter().for_each(|column| removed[column] = 0.0);
        let bias = if removed.is_empty() { vec![0.0; linear.n_out] } else { apply(linear.weight, &removed) };
        Ok(Recovery {
            weight: linear.sliced(kept),
            bias: Some(bias.iter().map(|&value| value as f32).collect()),
        })
    }
}

/// Subtracts the mean and divides by the sample deviation; scores without spread become 0.
fn standardise(scores: &mut [f64]) {
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n.max(1.0);
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let deviation = variance.sqrt();
    for score in scores {
        *score = if 0.0 < deviation { (*score - mean) / deviation } else { 0.0 };
    }
}

/// Scores of one projection in the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PooledLayer {
    /// Standardised score of each unit.
    pub scores: Vec<f64>,
    /// Parameters that leave with one unit.
    pub unit_params: u64,
    /// Units that must stay.
    pub floor: usize,
}

/// What the pool keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PooledWidths {
    /// Kept units of each projection, rising.
    pub kept: Vec<Vec<usize>>,
    /// Parameters removed.
    pub removed_params: u64,
}

/// Removes the units with the lowest scores over all projections until about `remove_params` parameters are
/// gone: as close as whole units allow. Of equal scores the earlier projection and lower unit leave first.
/// # Errors
/// [`NumericError::Range`] when a score is NaN, [`NumericError::Unreachable`] when the floors forbid it.
pub fn pool_units(layers: &[PooledLayer], remove_params: u64) -> Result<PooledWidths, NumericError> {
    let mut pool: Vec<(f64, usize, usize)> = Vec::new();
    for (layer_idx, layer) in layers.iter().enumerate() {
        pool.extend(layer.scores.iter().enumerate().map(|(unit, &score)| (score, layer_idx, unit)));
    }
    if let Some(&(value, ..)) = pool.iter().find(|(score, ..)| score.is_nan()) {
        return Err(NumericError::Range { what: "score", value, allowed: "numbers" });
    }
    pool.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut stays: Vec<Vec<bool>> = layers.iter().map(|layer| vec![true; layer.scores.len()]).collect();
    let mut left: Vec<usize> = layers.iter().map(|layer| layer.scores.len()).collect();
    let mut removed_params = 0u64;
    for (_, layer_idx, unit) in pool {
        let layer = &layers[layer_idx];
        // Taking the unit must bring the sum closer to what was asked.
        if remove_params.saturating_sub(removed_params) * 2 < layer.unit_params.max(1) {
            break;
        }
        if layer.floor < left[layer_idx] {
            stays[layer_idx][unit] = false;
            left[layer_idx] -= 1;
            removed_params += layer.unit_params;
        }
    }
    let largest = layers.iter().map(|layer| layer.unit_params).max().unwrap_or(0);
    if removed_params + largest < remove_params {
        return Err(NumericError::Unreachable { asked: remove_params, reached: removed_params });
    }
    let kept = stays.iter().map(|stays| (0..stays.len()).filter(|&unit| stays[unit]).collect()).collect();
    Ok(PooledWidths { kept, removed_params })
}
