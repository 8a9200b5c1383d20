//! One error for both sides: a code for programs, a sentence for people.

use secateur_service::ServiceError;

/// What a call says about its end; the same numbers in C, Kotlin and Swift.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecateurCode {
    /// It is done.
    Ok = 0,
    /// An argument is null where it must not be, is not UTF-8, is not the JSON that was expected, or is out of range.
    InvalidArgument = 1,
    /// The handle was never given out, or has been freed.
    InvalidHandle = 2,
    /// A call that waits was made from inside a callback.
    Reentrant = 3,
    /// The service has not been started, or has been stopped.
    NotRunning = 4,
    /// The service is running already.
    AlreadyRunning = 5,
    /// No model can answer yet: it is loading, being pruned, released under memory pressure, or there is none.
    NotReady = 6,
    /// The queue is full; try again.
    Busy = 7,
    /// The caller asked to stop.
    Cancelled = 8,
    /// The model cannot be made to fit the memory budget; the message names the smallest that would do.
    Refused = 9,
    /// There is no such model or job.
    NotFound = 10,
    /// The state does not allow it.
    Conflict = 11,
    /// A model file is damaged or of a kind that is not read.
    BadModel = 12,
    /// A file or a socket could not be used.
    Io = 13,
    /// The prompt does not fit the context.
    PromptTooLong = 14,
    /// A mistake of this library; the process may go on.
    Internal = 15,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FfiError {
    /// For programs.
    pub code: SecateurCode,
    /// For people.
    pub message: String,
}

impl FfiError {
    pub(crate) fn new(code: SecateurCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(SecateurCode::InvalidArgument, message)
    }

    pub(crate) fn not_running() -> Self {
        Self::new(SecateurCode::NotRunning, "the service is not running: call start first")
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(SecateurCode::Cancelled, "cancelled")
    }
}

impl From<ServiceError> for FfiError {
    fn from(error: ServiceError) -> Self {
        use SecateurCode as Code;
        let code = match &error {
            ServiceError::Busy { .. } => Code::Busy,
            ServiceError::NotReady { .. } => Code::NotReady,
            ServiceError::ShuttingDown => Code::NotRunning,
            ServiceError::Invalid { .. } => Code::InvalidArgument,
            ServiceError::PromptTooLong { .. } => Code::PromptTooLong,
            ServiceError::ModelNotFound { .. } | ServiceError::JobNotFound { .. } => Code::NotFound,
            ServiceError::Conflict { .. } => Code::Conflict,
            ServiceError::Refused { .. } => Code::Refused,
            ServiceError::Cancelled => Code::Cancelled,
            ServiceError::Data { .. } => Code::BadModel,
            ServiceError::Io { .. } => Code::Io,
            ServiceError::Internal { .. } => Code::Internal,
        };
        Self::new(code, secateur_service::error_chain(&error))
    }
}
