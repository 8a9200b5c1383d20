//! What to cut: ratios, masks and plans. Deciding lives in `memory`, doing in `prune`.

use crate::{Footprint, KvDType, LayerConfig, LayerIdx};
use secateur_tensor::DType;

/// Share of decoder-layer matrix parameters removed, in `0.0..1.0`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct PruneRatio(f64);

/// A ratio outside `0.0..1.0`.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("prune ratio {0} is not in 0.0..1.0")]
pub struct RatioError(pub f64);

impl PruneRatio {
    /// Nothing removed.
    pub const ZERO: Self = Self(0.0);

    /// Checks the range.
    /// # Errors
    /// [`RatioError`] when `value` is not in `0.0..1.0`.
    pub fn new(value: f64) -> Result<Self, RatioError> {
        if (0.0..1.0).contains(&value) { Ok(Self(value)) } else { Err(RatioError(value)) }
    }

    /// The share as a number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

impl std::fmt::Display for PruneRatio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

/// Which units of a linear stay; true = keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeuronMask(Vec<bool>);

/// A set of kept units that is not a mask.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("kept units must be strictly ascending and below {n_units}")]
pub struct MaskError {
    /// Units in the linear.
    pub n_units: usize,
}

impl NeuronMask {
    /// A mask that keeps everything.
    #[must_use]
    pub fn keep_all(n_units: usize) -> Self {
        Self(vec![true; n_units])
    }

    /// A mask that keeps the units in `kept`, strictly ascending.
    /// # Errors
    /// [`MaskError`] when they are not ascending or out of range.
    pub fn from_kept(n_units: usize, kept: &[usize]) -> Result<Self, MaskError> {
        let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || kept.last().is_some_and(|&last| n_units <= last) {
            return Err(MaskError { n_units });
        }
        let mut keep = vec![false; n_units];
        for &unit in kept {
            keep[unit] = true;
        }
        Ok(Self(keep))
    }

    /// Keep flags.
    #[must_use]
    pub fn as_slice(&self) -> &[bool] {
        &self.0
    }

    /// Indices that stay, ascending.
    #[must_use]
    pub fn kept(&self) -> Vec<usize> {
        self.0.iter().enumerate().filter_map(|(unit, &keep)| keep.then_some(unit)).collect()
    }

    /// How many stay.
    #[must_use]
    pub fn n_kept(&self) -> usize {
        self.0.iter().filter(|&&keep| keep).count()
    }
}

/// How free the pruner is in spreading the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PlanPolicy {
    /// Widths per layer as measured damage says; needs a runtime that reads per-layer widths.
    #[default]
    Quality,
    /// One width for all layers: loads in any stock runtime.
    Compatible,
}

impl PlanPolicy {
    /// Name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quality => "quality",
            Self::Compatible => "compatible",
        }
    }

    /// The policy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Quality, Self::Compatible].into_iter().find(|policy| policy.name() == name)
    }
}

/// What a plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanAction {
    /// The model fits as it is.
    Untouched,
    /// The model must be pruned first.
    Prune,
}

/// A decision: what to cut, what it will need, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct PrunePlan {
    /// Whether anything is cut.
    pub action: PlanAction,
    /// Freedom of the pruner.
    pub policy: PlanPolicy,
    /// Share of decoder-layer parameters to remove.
    pub ratio: PruneRatio,
    /// Storage dtype of the result's matrices; `None` keeps the source's.
    pub dtype: Option<DType>,
    /// Storage dtype of token table and output head when they are stored anew before anything is cut.
    pub table_dtype: Option<DType>,
    /// Layers to remove whole, ascending; may be left to the pruner's measurements (empty).
    pub layers_to_remove: Vec<LayerIdx>,
    /// Planned shape of every remaining layer. With [`PlanPolicy::Quality`] the pruner may move
    /// width between layers at the same number of parameters.
    pub layers: Vec<LayerConfig>,
    /// Longest context the plan has memory for.
    pub context_len: usize,
    /// How keys and values are kept.
    pub kv_dtype: KvDType,
    /// What the untouched model would need.
    pub base_footprint: Footprint,
    /// What the result will need.
    pub footprint: Footprint,
    /// Expected perplexity of the result divided by that of the base model, read off curves measured
    /// on the reference model; a rough guide, not a promise.
    pub predicted_perplexity_factor: f64,
    /// The reasoning, in one or two sentences a user can read.
    pub reason: String,
}
