//! Every pruning method behind two small traits, so that rivals run through the same pipeline as COMP.
//!
//! A width method narrows one output projection at a time: `down_proj` (unit = one neuron) or `o_proj`
//! (unit = the columns of one KV group). It says what it needs to know, scores the units, selects those that
//! stay and recovers the loss in what is left. A [`DepthMethod`] names whole layers to remove.
//! Pure: no files, no engine; the pipeline streams tokens, fills [`LayerStats`] and applies the result.

mod depth;
mod fasp;
mod flap;
mod magnitude;
mod second_order;
mod wanda;

pub use depth::{DepthMethod, LossWithout};
pub use fasp::Fasp;
pub use flap::{Flap, PooledLayer, PooledWidths, pool_units};
pub use magnitude::Magnitude;
pub use second_order::{NEURON_STEP, SecondOrder};
pub(crate) use second_order::{select_units, step_of};
pub use wanda::WandaSp;

use crate::comp::Comp;
use crate::numeric::{NumericError, check_len, check_rising};
use crate::refit::Damping;
use crate::stats::LayerStats;

/// An output projection whose inputs are removed in units of `unit_len` neighbouring columns.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// `[n_out, n_in]`.
    pub weight: &'a [f32],
    /// Output width d.
    pub n_out: usize,
    /// Input width k.
    pub n_in: usize,
    /// Columns of one unit: 1 for MLP neurons, `heads_per_kv_group * head_dim` for KV groups.
    pub unit_len: usize,
    /// Matrices whose rows leave together with the columns: gate and up, or q, k and v. Each holds
    /// [`Self::n_units`] equal runs of rows, in order. Empty unless the method needs [`Needs::Weights`].
    pub coupled: &'a [&'a [f32]],
}

impl<'a> Linear<'a> {
    /// A projection without coupled matrices.
    /// # Errors
    /// [`NumericError::Shape`] when the weight has not this shape or `unit_len` does not divide `n_in`.
    pub fn new(weight: &'a [f32], n_out: usize, n_in: usize, unit_len: usize) -> Result<Self, NumericError> {
        check_len("weight", weight.len(), n_out, n_in)?;
        check_len("units", n_in, n_in.checked_div(unit_len).unwrap_or(0), unit_len)?;
        Ok(Self { weight, n_out, n_in, unit_len, coupled: &[] })
    }

    /// Removable units.
    #[must_use]
    pub fn n_units(&self) -> usize {
        self.n_in.checked_div(self.unit_len).unwrap_or(0)
    }

    /// Columns of the units `kept` (rising).
    #[must_use]
    pub fn columns(&self, kept: &[usize]) -> Vec<usize> {
        unit_range(kept, self.unit_len)
    }

    /// The weight with only the columns of `kept`, `[n_out, kept columns]`.
    #[must_use]
    pub fn sliced(&self, kept: &[usize]) -> Vec<f32> {
        let columns = self.columns(kept);
        let row = |row: &'a [f32]| columns.iter().map(move |&column| row[column]).collect::<Vec<_>>();
        self.weight.chunks_exact(self.n_in.max(1)).flat_map(row).collect()
    }

    /// Sum of the scores of each unit's columns.
    #[must_use]
    pub fn sum_units(&self, columns: &[f64]) -> Vec<f64> {
        columns.chunks_exact(self.unit_len.max(1)).map(|unit| unit.iter().sum()).collect()
    }

    /// Checks that statistics and kept units belong to this projection.
    pub(crate) fn check(&self, stats: &LayerStats, kept: Option<&[usize]>) -> Result<(), NumericError> {
        check_len("weight", self.weight.len(), self.n_out, self.n_in)?;
        check_len("input statistics", stats.n_in, self.n_in, 1)?;
        check_len("output statistics", stats.n_out, self.n_out, 1)?;
        kept.map_or(Ok(()), |kept| check_rising("kept units", kept, self.n_units()))
    }
}

/// Rows or columns of the units `units`, of `unit_len` each.
pub(crate) fn unit_range(units: &[usize], unit_len: usize) -> Vec<usize> {
    units.iter().flat_map(|unit| unit * unit_len..(unit + 1) * unit_len).collect()
}

/// What a method must know, each kind including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// The weights, [`Linear::coupled`] among them, and no token at all.
    Weights,
    /// Sums of z and z squared.
    Moments,
    /// Also `Z'Z`.
    Gram,
    /// Also the sums of a target that comes from the dense model.
    Target,
}

/// Whose system of inputs a method factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Solves {
    /// None: it scores and slices.
    Nothing,
    /// That of the columns that stay.
    Kept,
    /// That of all columns.
    All,
}

/// Which model the statistics are taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputSource {
    /// The dense model: all layers may be measured in one pass.
    Dense,
    /// The model whose earlier layers are pruned already.
    PrunedPrefix,
}

/// What is left of a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// `[n_out, kept columns]`.
    pub weight: Vec<f32>,
    /// `[n_out]`, to be added to the output.
    pub bias: Option<Vec<f32>>,
}

/// A method that narrows layers.
pub trait WidthMethod: Sync {
    /// Short name, for reports and messages.
    fn name(&self) -> &'static str;

    /// What has to be collected.
    fn needs(&self) -> Needs;

    /// What is factored in selection and recovery, which decides how much memory they take.
    fn solves(&self) -> Solves {
        Solves::Nothing
    }

    /// Where it is collected.
    fn inputs(&self) -> InputSource {
        InputSource::PrunedPrefix
    }

    /// The ridge of a method whose selection and refit go through [`crate::refit::FitProblem`] alone, so that the Gram
    /// matrix may lie outside of memory.
    fn damping_by_rows(&self) -> Option<Damping> {
        None
    }

    /// Returns the importance of each unit, `[n_units]`; higher means keep.
    /// # Errors
    /// [`NumericError`] when statistics are missing or a system cannot be solved.
    fn scores(&self, linear: &Linear<'_>, stats: &LayerStats) -> Result<Vec<f64>, NumericError>;

    /// Returns the `keep` units that stay, rising.
    /// # Errors
    /// As [`Self::scores`]; [`NumericError::Range`] when `keep` exceeds the units.
    fn select(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        keep: usize,
    ) -> Result<Vec<usize>, NumericError> {
        top_units(&self.scores(linear, stats)?, keep)
    }

    /// Returns the narrowed projection, compensated in the method's way.
    /// # Errors
    /// [`NumericError`] when statistics are missing or a system cannot be solved.
    fn recover(
        &self,
        linear: &Linear<'_>,
        stats: &LayerStats,
        kept: &[usize],
    ) -> Result<Recovery, NumericError>;
}

/// All width methods, COMP first.
pub static WIDTH_METHODS: [&dyn WidthMethod; 8] = [
    &Comp::COLLINEARITY,
    &Comp::CONDITION,
    &Comp::CONDITION_ONLY,
    &SecondOrder::REFIT,
    &WandaSp,
    &Flap,
    &Fasp,
    &Magnitude,
];

/// Returns the `keep` units with the highest scores, rising; of equal scores the lower index stays.
/// # Errors
/// [`NumericError::Range`] when `keep` exceeds the units or a score is NaN.
pub fn top_units(scores: &[f64], keep: usize) -> Result<Vec<usize>, NumericError> {
    let value = keep as f64;
    if scores.len() < keep {
        return Err(NumericError::Range {
            what: "kept units",
            value,
            allowed: "at most the units there are",
        });
    }
    if let Some(&value) = scores.iter().find(|score| score.is_nan()) {
        return Err(NumericError::Range { what: "score", value, allowed: "numbers" });
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(keep);
    order.sort_unstable();
    Ok(order)
}
