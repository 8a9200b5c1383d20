//! From the errors of the rooms below to those of the service.

use crate::ServiceError;
use secateur_engine::EngineError;
use secateur_generate::GenerateError;
use secateur_memory::{BudgetError, PlanError, ProbeError};
use secateur_prune::PruneError;
use secateur_store::StoreError;
use secateur_tokenizer::TokenizerError;
use std::error::Error;
use std::path::Path;

/// An error and its causes in one line.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Transparent variants repeat the words of their cause.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The content of `path` is not what it should be.
pub(crate) fn data_error(path: &Path, error: &dyn Error) -> ServiceError {
    let text = error_chain(error);
    let name = path.display().to_string();
    // Some errors name the file themselves.
    let message = text.strip_prefix(&name).map_or(text.as_str(), |rest| rest.trim_start_matches([':', ' ']));
    ServiceError::Data { path: path.to_owned(), message: message.to_owned() }
}

pub(crate) fn io_error(path: &Path, source: std::io::Error) -> ServiceError {
    ServiceError::Io { path: path.to_owned(), source }
}

pub(crate) fn invalid(param: &str, message: impl Into<String>) -> ServiceError {
    ServiceError::Invalid { param: param.to_owned(), message: message.into() }
}

pub(crate) fn internal(error: &dyn Error) -> ServiceError {
    ServiceError::Internal { message: error_chain(error) }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { path, source } => Self::Io { path, source },
            StoreError::NoSpace { ref path, .. } => Self::Io {
                path: path.clone(),
                source: std::io::Error::new(std::io::ErrorKind::StorageFull, error.to_string()),
            },
            StoreError::NotFound { id } | StoreError::BadId { text: id } => Self::ModelNotFound { id },
            StoreError::InUse { .. } => Self::Conflict { message: error.to_string() },
            StoreError::Manifest { ref path, .. }
            | StoreError::Version { ref path, .. }
            | StoreError::Damaged { ref path, .. }
            | StoreError::Model { ref path, .. } => data_error(path, &error),
        }
    }
}

impl From<BudgetError> for ServiceError {
    fn from(error: BudgetError) -> Self {
        invalid("memory_budget", error.to_string())
    }
}

impl From<ProbeError> for ServiceError {
    fn from(error: ProbeError) -> Self {
        internal(&error)
    }
}

impl From<PlanError> for ServiceError {
    fn from(error: PlanError) -> Self {
        match &error {
            PlanError::Refused(refusal) => Self::Refused {
                message: error.to_string(),
                smallest_budget_bytes: Some(refusal.smallest_budget_bytes),
            },
            PlanError::Context { .. } => invalid("context_len", error.to_string()),
            PlanError::KvDType { .. } => invalid("kv_dtype", error.to_string()),
            PlanError::DType(_) => invalid("dtype", error.to_string()),
            PlanError::Ratio { .. } => invalid("ratio", error.to_string()),
            PlanError::Config(_) | PlanError::Mismatch { .. } => internal(&error),
        }
    }
}

impl From<PruneError> for ServiceError {
    fn from(error: PruneError) -> Self {
        match error {
            PruneError::Cancelled => Self::Cancelled,
            PruneError::Budget { needed_bytes, .. } => {
                Self::Refused { message: error.to_string(), smallest_budget_bytes: Some(needed_bytes) }
            }
            PruneError::TooFewTokens { .. } => invalid("calibration", error.to_string()),
            PruneError::UnknownMethod { .. } => invalid("method", error.to_string()),
            PruneError::Ratio { .. } => invalid("ratio", error.to_string()),
            PruneError::Io { path, source } => Self::Io { path, source },
            PruneError::Engine(error) => error.into(),
            other => internal(&other),
        }
    }
}

impl From<EngineError> for ServiceError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Cancelled,
            other => internal(&other),
        }
    }
}

impl From<GenerateError> for ServiceError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Param(error) => invalid(error.field, format!("must be {}", error.allowed)),
            GenerateError::EmptyPrompt => invalid("prompt", "has no tokens"),
            GenerateError::PromptTooLong { prompt_tokens, context_len } => {
                Self::PromptTooLong { prompt_tokens, context_len }
            }
            GenerateError::Model(error) => error.into(),
            GenerateError::Grammar(error) => invalid("response_format", error.to_string()),
            GenerateError::NothingAllowed => invalid("logit_bias", error.to_string()),
            other => internal(&other),
        }
    }
}

/// What a tokenizer refuses is the client's text or the model's template.
pub(crate) fn text_error(param: &str, error: &TokenizerError) -> ServiceError {
    invalid(param, error_chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn chains_name_every_cause_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(error_chain(&error), "outer: disk on fire");
        let error = PruneError::Engine(EngineError::Empty);
        assert_eq!(error_chain(&error), "no tokens given");
    }

    #[test]
    fn files_are_named_once() {
        let error = std::io::Error::other("/tmp/x.gguf: too short");
        let ServiceError::Data { message, .. } = data_error(Path::new("/tmp/x.gguf"), &error) else {
            panic!()
        };
        assert_eq!(message, "too short");
    }
}
