//! The routes OpenAI's clients use, and those of llama-server beside them.

mod answer;
mod chat;
mod completion;
mod embedding;
mod params;
mod shape;
mod text;

pub(crate) use chat::ChatCall;
pub(crate) use completion::CompletionCall;
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
use secateur_service::api::{ChatRequest, CompletionRequest, ModelView, SamplingParams};
use serde_json::{Value, json};
use shape::{ChatShape, CompletionShape};

/// The model that is served, when `wanted` names it or nothing.
///
/// # Errors
/// [`ApiError::NotReady`] without one; [`ApiError::MODEL_NOT_FOUND`] when `wanted` is another.
fn served_model<B: Backend>(backend: &B, wanted: Option<&str>) -> Result<ModelView, ApiError> {
    let status = backend.status();
    let served = status.model.filter(|_| status.readiness.is_ready());
    let served = served.ok_or_else(|| ApiError::NotReady(describe(&status.readiness)))?.model;
    match wanted {
        Some(wanted) if wanted != served.id && wanted != served.name => Err(ApiError::MODEL_NOT_FOUND),
        _ => Ok(served),
    }
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
    let ChatCall { model, messages, params, n_choices, mode } = ChatCall::parse(&body.0)?;
    let served = served_model(&state.backend, model.as_deref())?;
    let requests: Vec<ChatRequest> = (0..n_choices)
        .map(|choice| ChatRequest { messages: messages.clone(), params: params::for_choice(&params, choice) })
        .collect();
    // All are queued at once: either every answer has its place or the client is told to come back.
    let choices = state
        .blocking(move |backend| {
            requests.iter().map(|request| backend.chat(request)).collect::<Result<Vec<_>, _>>()
        })
        .await
        .map_err(|error| error.about_prompt("messages"))?;
    let shape = ChatShape { logprobs: params.logprobs.is_some() };
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
    let served = served_model(&state.backend, model.as_deref())?;
    let shape = CompletionShape::new(&prompts, n_choices, echo, params.logprobs.is_some());
    let requests: Vec<CompletionRequest> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, n_choices))
        .enumerate()
        .map(|(choice, prompt)| CompletionRequest {
            prompt: prompt.clone(),
            params: params::for_choice(&params, choice),
        })
        .collect();
    let choices = state
        .blocking(move |backend| {
            requests.iter().map(|request| backend.complete(request)).collect::<Result<Vec<_>, _>>()
        })
        .await
        .map_err(|error| error.about_prompt("prompt"))?;
    let envelope = envelope("cmpl", &served);
    let plan = AnswerPlan { mode, n_per_prompt: n_choices };
    Ok(answer(&state.shared, envelope, shape, choices, plan, permit).await?)
}
