//! One enum of everything a request can fail with, and its two renderings: the OpenAI error object on `/v1` and the
//! llama-server routes, RFC 9457 problem details on the native ones.
//!
//! No message repeats a prompt or a path of the machine.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secateur_service::ServiceError;
use serde_json::{Value, json};

/// Which clients read the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// `application/problem+json`.
    Native,
}

impl Dialect {
    /// The dialect spoken on a path.
    pub(crate) fn of_path(path: &str) -> Self {
        if path == "/api" || path.starts_with("/api/") { Self::Native } else { Self::OpenAi }
    }
}

/// Why a request was not answered as asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The body is no JSON object.
    #[error("the body is not a JSON object: {0}")]
    BadJson(String),
    /// A field has a wrong type or value.
    #[error("`{param}` must be {expected}")]
    BadParam {
        /// Path of the field in the body.
        param: String,
        /// What is allowed, in words.
        expected: String,
    },
    /// The service does not like a field.
    #[error("`{param}`: {message}")]
    Invalid {
        /// Name of the field.
        param: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// A documented field that this server does not honour.
    #[error("`{param}` is not supported: {why}")]
    Unsupported {
        /// Path of the field in the body.
        param: String,
        /// Why not, and what works instead.
        why: String,
    },
    /// The prompt does not fit.
    #[error("{message}")]
    ContextLength {
        /// Field that holds the prompt.
        param: &'static str,
        /// How long it is and how long it may be.
        message: String,
    },
    /// No key, or an unknown one.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// No such thing.
    #[error("{what} does not exist")]
    NotFound {
        /// What kind of thing, never more than the caller said.
        what: &'static str,
        /// Short code for programs.
        code: &'static str,
    },
    /// The route knows other methods.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// The state of things does not allow it now.
    #[error("{0}")]
    Conflict(String),
    /// The plan cannot be made, or the job not be done: the reason is for the user.
    #[error("{message}")]
    Refused {
        /// Why, with the way out.
        message: String,
        /// The smallest budget that would do.
        smallest_budget_bytes: Option<u64>,
    },
    /// The body is too long.
    #[error("the body is larger than {max_bytes} bytes")]
    TooLarge {
        /// Limit.
        max_bytes: usize,
    },
    /// The body is not declared as JSON.
    #[error("the header content-type must be application/json")]
    MediaType,
    /// The body did not come in time.
    #[error("the body did not arrive in time")]
    Timeout,
    /// Too much to do; come back later.
    #[error("the server is busy, try again later")]
    Busy {
        /// When to come back.
        retry_after_s: u64,
    },
    /// There is no model to answer yet.
    #[error("{0}")]
    NotReady(String),
    /// The server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The model or the server failed; details are in the log.
    #[error("the server could not do this; its log says why")]
    Internal,
}

/// Seconds after which a loading or pruning server is worth another try.
const RETRY_NOT_READY_S: u64 = 5;

/// How a kind of error is told: status, OpenAI type, code, title.
struct Kind(StatusCode, &'static str, Option<&'static str>, &'static str);

impl ApiError {
    /// A field of a wrong type or value.
    pub(crate) fn bad_param(param: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::BadParam { param: param.into(), expected: expected.into() }
    }

    /// A documented field that is not honoured.
    pub(crate) fn unsupported(param: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), why: why.into() }
    }

    /// No model with this name.
    pub(crate) const MODEL_NOT_FOUND: Self = Self::NotFound { what: "the model", code: "model_not_found" };

    /// Names the field that holds the prompt in errors about it.
    pub(crate) fn about_prompt(self, param: &'static str) -> Self {
        match self {
            Self::ContextLength { message, .. } => Self::ContextLength { param, message },
            other => other,
        }
    }

    fn kind(&self) -> Kind {
        const INVALID: &str = "invalid_request_error";
        const UNAVAILABLE: &str = "unavailable_error";
        match self {
            Self::BadJson(_) => Kind(StatusCode::BAD_REQUEST, INVALID, Some("invalid_json"), "Invalid JSON"),
            Self::BadParam { .. } | Self::Invalid { .. } => {
                Kind(StatusCode::BAD_REQUEST, INVALID, Some("invalid_value"), "Invalid value")
            }
            Self::Unsupported { .. } => {
                Kind(StatusCode::BAD_REQUEST, INVALID, Some("unsupported_parameter"), "Unsupported parameter")
            }
            Self::ContextLength { .. } => {
                Kind(StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded"), "Prompt too long")
            }
            Self::Unauthorized(_) => Kind(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                Some("invalid_api_key"),
                "Not authenticated",
            ),
            Self::Forbidden(_) => Kind(StatusCode::FORBIDDEN, "permission_error", None, "Forbidden"),
            Self::NotFound { code, .. } => {
                Kind(StatusCode::NOT_FOUND, "not_found_error", Some(code), "Not found")
            }
            Self::MethodNotAllowed => Kind(
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
                "Method not allowed",
            ),
            Self::Conflict(_) => Kind(StatusCode::CONFLICT, "conflict_error", None, "Conflict"),
            Self::Refused { .. } => {
                Kind(StatusCode::UNPROCESSABLE_ENTITY, INVALID, Some("refused"), "Refused")
            }
            Self::TooLarge { .. } => {
                Kind(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("body_too_large"), "Body too large")
            }
            Self::MediaType => Kind(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("content_type"),
                "Not declared as JSON",
            ),
            Self::Timeout => Kind(StatusCode::REQUEST_TIMEOUT, INVALID, Some("timeout"), "Body too slow"),
            Self::Busy { .. } => Kind(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Some("busy"), "Busy"),
            Self::NotReady(_) => {
                Kind(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Some("not_ready"), "Not ready")
            }
            Self::ShuttingDown => {
                Kind(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Some("shutting_down"), "Shutting down")
            }
            Self::Internal => Kind(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, "Internal error"),
        }
    }

    /// Status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.kind().0
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::BadParam { param, .. } | Self::Invalid { param, .. } | Self::Unsupported { param, .. } => {
                Some(param)
            }
            Self::ContextLength { param, .. } => Some(param),
            Self::NotFound { code: "model_not_found", .. } => Some("model"),
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Busy { retry_after_s } => Some(*retry_after_s),
            Self::NotReady(_) | Self::ShuttingDown => Some(RETRY_NOT_READY_S),
            _ => None,
        }
    }

    /// The OpenAI error object, for answers and for streams.
    pub(crate) fn openai_body(&self) -> Value {
        let Kind(_, kind, code, _) = self.kind();
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }

    /// The problem details object.
    pub(crate) fn problem_body(&self) -> Value {
        let Kind(status, _, code, title) = self.kind();
        let mut body = json!({
            "type": "about:blank", "title": title, "status": status.as_u16(), "detail": self.to_string(),
        });
        if let Some(code) = code {
            body["code"] = code.into();
        }
        if let Some(param) = self.param() {
            body["param"] = param.into();
        }
        if let Self::Refused { smallest_budget_bytes: Some(bytes), .. } = self {
            body["smallest_budget_bytes"] = (*bytes).into();
        }
        body
    }

    /// The answer.
    pub(crate) fn render(&self, dialect: Dialect) -> Response {
        let status = self.status();
        let mut response = match dialect {
            Dialect::OpenAi => (status, Json(self.openai_body())).into_response(),
            Dialect::Native => {
                let problem = [(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))];
                (status, problem, Json(self.problem_body())).into_response()
            }
        };
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::Busy { retry_after, .. } => {
                Self::Busy { retry_after_s: retry_after.as_secs().max(1) }
            }
            ServiceError::NotReady { .. } => Self::NotReady(message),
            // What is cancelled while its client still listens is cancelled by the shutdown.
            ServiceError::ShuttingDown | ServiceError::Cancelled => Self::ShuttingDown,
            ServiceError::Invalid { param, message } => Self::Invalid { param, message },
            ServiceError::PromptTooLong { .. } => Self::ContextLength { param: "messages", message },
            ServiceError::ModelNotFound { .. } => Self::MODEL_NOT_FOUND,
            ServiceError::JobNotFound { .. } => Self::NotFound { what: "the job", code: "job_not_found" },
            ServiceError::Conflict { message } => Self::Conflict(message),
            ServiceError::Refused { message, smallest_budget_bytes } => {
                Self::Refused { message, smallest_budget_bytes }
            }
            ServiceError::Data { .. } | ServiceError::Io { .. } | ServiceError::Internal { .. } => {
                // The message may name files: it is for the log.
                tracing::error!(error = message, "the service failed");
                Self::Internal
            }
        }
    }
}

/// An error as the OpenAI routes answer it.
#[derive(Debug)]
pub(crate) struct OpenAiError(pub(crate) ApiError);

/// An error as the native routes answer it.
#[derive(Debug)]
pub(crate) struct NativeError(pub(crate) ApiError);

impl<E: Into<ApiError>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<ApiError>> From<E> for NativeError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        self.0.render(Dialect::OpenAi)
    }
}

impl IntoResponse for NativeError {
    fn into_response(self) -> Response {
        self.0.render(Dialect::Native)
    }
}
