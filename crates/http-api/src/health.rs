//! `/livez`, `/readyz` and `/health`: for watchdogs, load balancers and scripts that wait.

use crate::app::AppState;
use crate::backend::Backend;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use secateur_service::api::Readiness;
use serde_json::{Value, json};

/// The process answers.
pub(crate) async fn livez() -> &'static str {
    "ok\n"
}

/// 200 when requests are answered, else 503 with the reason.
pub(crate) async fn readyz<B: Backend>(State(state): State<AppState<B>>) -> Response {
    let readiness = state.backend.readiness();
    let body = serde_json::to_value(&readiness).unwrap_or_else(|_| json!({"state": "unknown"}));
    answer(&readiness, body)
}

/// As llama-server answers it.
pub(crate) async fn health<B: Backend>(State(state): State<AppState<B>>) -> Response {
    let readiness = state.backend.readiness();
    let body = if readiness.is_ready() {
        json!({"status": "ok"})
    } else {
        json!({"error": {"code": 503, "message": describe(&readiness), "type": "unavailable_error"}})
    };
    answer(&readiness, body)
}

fn answer(readiness: &Readiness, body: Value) -> Response {
    if readiness.is_ready() {
        return Json(body).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], Json(body)).into_response()
}

/// What is going on, in words.
pub(crate) fn describe(readiness: &Readiness) -> String {
    match readiness {
        Readiness::Starting => "the server is starting".to_owned(),
        Readiness::Loading => "the model is loading".to_owned(),
        Readiness::Pruning { progress: None, .. } => "the model is being pruned".to_owned(),
        Readiness::Pruning { progress: Some(progress), .. } => {
            format!("the model is being pruned: {} ({:.0} %)", progress.stage, progress.done * 100.0)
        }
        Readiness::Ready => "ready".to_owned(),
        Readiness::Released => "the model was let go of for want of memory".to_owned(),
        Readiness::NoModel => "no model is active".to_owned(),
        Readiness::Failed { message } => format!("the model cannot be served: {message}"),
        Readiness::ShuttingDown => "the server is shutting down".to_owned(),
    }
}
