//! FASP (Hu et al. 2025, arXiv 2501.09412): Wanda scores summed over a column, then least squares.
//!
//! The kept columns are re-solved in closed form so that the layer's own dense output comes back
//! (`W* = argmin ||W X - W_S X_S||`, eq. 6), on statistics of the dense model. The paper leaves the size of its
//! diagonal term open; the project's own damping and ridge to the original columns are used.

use super::{InputSource, Linear, Needs, Recovery, Solves, WidthMethod, wanda};
use crate::numeric::NumericError;
use crate::refit::{Damping, FitProblem, refit};
use crate::stats::LayerStats;

/// FASP on MLP neurons.
#[derive(Clone, Copy, Debug)]
pub struct Fasp;

impl WidthMethod for Fasp {
    fn name(&self) -> &'static str {
        "fasp"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn solves(&self) -> Solves {
        Solves::Kept
    }

    fn inputs(&self) -> InputSource {
        InputSource::Dense
    }

    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        Ok(linear.sum_units(&wanda::column_scores(linear, stats)?))
    }

    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError> {
        linear.check(stats, Some(kept))?;
        let own = stats.own_target(linear.weight)?;
        let problem = FitProblem::new(stats.gram()?, &own.cross, linear, Damping::DEFAULT)?;
        Ok(Recovery { weight: refit(&problem, &linear.columns(kept))?, bias: None })
    }
}
