//! COMP (Xu et al. 2025, arXiv 2501.15255): layers by redundancy, neurons by matrix condition, mask tuning.
//!
//! The paper's exact formulas are not public; this is the reading that fits all that is known of it. One
//! object carries the last two stages, the mask Gram matrix `H = (Z'Z) o (W'W)` of [`metric`]: with
//! `a_j = vec(z_j w_j')` the output under a mask m is `A m`, and `H = A'A`.
//! 1. [`LayerImportance`]: cosine between what goes into a layer and what comes out.
//! 2. [`NeuronMetric`]: condition of the output with respect to one mask entry, or Stewart's collinearity.
//! 3. [`mask`]: the kept entries re-solved by least squares, their variance bounded, folded into the columns.
//!
//! [`ladder`] goes beyond the paper: it chooses the kind of recovery on held-out tokens.

pub mod ladder;
mod layers;
pub mod mask;
pub mod metric;

pub use layers::LayerImportance;

use crate::methods::{Linear, Needs, Recovery, Solves, WidthMethod, step_of, top_units};
use crate::numeric::NumericError;
use crate::stats::{LayerStats, TargetStats};
use mask::MaskTuning;

/// How a neuron's importance is read from the mask Gram matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeuronMetric {
    /// Componentwise condition of the output: [`metric::condition_scores`].
    Condition,
    /// Stewart's collinearity, removed step by step with the mask re-solved: [`metric::select_by_collinearity`].
    Collinearity,
}

/// COMP on the units of one projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comp {
    name: &'static str,
    neuron_metric: NeuronMetric,
    tuning: Option<MaskTuning>,
}

impl Comp {
    /// Collinearity and mask tuning.
    pub const COLLINEARITY: Self =
        Self { name: "comp", neuron_metric: NeuronMetric::Collinearity, tuning: Some(MaskTuning::DEFAULT) };
    /// Condition and mask tuning.
    pub const CONDITION: Self = Self {
        name: "comp-condition",
        neuron_metric: NeuronMetric::Condition,
        tuning: Some(MaskTuning::DEFAULT),
    };
    /// Condition, nothing recovered: what selection alone is worth.
    pub const CONDITION_ONLY: Self =
        Self { name: "condition", neuron_metric: NeuronMetric::Condition, tuning: None };
}

/// The target of the statistics, or the layer's own output when there is none.
pub(crate) fn target_or_own<'a>(
    linear: &Linear<'_>,
    stats: &'a LayerStats,
    own: &'a mut Option<TargetStats>,
) -> Result<&'a TargetStats, NumericError> {
    if stats.target.is_some() {
        return stats.target();
    }
    Ok(own.insert(stats.own_target(linear.weight)?))
}

impl WidthMethod for Comp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn solves(&self) -> Solves {
        match (self.neuron_metric, self.tuning) {
            (NeuronMetric::Collinearity, _) => Solves::All,
            (NeuronMetric::Condition, Some(_)) => Solves::Kept,
            (NeuronMetric::Condition, None) => Solves::Nothing,
        }
    }

    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError> {
        match self.neuron_metric {
            NeuronMetric::Condition => metric::condition_scores(linear, stats),
            NeuronMetric::Collinearity => Ok(metric::collinearity(linear, stats)?.scores),
        }
    }

    fn select(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        keep: usize,
    ) -> Result<Vec<usize>, NumericError> {
        match self.neuron_metric {
            NeuronMetric::Condition => top_units(&self.scores(linear, stats)?, keep),
            NeuronMetric::Collinearity => {
                Ok(metric::select_by_collinearity(linear, stats, keep, step_of(linear.unit_len))?
                    .removal
                    .kept)
            }
        }
    }

    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError> {
        linear.check(stats, Some(kept))?;
        let mut weight = linear.sliced(kept);
        if let Some(tuning) = &self.tuning {
            let mut own = None;
            let target = target_or_own(linear, stats, &mut own)?;
            let tuned = mask::tune(linear, stats.gram()?, &target.cross, kept, tuning)?;
            mask::fold(&mut weight, &tuned.scale)?;
        }
        Ok(Recovery { weight, bias: None })
    }
}
