//! Wanda-sp: the structured form of Wanda (Sun et al. 2024, arXiv 2306.11695, eq. 1) that FLAP compares with.
//!
//! `score_j = mean over o of |W_oj| * ||z_j||`; a KV group sums its columns. Nothing is compensated.

use super::{Linear, Needs, Recovery, WidthMethod};
use crate::numeric::NumericError;
use crate::stats::LayerStats;

/// Wanda-sp on MLP neurons; the scores of KV groups exist, but removing them is harmful without recovery.
#[derive(Clone, Copy, Debug)]
pub struct WandaSp;

/// `sum over o of |W_oj| * ||z_j||` for every column j.
pub(super) fn column_scores(linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
    linear.check(stats, None)?;
    let mut columns = vec![0.0; linear.n_in];
    for row in linear.weight.chunks_exact(linear.n_in.max(1)) {
        for (sum, weight) in columns.iter_mut().zip(row) {
            *sum += f64::from(weight.abs());
        }
    }
    for (sum, sum_sq) in columns.iter_mut().zip(&stats.sum_sq) {
        *sum *= sum_sq.sqrt();
    }
    Ok(columns)
}

impl WidthMethod for WandaSp {
    fn name(&self) -> &'static str {
        "wanda-sp"
    }

    fn needs(&self) -> Needs {
        Needs::Moments
    }

    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        let n_out = linear.n_out.max(1) as f64;
        Ok(linear.sum_units(&column_scores(linear, stats)?).iter().map(|sum| sum / n_out).collect())
    }

    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError> {
        linear.check(stats, Some(kept))?;
        Ok(Recovery { weight: linear.sliced(kept), bias: None })
    }
}
