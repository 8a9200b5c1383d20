//! A place for tests to fail or to stop an operation between any two of its steps.

use std::io;
use std::path::Path;

/// Steps after which a kill must leave a whole set of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants say what is about to happen")]
pub enum Step {
    CreateStaging,
    FillModel,
    DigestModel,
    SyncModel,
    WriteManifest,
    SyncManifest,
    SyncStaging,
    SetAsideDamaged,
    Publish,
    SyncModels,
    Unpublish,
    SyncRemoved,
    DeleteRemoved,
}

/// What happens at a step.
#[derive(Debug)]
pub enum Outcome {
    /// Go on.
    Continue,
    /// The step fails with this error; the operation cleans up and reports it.
    Fail(io::Error),
    /// The operation stops as if the process had been killed: nothing is cleaned up.
    Crash,
}

/// Asked before every step.
pub trait Hook: Send + Sync {
    /// Decides what happens at `step`, which works on `path`.
    fn before(&self, step: Step, path: &Path) -> Outcome;
}

/// Lets everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NoHook;

impl Hook for NoHook {
    fn before(&self, _step: Step, _path: &Path) -> Outcome {
        Outcome::Continue
    }
}
