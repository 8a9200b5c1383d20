//! What can go wrong while pruning.

use crate::numeric::NumericError;
use secateur_engine::EngineError;
use secateur_model::{ConfigError, PruneRatio, WeightError};
use std::path::PathBuf;

/// Failure of a prune job. Whatever was done stays in the work folder, so that a rerun goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The caller asked to stop.
    #[error("cancelled; run the same command again to go on from the last whole layer")]
    Cancelled,
    /// There is no such method.
    #[error("unknown method `{name}`, known are {known}")]
    UnknownMethod {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not enough text to calibrate on.
    #[error(
        "calibration text has {got} tokens, at least {needed} are needed: give a longer --calibration file"
    )]
    TooFewTokens {
        /// Tokens there are.
        got: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The ratio would leave a layer without neurons.
    #[error("ratio {asked} cannot be reached: {reason}")]
    Ratio {
        /// What was asked.
        asked: PruneRatio,
        /// Why not.
        reason: String,
    },
    /// The buffers of the method do not fit.
    #[error(
        "pruning this model needs {needed_bytes} bytes of memory, the budget is {budget_bytes}: \
         give --memory-budget {needed_bytes} or more"
    )]
    Budget {
        /// Smallest budget that would do.
        needed_bytes: u64,
        /// Budget given.
        budget_bytes: u64,
    },
    /// A file of the work folder could not be read or written.
    #[error("work file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A weight could not be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The pruned configuration is not a model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was measured cannot be used.
    #[error("measuring: {0}")]
    Measure(#[from] NumericError),
    /// A solve failed in spite of damping.
    #[error("layer {layer_idx}: {what}")]
    Numeric {
        /// Layer.
        layer_idx: usize,
        /// What failed.
        what: String,
    },
}
