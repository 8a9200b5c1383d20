//! Structured magnitude: a unit's importance is the squared length of all weights that would leave with it.
//!
//! The baseline every method is measured against (Li et al. 2017, arXiv 1608.08710, with the L2 norm, summed
//! over the coupled matrices as LLM-Pruner does). It looks at no token and collapses on language models.

use super::{Linear, Needs, Recovery, WidthMethod};
use crate::numeric::{NumericError, check_len};
use crate::stats::LayerStats;
use secateur_tensor::linalg::column_energies;

/// Magnitude of gate row, up row and down column.
#[derive(Clone, Copy, Debug)]
pub struct Magnitude;

impl WidthMethod for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn needs(&self) -> Needs {
        Needs::Weights
    }

    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        linear.check(stats, None)?;
        let mut units = linear.sum_units(&column_energies(linear.weight, linear.n_in));
        for matrix in linear.coupled {
            let run = matrix.len().checked_div(units.len()).unwrap_or(0);
            check_len("coupled matrix", matrix.len(), units.len(), run)?;
            for (sum, rows) in units.iter_mut().zip(matrix.chunks_exact(run.max(1))) {
                *sum += rows.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum::<f64>();
            }
        }
        Ok(units)
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
