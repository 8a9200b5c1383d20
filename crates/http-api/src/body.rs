//! Takes in the body of a request: declared as JSON, not too long, not too slow.

use crate::app::AppState;
use crate::backend::Backend;
use crate::error::{ApiError, Dialect};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;

/// The bytes of a body declared as JSON, not yet parsed.
pub(crate) struct JsonBody(pub(crate) Bytes);

impl<B: Backend> FromRequest<AppState<B>> for JsonBody {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState<B>) -> Result<Self, Response> {
        let dialect = Dialect::of_path(request.uri().path());
        read(request, state).await.map(Self).map_err(|error| error.render(dialect))
    }
}

async fn read<B: Backend>(request: Request, state: &AppState<B>) -> Result<Bytes, ApiError> {
    // A page of another site can send text without asking first, but not JSON.
    let declared = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !declared.is_some_and(is_json) {
        return Err(ApiError::MediaType);
    }
    let options = &state.shared.options;
    // The router carries the limit; axum counts what arrives and does not trust the announced length.
    let read = async {
        // Many long bodies at the same time would not fit a small budget: they take turns.
        let permits = (announced(&request).min(options.max_body_bytes) >> 10) + 1;
        let places = state.shared.bodies.clone();
        let turn = places.acquire_many_owned(u32::try_from(permits).unwrap_or(u32::MAX)).await;
        let body = Bytes::from_request(request, state).await;
        drop(turn);
        body
    };
    match tokio::time::timeout(options.body_timeout, read).await {
        Err(_) => Err(ApiError::Timeout),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(ApiError::TooLarge { max_bytes: options.max_body_bytes })
        }
        Ok(Err(_)) => Err(ApiError::BadJson("the body broke off".to_owned())),
    }
}

/// The length a request announces; the largest one when it announces none.
fn announced(request: &Request) -> usize {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(usize::MAX)
}

/// `application/json`, or a type built on it, with any parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
