//! Settings of a service.

use crate::pruning::PruneSettings;
use std::path::PathBuf;

/// Requests that may wait when nobody says otherwise.
pub const DEFAULT_QUEUE_LEN: usize = 16;
/// Requests at work at the same time when nobody says otherwise.
pub const DEFAULT_PARALLEL: usize = 4;

/// What a service does about the device's shortage of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PressureResponse {
    /// It gives up one thing after the other, as long as the shortage lasts.
    #[default]
    GiveUp,
    /// Nothing: for tests, which must not depend on what else the machine does.
    Ignore,
}

/// Settings of a service.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Folder of the store and of jobs at work.
    pub state_dir: PathBuf,
    /// The model to serve: a file, or an id of the store. The newest entry of the store when absent.
    pub model: Option<String>,
    /// A pruned form of the model that guesses ahead: a file, or an id of the store. It changes the speed of answers only; a
    /// model that it cannot guess for answers without it.
    pub draft: Option<String>,
    /// `auto`, a size or a percentage: the bound on the whole process.
    pub memory_budget: String,
    /// Threads that compute; what the device allows when absent.
    pub n_threads: Option<usize>,
    /// `f32` or `int8`: how activations enter products with weights; `int8` when absent.
    pub precision: Option<String>,
    /// Requests that may wait.
    pub queue_len: usize,
    /// Requests at work at the same time; they take turns, token by token.
    pub parallel: usize,
    /// Whether the device's shortage of memory makes the service give things up.
    pub pressure: PressureResponse,
    /// How to prune when the model does not fit; `plan.context_len` is the context that is served.
    pub prune: PruneSettings,
}

impl ServiceOptions {
    /// The defaults, with state in `state_dir`.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            model: None,
            draft: None,
            memory_budget: "auto".to_owned(),
            n_threads: None,
            precision: None,
            queue_len: DEFAULT_QUEUE_LEN,
            parallel: DEFAULT_PARALLEL,
            pressure: PressureResponse::default(),
            prune: PruneSettings::default(),
        }
    }
}
