//! Failures, their exit codes (those of `sysexits.h`) and how they are shown.

use crate::output;
use secateur_service::{ServiceError, error_chain};
use serde_json::json;
use std::io::ErrorKind;
use std::process::ExitCode;

/// Done.
pub(crate) const OK: u8 = 0;
/// The command line or a setting is wrong.
pub(crate) const USAGE: u8 = 64;
/// A model, text or manifest is damaged or of a kind we do not read.
pub(crate) const DATA: u8 = 65;
/// A file or model is not there.
pub(crate) const NO_INPUT: u8 = 66;
/// The budget or the device does not allow it.
pub(crate) const UNAVAILABLE: u8 = 69;
/// Our own fault.
pub(crate) const SOFTWARE: u8 = 70;
/// Reading or writing failed, the disk is full.
pub(crate) const IO: u8 = 74;
/// Try again later.
pub(crate) const TEMPORARY: u8 = 75;
/// Not permitted.
pub(crate) const NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub(crate) const CONFIG: u8 = 78;
/// Stopped by a signal, as shells write it for SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command ends without its result.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    kind: &'static str,
    message: String,
    smallest_budget_bytes: Option<u64>,
}

impl Failure {
    pub(crate) fn new(code: u8, kind: &'static str, message: impl Into<String>) -> Self {
        Self { code, kind, message: message.into(), smallest_budget_bytes: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, "usage", message)
    }

    /// Shows the failure and returns the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        output::note(&format!("secateur: {}", self.message));
        if json {
            let mut object = json!({ "error": self.message, "kind": self.kind });
            if let Some(bytes) = self.smallest_budget_bytes {
                object["action"] = json!("refused");
                object["smallest_budget_bytes"] = json!(bytes);
            }
            // The exit code tells what a closed pipe cannot.
            let _ = output::print(&object.to_string());
        }
        ExitCode::from(self.code)
    }
}

/// Settings are flags here.
fn flag(param: &str) -> String {
    match param {
        "prompt" | "messages" | "calibration" | "text" | "tasks" | "out" => param.to_owned(),
        other => format!("--{}", other.replace('_', "-")),
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        let message = error_chain(&error);
        match error {
            ServiceError::Invalid { param, message } => {
                Self::new(USAGE, "invalid", format!("{}: {message}", flag(&param)))
            }
            ServiceError::PromptTooLong { .. } => Self::new(USAGE, "prompt_too_long", message),
            ServiceError::Data { .. } => Self::new(DATA, "data", message),
            ServiceError::ModelNotFound { .. } => Self::new(
                NO_INPUT,
                "not_found",
                format!("{message}; `secateur models list` shows what there is"),
            ),
            ServiceError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => Self::new(NO_INPUT, "not_found", message),
                ErrorKind::PermissionDenied => Self::new(NO_PERMISSION, "permission", message),
                _ => Self::new(IO, "io", message),
            },
            ServiceError::Refused { smallest_budget_bytes, .. } => {
                Self { smallest_budget_bytes, ..Self::new(UNAVAILABLE, "refused", message) }
            }
            ServiceError::Busy { .. }
            | ServiceError::NotReady { .. }
            | ServiceError::Conflict { .. }
            | ServiceError::ShuttingDown => Self::new(TEMPORARY, "temporary", message),
            ServiceError::Cancelled => Self::new(
                INTERRUPTED,
                "cancelled",
                "stopped; a prune job goes on from its last whole layer when it is run again",
            ),
            ServiceError::JobNotFound { .. } | ServiceError::Internal { .. } => {
                Self::new(SOFTWARE, "internal", message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn exit_codes_follow_sysexits() {
        let io = |kind: ErrorKind| ServiceError::Io { path: PathBuf::from("x"), source: kind.into() };
        let invalid = ServiceError::Invalid { param: "seq_len".into(), message: "0 is not allowed".into() };
        let cases = [
            (invalid, 64, "--seq-len: 0 is not allowed"),
            (ServiceError::Data { path: "m".into(), message: "not GGUF".into() }, 65, "m: not GGUF"),
            (io(ErrorKind::NotFound), 66, "x"),
            (ServiceError::ModelNotFound { id: "q".into() }, 66, "models list"),
            (ServiceError::Refused { message: "small".into(), smallest_budget_bytes: Some(1) }, 69, "small"),
            (ServiceError::Internal { message: "bug".into() }, 70, "bug"),
            (io(ErrorKind::StorageFull), 74, "x"),
            (ServiceError::Conflict { message: "busy".into() }, 75, "busy"),
            (io(ErrorKind::PermissionDenied), 77, "x"),
            (ServiceError::Cancelled, 130, "last whole layer"),
        ];
        for (error, want_code, want) in cases {
            let failure = Failure::from(error);
            assert_eq!(failure.code, want_code, "{failure:?}");
            assert!(failure.message.contains(want), "{failure:?}");
        }
    }
}
