//! What can go wrong while a model runs.

use secateur_model::{ConfigError, WeightError, WeightId};

/// Failure of an engine operation.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The session has no room for more tokens.
    #[error("context is full: {asked} tokens asked for, {free} of {context_len} free")]
    ContextFull {
        /// Tokens that should have been added.
        asked: usize,
        /// Free places.
        free: usize,
        /// Size of the context.
        context_len: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Vocabulary size.
        vocab_size: usize,
    },
    /// Heads of this width cannot be kept so.
    #[error(
        "keys and values of heads with {head_dim} values cannot be kept as {kv_dtype}, which takes them in groups of 32: choose f16"
    )]
    KvDType {
        /// How they should be kept.
        kv_dtype: &'static str,
        /// Values in a head.
        head_dim: usize,
    },
    /// Nothing to run.
    #[error("no tokens given")]
    Empty,
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Two models that are compared know different numbers of tokens.
    #[error(
        "the vocabularies have {vocab_size} and {other} tokens: these models cannot be compared token by token"
    )]
    Vocabulary {
        /// Of one.
        vocab_size: usize,
        /// Of the other.
        other: usize,
    },
    /// The model produced NaN or infinity.
    #[error("{what} are not finite; the model file is damaged or unsuitable")]
    NotFinite {
        /// Which numbers.
        what: &'static str,
    },
    /// A weight is missing or unreadable.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A weight has a shape the configuration does not allow.
    #[error("weight `{id}` is [{n_rows}, {n_cols}], expected [{want_rows}, {want_cols}]")]
    WeightShape {
        /// Which weight.
        id: WeightId,
        /// Rows found.
        n_rows: usize,
        /// Columns found.
        n_cols: usize,
        /// Rows expected.
        want_rows: usize,
        /// Columns expected.
        want_cols: usize,
    },
    /// The configuration is not a model we can run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// tract refused the graph or failed to run it.
    #[error("graph of layer {layer_idx} failed: {message}")]
    Graph {
        /// Layer.
        layer_idx: usize,
        /// tract's words.
        message: String,
    },
}
