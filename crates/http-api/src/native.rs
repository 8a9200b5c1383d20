//! `/api/v1`: the service itself, for its page, its command line and scripts. Errors are problem details.

use crate::app::{AppState, Phase, Shared};
use crate::backend::{Backend, Events};
use crate::body::JsonBody;
use crate::error::{ApiError, NativeError};
use crate::fields::Fields;
use crate::sse::{EventSource, respond};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use secateur_service::api::{
    JobEvent, JobId, JobView, MemoryView, ModelView, PlanQuery, PlanView, PruneQuery, StatusView,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// Longest context that can be planned for.
const MAX_CONTEXT_LEN: u64 = 1 << 24;
/// Most calibration tokens.
const MAX_CALIBRATION_TOKENS: u64 = 1 << 24;

type Answer<T> = Result<Json<T>, NativeError>;

/// `GET /api/v1/status`.
pub(crate) async fn status<B: Backend>(State(state): State<AppState<B>>) -> Json<StatusView> {
    Json(state.backend.status())
}

/// `GET /api/v1/memory`.
pub(crate) async fn memory<B: Backend>(State(state): State<AppState<B>>) -> Answer<MemoryView> {
    let _permit = state.shared.admit()?;
    Ok(Json(state.blocking(B::memory).await?))
}

/// `POST /api/v1/plan`: what would be done; nothing is.
pub(crate) async fn plan<B: Backend>(State(state): State<AppState<B>>, body: JsonBody) -> Answer<PlanView> {
    let _permit = state.shared.admit()?;
    let query = plan_query(&body.0)?;
    Ok(Json(state.blocking(move |backend| backend.plan(&query)).await?))
}

fn plan_query(body: &[u8]) -> Result<PlanQuery, ApiError> {
    let known = &["model", "memory_budget", "ratio", "context_len", "policy", "dtype", "table_dtype"];
    let fields = Fields::of_strict_body(body, known)?;
    Ok(PlanQuery {
        model: fields.name("model")?,
        memory_budget: memory_budget(&fields)?,
        ratio: fields.number("ratio", 0.0, 1.0)?,
        context_len: fields.integer("context_len", 1, MAX_CONTEXT_LEN)?.map(|len| len as usize),
        policy: fields.name("policy")?,
        dtype: fields.name("dtype")?,
        table_dtype: fields.name("table_dtype")?,
    })
}

/// `auto`, a size or a percentage as text, or a number of bytes.
fn memory_budget(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    if let Ok(bytes) = fields.integer("memory_budget", 1, u64::MAX) {
        return Ok(bytes.map(|bytes| bytes.to_string()));
    }
    fields.name("memory_budget")
}

/// `POST /api/v1/prune`: 202 and the job.
pub(crate) async fn prune<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Response, NativeError> {
    let _permit = state.shared.admit()?;
    let query = prune_query(&body.0)?;
    let job = state
        .blocking(move |backend| {
            let id = backend.start_prune(query)?;
            backend.job(id)
        })
        .await?;
    let location = format!("/api/v1/jobs/{}", job.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(job)).into_response())
}

fn prune_query(body: &[u8]) -> Result<PruneQuery, ApiError> {
    let known = &[
        "model",
        "memory_budget",
        "ratio",
        "context_len",
        "method",
        "policy",
        "dtype",
        "table_dtype",
        "seed",
        "calibration_tokens",
        "calibration_text",
        "activate",
    ];
    let fields = Fields::of_strict_body(body, known)?;
    let size = |value: Option<u64>| value.map(|value| value as usize);
    Ok(PruneQuery {
        model: fields.name("model")?,
        memory_budget: memory_budget(&fields)?,
        ratio: fields.number("ratio", 0.0, 1.0)?,
        context_len: size(fields.integer("context_len", 1, MAX_CONTEXT_LEN)?),
        method: fields.name("method")?,
        policy: fields.name("policy")?,
        dtype: fields.name("dtype")?,
        table_dtype: fields.name("table_dtype")?,
        seed: fields.integer("seed", 0, u64::MAX)?,
        calibration_tokens: size(fields.integer("calibration_tokens", 1, MAX_CALIBRATION_TOKENS)?),
        calibration_text: fields.string("calibration_text")?,
        activate: fields.boolean("activate")?.unwrap_or(false),
    })
}

/// `GET /api/v1/jobs`.
pub(crate) async fn list_jobs<B: Backend>(State(state): State<AppState<B>>) -> Json<Value> {
    Json(json!({"jobs": state.backend.jobs()}))
}

type IdPath = Result<Path<String>, PathRejection>;

/// Digits only; everything else is no job.
fn job_id(path: IdPath) -> Result<JobId, ApiError> {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse().ok().filter(|_| digits);
    id.map(JobId).ok_or(ApiError::NotFound { what: "the job", code: "job_not_found" })
}

/// `GET /api/v1/jobs/{id}`.
pub(crate) async fn get_job<B: Backend>(State(state): State<AppState<B>>, id: IdPath) -> Answer<JobView> {
    Ok(Json(state.backend.job(job_id(id)?)?))
}

/// `DELETE /api/v1/jobs/{id}`: asks the job to stop; a job that has ended stays as it is.
pub(crate) async fn cancel_job<B: Backend>(State(state): State<AppState<B>>, id: IdPath) -> Answer<JobView> {
    let id = job_id(id)?;
    Ok(Json(state.blocking(move |backend| backend.cancel_job(id)).await?))
}

/// `GET /api/v1/jobs/{id}/events`: the events of a job as they come, from the first one that is kept, or from behind
/// the one that the client saw last.
pub(crate) async fn job_events<B: Backend>(
    State(state): State<AppState<B>>,
    id: IdPath,
    headers: HeaderMap,
) -> Result<Response, NativeError> {
    let permit = state.shared.admit()?;
    // As browsers do, an id that is no number of ours starts from the beginning.
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let events = state.backend.job_events(job_id(id)?, seen)?;
    let ping_interval = state.shared.options.ping_interval;
    let source = JobEventSource { events, shared: state.shared, is_over: false, _permit: permit };
    Ok(respond(source, ping_interval))
}

struct JobEventSource<E> {
    events: E,
    shared: Arc<Shared>,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl<E: Events<JobEvent>> EventSource for JobEventSource<E> {
    async fn next(&mut self) -> Option<Event> {
        if self.is_over {
            return None;
        }
        tokio::select! {
            event = self.events.next() => event.map(|event| job_event(&event)),
            () = self.shared.reaches(Phase::Draining) => {
                self.is_over = true;
                let problem = ApiError::ShuttingDown.problem_body().to_string();
                Some(Event::default().event("error").data(problem))
            }
        }
    }
}

fn job_event(event: &JobEvent) -> Event {
    // The data alone: the name and the number have their own lines.
    let mut value = serde_json::to_value(&event.kind).unwrap_or_default();
    let data = value.get_mut("data").map(Value::take).unwrap_or_default();
    Event::default().id(event.id.to_string()).event(event.kind.name()).data(data.to_string())
}

/// `GET /api/v1/models`.
pub(crate) async fn list_models<B: Backend>(State(state): State<AppState<B>>) -> Answer<Value> {
    let _permit = state.shared.admit()?;
    let models = state.blocking(B::models).await?;
    Ok(Json(json!({"models": models})))
}

/// A name that can be a model's: no path of any system.
fn model_id(path: IdPath) -> Result<String, ApiError> {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    let is_plain = |c: char| !c.is_control() && c != '/' && c != '\\';
    let fits = (1..=crate::fields::MAX_NAME_BYTES).contains(&text.len()) && !text.starts_with('.');
    if fits && text.chars().all(is_plain) { Ok(text) } else { Err(ApiError::MODEL_NOT_FOUND) }
}

/// `GET /api/v1/models/{id}`.
pub(crate) async fn get_model<B: Backend>(State(state): State<AppState<B>>, id: IdPath) -> Answer<ModelView> {
    let _permit = state.shared.admit()?;
    let id = model_id(id)?;
    let models = state.blocking(B::models).await?;
    let model = models.into_iter().find(|model| model.id == id || model.name == id);
    Ok(Json(model.ok_or(ApiError::MODEL_NOT_FOUND)?))
}

/// `POST /api/v1/models/{id}/activate`: 200 when it is served.
pub(crate) async fn activate_model<B: Backend>(
    State(state): State<AppState<B>>,
    id: IdPath,
) -> Answer<ModelView> {
    let _permit = state.shared.admit()?;
    Ok(Json(state.backend.activate_model(&model_id(id)?).await?))
}

/// `DELETE /api/v1/models/{id}`: 204.
pub(crate) async fn delete_model<B: Backend>(
    State(state): State<AppState<B>>,
    id: IdPath,
) -> Result<StatusCode, NativeError> {
    let _permit = state.shared.admit()?;
    let id = model_id(id)?;
    state.blocking(move |backend| backend.delete_model(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
