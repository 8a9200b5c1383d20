//! What the service refuses or cannot do.

use std::path::PathBuf;
use std::time::Duration;

/// Failure of an operation of the service or of `ops`.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The queue is full.
    #[error("all {queue_len} places in the queue are taken; try again in {} s", retry_after.as_secs())]
    Busy {
        /// Places in the queue.
        queue_len: usize,
        /// When a place should be free.
        retry_after: Duration,
    },
    /// No model can answer at the moment.
    #[error("no model is ready: {message}")]
    NotReady {
        /// What is going on, in words.
        message: String,
    },
    /// The service drains.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// A setting is wrong.
    #[error("`{param}`: {message}")]
    Invalid {
        /// Name of the setting, as users write it.
        param: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A prompt leaves no room for an answer.
    #[error(
        "the prompt needs {prompt_tokens} tokens at least, but the context holds {context_len} with one to generate"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Size of the context.
        context_len: usize,
    },
    /// There is no such model.
    #[error("no model `{id}`")]
    ModelNotFound {
        /// What was asked for.
        id: String,
    },
    /// There is no such job.
    #[error("no job {id}")]
    JobNotFound {
        /// What was asked for.
        id: u64,
    },
    /// The state does not allow it.
    #[error("{message}")]
    Conflict {
        /// Why not.
        message: String,
    },
    /// The model cannot be made to fit.
    #[error("{message}")]
    Refused {
        /// Why not, with the smallest budget that would do.
        message: String,
        /// Smallest feasible budget.
        smallest_budget_bytes: Option<u64>,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A model file or another input is damaged or of a kind we do not read.
    #[error("{path}: {message}")]
    Data {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Something that must not happen did.
    #[error("internal error: {message}")]
    Internal {
        /// What.
        message: String,
    },
}
