//! Second-order selection with weight refit: OSSCAR (Meng et al. 2024, arXiv 2403.12983) and Tyr-the-Pruner
//! (arXiv 2503.09657) on one projection, with the ridge to the original columns.

use super::{Linear, Needs, Recovery, Solves, WidthMethod};
use crate::numeric::NumericError;
use crate::refit::{Damping, FitProblem, refit};
use crate::select::{Quadratic, RemovalOptions, Round, remove_units, unit_scores};
use crate::stats::{LayerStats, TargetStats};
use std::ops::ControlFlow;

/// Neurons removed at once.
pub const NEURON_STEP: usize = 64;

/// Selection and refit against the target of the statistics, or the layer's own output when there is none.
#[derive(Clone, Copy, Debug)]
pub struct SecondOrder {
    /// Ridge of selection and refit.
    pub damping: Damping,
}

impl SecondOrder {
    /// As the default method uses it.
    pub const REFIT: Self = Self { damping: Damping::REFIT };
}

/// Returns the `keep` units of `unit_len` columns that stay, rising. Nothing but the factor and the weights is in memory, so the
/// matrices of the problem may lie elsewhere. `observe` may stop the selection early.
pub(crate) fn select_units(
    problem: &FitProblem<'_>,
    unit_len: usize,
    keep: usize,
    observe: &mut dyn FnMut(&Round<'_>) -> ControlFlow<()>,
) -> Result<Vec<usize>, NumericError> {
    let options = RemovalOptions { unit_len, keep, step: step_of(unit_len) };
    Ok(remove_units(Quadratic::of_weights(problem)?, &options, observe)?.kept)
}

/// Units removed at once: many of the neurons, one of the KV groups.
pub(crate) fn step_of(unit_len: usize) -> usize {
    if unit_len == 1 { NEURON_STEP } else { 1 }
}

/// Runs `work` with the cross products of the target, or of the layer's own output.
fn with_cross<T>(
    damping: Damping,
    linear: &Linear<'_>,
    stats: &LayerStats,
    work: impl FnOnce(&FitProblem<'_>) -> Result<T, NumericError>,
) -> Result<T, NumericError> {
    linear.check(stats, None)?;
    let own: TargetStats;
    let target = match &stats.target {
        Some(_) => stats.target()?,
        None => {
            own = stats.own_target(linear.weight)?;
            &own
        }
    };
    work(&FitProblem::new(stats.gram()?, &target.cross, linear, damping)?)
}

impl WidthMethod for SecondOrder {
    fn name(&self) -> &'static str {
        "second-order"
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn solves(&self) -> Solves {
        Solves::All
    }

    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        with_cross(self.damping, linear, stats, |problem| {
            unit_scores(&Quadratic::of_weights(problem)?, linear.unit_len)
        })
    }

    fn select(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        keep: usize,
    ) -> Result<Vec<usize>, NumericError> {
        with_cross(self.damping, linear, stats, |problem| {
            select_units(problem, linear.unit_len, keep, &mut |_| ControlFlow::Continue(()))
        })
    }

    fn damping_by_rows(&self) -> Option<Damping> {
        Some(self.damping)
    }

    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError> {
        linear.check(stats, Some(kept))?;
        with_cross(self.damping, linear, stats, |problem| {
            Ok(Recovery { weight: refit(problem, &linear.columns(kept))?, bias: None })
        })
    }
}
