//! The routes OpenAI's clients use, and those of llama-server beside them.

mod answer;
mod chat;
mod completion;
mod embedding;
mod format;
mod params;
mod shape;
mod text;
mod tools;

pub(crate) use chat::ChatCall;
#[cfg(test)]
pub(crate) use chat::FIELDS as CHAT_FIELDS;
pub(crate) use completion::CompletionCall;
#[cfg(test)]
pub(crate) use completion::FIELDS as COMPLETION_FIELDS;
#[cfg(test)]
pub(crate) use embedding::FIELDS as EMBEDDING_FIELDS;
pub(crate) use embedding::embed;
pub(crate) use text::{apply_template, detokenize, tokenize};

use crate::app::{AppState, unix_time_s};
use crate::backend::Backend;
use crate::body::JsonBody;
use crate::error::{ApiError, OpenAiError};
use crate::health::describe;
use answer::{AnswerPlan, Envelope, answer};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use secateur_service::ServiceError;
use secateur_service::api::{ChatRequest, CompletionRequest, ModelView, SamplingParams};
use serde_json::{Value, json};
use shape::{ChatShape, CompletionShape};
use std::future::Future;
use std::sync::Arc;

/// The model that is served, when `wanted` names it or nothing.
///
/// # Errors
/// [`ApiError::NotReady`] without one; [`ApiError::MODEL_NOT_FOUND`] when `wanted` is another.
fn served_model<B: Backend>(backend: &B, wanted: Option<&str>) -> Result<ModelView, ApiError> {
    let status = backend.status();
    let served = status.model.filter(|_| status.readiness.is_ready());
    let served = served.ok_or_else(|| ApiError::NotReady(describe(&status.readiness)))?.model;
    match wanted {
        Some(wanted) if !goes_by(&served, wanted) => Err(ApiError::MODEL_NOT_FOUND),
        _ => Ok(served),
    }
}

/// The name for whatever is served.
const DEFAULT_MODEL: &str = "default";

/// True for the model's id and name, for `default`, and for the id of the model it was pruned from: a client that was
/// set up for that one goes on working.
fn goes_by(served: &ModelView, wanted: &str) -> bool {
    [&served.id, &served.name].into_iter().chain(&served.source_digest).any(|name| name == wanted)
        || wanted == DEFAULT_MODEL
}

/// Times that a request is made again because the model was being changed.
const MAX_SWAPS: usize = 3;

/// Makes a request of the served model. While another model takes its place, the request waits for that one.
async fn ask<B: Backend, T, F>(
    backend: &B,
    wanted: Option<&str>,
    mut make: impl FnMut() -> F,
) -> Result<(ModelView, T), ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut swaps = 0;
    loop {
        backend.swapped().await;
        let served = served_model(backend, wanted);
        let result = match served {
            Ok(served) => make().await.map(|answer| (served, answer)),
            Err(error) => Err(error),
        };
        match result {
            Err(ApiError::NotReady(_)) if backend.is_swapping() && swaps < MAX_SWAPS => swaps += 1,
            other => return other,
        }
    }
}

/// Asks for several answers. All are queued at once: either every one has its place or the client is told to come back.
async fn ask_for_all<B: Backend, R: Send + Sync + 'static>(
    state: &AppState<B>,
    wanted: Option<&str>,
    requests: Vec<R>,
    ask_one: fn(&B, &R) -> Result<B::Generation, ServiceError>,
) -> Result<(ModelView, Vec<B::Generation>), ApiError> {
    let requests = Arc::new(requests);
    let make = || {
        let requests = requests.clone();
        state.blocking(move |backend| requests.iter().map(|request| ask_one(backend, request)).collect())
    };
    ask(&state.backend, wanted, make).await
}

fn model_object(model: &ModelView) -> Value {
    json!({
        "id": model.id, "object": "model", "created": model.created_unix_s, "owned_by": "secateur",
        "name": model.name, "max_model_len": model.max_position_embeddings,
    })
}

/// `GET /v1/models`: what requests can name, which is the model that is served.
pub(crate) async fn list_models<B: Backend>(State(state): State<AppState<B>>) -> Json<Value> {
    let served = served_model(&state.backend, None).ok();
    let data: Vec<Value> = served.iter().map(model_object).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn get_model<B: Backend>(
    State(state): State<AppState<B>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, OpenAiError> {
    let Path(id) = id.map_err(|_| ApiError::MODEL_NOT_FOUND)?;
    let served = served_model(&state.backend, Some(&id)).map_err(|_| ApiError::MODEL_NOT_FOUND)?;
    Ok(Json(model_object(&served)))
}

/// A name for an answer that no other answer has.
fn answer_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}", SamplingParams::random_seed())
}

fn envelope(prefix: &str, model: &ModelView) -> Envelope {
    // Weights decide the answer to a seed, so their digest is the fingerprint.
    let fingerprint = format!("fp_{}", model.id.chars().take(16).collect::<String>());
    Envelope { id: answer_id(prefix), created: unix_time_s(), model: model.id.clone(), fingerprint }
}

/// `POST /v1/chat/completions`.
pub(crate) async fn chat<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Response, OpenAiError> {
    let permit = state.shared.admit()?;
    let ChatCall { model, messages, params, n_choices, mode, tools } = ChatCall::parse(&body.0)?;
    let request =
        |choice| ChatRequest { messages: messages.clone(), params: params::for_choice(&params, choice) };
    let requests = (0..n_choices).map(request).collect();
    let asked = ask_for_all(&state, model.as_deref(), requests, B::chat).await;
    let (served, choices) = asked.map_err(|error| error.about_prompt("messages"))?;
    let shape = ChatShape::new(params.logprobs.is_some(), tools);
    let envelope = envelope("chatcmpl", &served);
    let plan = AnswerPlan { mode, n_per_prompt: n_choices };
    Ok(answer(&state.shared, envelope, shape, choices, plan, permit).await?)
}

/// `POST /v1/completions`.
pub(crate) async fn complete<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Response, OpenAiError> {
    let permit = state.shared.admit()?;
    let CompletionCall { model, prompts, params, n_choices, echo, mode } = CompletionCall::parse(&body.0)?;
    let shape = CompletionShape::new(&prompts, n_choices, echo, params.logprobs.is_some());
    let requests = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, n_choices))
        .enumerate()
        .map(|(choice, prompt)| CompletionRequest {
            prompt: prompt.clone(),
            params: params::for_choice(&params, choice),
        })
        .collect();
    let asked = ask_for_all(&state, model.as_deref(), requests, B::complete).await;
    let (served, choices) = asked.map_err(|error| error.about_prompt("prompt"))?;
    let envelope = envelope("cmpl", &served);
    let plan = AnswerPlan { mode, n_per_prompt: n_choices };
    Ok(answer(&state.shared, envelope, shape, choices, plan, permit).await?)
}
