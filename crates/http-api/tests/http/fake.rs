//! A service that follows a script and remembers what it was asked.

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use secateur_http_api::{App, Backend, Events, HttpOptions};
use secateur_service::api::{
    ChatMessage, ChatRequest, CompletionRequest, DraftCounts, EmbeddingView, FinishReason, GenerationEvent,
    GenerationParams, JobEvent, JobEventKind, JobId, JobState, JobView, LimitView, MemoryView, MetricsView,
    ModelKind, ModelView, PlanQuery, PlanView, ProgressView, Prompt, PruneQuery, Readiness, ServedView,
    StatusView, Timings, TokenLogprobView, TokenLogprobsView, Usage,
};
use secateur_service::{AddSpecial, ServiceError};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Id of the served model.
pub(crate) const MODEL: &str = "5eca7e0123456789abcdef";

/// How a scripted answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Length,
    Cancelled,
    Fail,
    Vanish,
}

/// What the service will do, and what it was asked.
pub(crate) struct Script {
    pub(crate) readiness: Readiness,
    /// Text of each token of every answer.
    pub(crate) pieces: Vec<&'static str>,
    pub(crate) end: End,
    /// Refuses every call.
    pub(crate) refusal: Option<fn() -> ServiceError>,
    /// Each event takes one permit of it, when there is one.
    pub(crate) gate: Option<Arc<Semaphore>>,
    pub(crate) chats: Vec<ChatRequest>,
    pub(crate) completions: Vec<CompletionRequest>,
    pub(crate) plans: Vec<PlanQuery>,
    pub(crate) prunes: Vec<PruneQuery>,
    pub(crate) cancelled_jobs: Vec<u64>,
    pub(crate) activated: Vec<String>,
    pub(crate) deleted: Vec<String>,
    /// The job's events end with a final one.
    pub(crate) job_ends: bool,
    /// Another model takes the place of the served one.
    pub(crate) swapping: bool,
}

#[derive(Clone)]
pub(crate) struct Fake {
    script: Arc<Mutex<Script>>,
    /// Generations dropped before their end.
    pub(crate) abandoned: Arc<AtomicUsize>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let script = Script {
            readiness: Readiness::Ready,
            pieces: vec!["Hello", ", ", "wörld", "!"],
            end: End::Stop,
            refusal: None,
            gate: None,
            chats: Vec::new(),
            completions: Vec::new(),
            plans: Vec::new(),
            prunes: Vec::new(),
            cancelled_jobs: Vec::new(),
            activated: Vec::new(),
            deleted: Vec::new(),
            swapping: false,
            job_ends: true,
        };
        Self { script: Arc::new(Mutex::new(script)), abandoned: Arc::default() }
    }

    /// Changes or reads the script.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        f(&mut self.script.lock().unwrap())
    }

    fn allowed(&self) -> Result<(), ServiceError> {
        self.with(|script| script.refusal.map_or(Ok(()), |refusal| Err(refusal())))
    }

    fn generation(&self, params: &GenerationParams) -> Generation {
        self.with(|script| {
            let mut events =
                VecDeque::from([GenerationEvent::Started { prompt_tokens: 7, cached_tokens: 3 }]);
            events.extend(script.pieces.iter().enumerate().map(|(idx, text)| GenerationEvent::Delta {
                text: (*text).to_owned(),
                logprobs: params.logprobs.map(|top| logprobs(idx, text, top)).into_iter().collect(),
            }));
            let usage = Usage { prompt_tokens: 7, cached_tokens: 3, completion_tokens: script.pieces.len() };
            let timings = Timings {
                prefill_ms: 20.0,
                ttft_ms: 25.0,
                tpot_ms: 5.0,
                prompt_tokens_per_s: 200.0,
                tokens_per_s: 200.0,
            };
            let finished = |reason| GenerationEvent::Finished {
                reason,
                stop_string: None,
                usage,
                timings,
                drafted: Some(DraftCounts { rounds: 3, guessed: 5, accepted: 2 }),
            };
            match script.end {
                End::Stop => events.push_back(finished(FinishReason::Stop)),
                End::Length => events.push_back(finished(FinishReason::Length)),
                End::Cancelled => events.push_back(finished(FinishReason::Cancelled)),
                End::Fail => {
                    let message = "secret path /srv/model.gguf".to_owned();
                    events.push_back(GenerationEvent::Failed(ServiceError::Internal { message }));
                }
                End::Vanish => {}
            }
            Generation { events, gate: script.gate.clone(), abandoned: self.abandoned.clone() }
        })
    }
}

fn logprobs(idx: usize, text: &str, n_top: usize) -> TokenLogprobsView {
    let view = |token_id: u32, token: &str, logprob| TokenLogprobView {
        token_id,
        token: token.to_owned(),
        bytes: token.as_bytes().to_vec(),
        logprob,
    };
    let chosen = view(idx as u32, text, -0.5);
    let top = (0..n_top).map(|rank| view(rank as u32, &format!("t{rank}"), -1.0 - rank as f32)).collect();
    TokenLogprobsView { chosen, top }
}

pub(crate) struct Generation {
    events: VecDeque<GenerationEvent>,
    gate: Option<Arc<Semaphore>>,
    abandoned: Arc<AtomicUsize>,
}

impl Events<GenerationEvent> for Generation {
    async fn next(&mut self) -> Option<GenerationEvent> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        self.events.pop_front()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.events.is_empty() {
            self.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

pub(crate) struct JobScript {
    events: VecDeque<JobEvent>,
    ends: bool,
}

impl Events<JobEvent> for JobScript {
    async fn next(&mut self) -> Option<JobEvent> {
        match self.events.pop_front() {
            None if !self.ends => std::future::pending().await,
            event => event,
        }
    }
}

pub(crate) fn model() -> ModelView {
    ModelView {
        id: MODEL.to_owned(),
        name: "tiny".to_owned(),
        kind: ModelKind::Pruned,
        bytes: 1000,
        active: true,
        created_unix_s: 1_700_000_000,
        n_layers: 2,
        layer_params: 4000,
        max_position_embeddings: 128,
        source_digest: Some("base".to_owned()),
        ratio: Some(0.2),
        method: Some("comp".to_owned()),
    }
}

fn progress(layer_idx: usize) -> ProgressView {
    ProgressView {
        stage: "prune".to_owned(),
        layer_idx: Some(layer_idx),
        n_layers: 2,
        done: layer_idx as f64 / 2.0,
        eta_s: Some(1.5),
        rss_bytes: 10,
        rss_peak_bytes: 20,
        loss: None,
    }
}

fn job(id: JobId, state: JobState) -> JobView {
    JobView {
        id,
        kind: "prune",
        state,
        created_unix_s: 1_700_000_000,
        elapsed_s: 1.0,
        progress: None,
        plan: None,
        model: None,
        report: None,
        error: None,
    }
}

fn plan() -> PlanView {
    PlanView {
        action: "prune".to_owned(),
        policy: "quality".to_owned(),
        ratio: 0.25,
        dtype: "keep".to_owned(),
        table_dtype: "keep".into(),
        layers_to_remove: Vec::new(),
        layers: Vec::new(),
        context_len: 128,
        kv_dtype: "f16".to_owned(),
        budget_bytes: Some(1 << 20),
        base_footprint: Default::default(),
        footprint: Default::default(),
        predicted_perplexity_factor: 1.3,
        reason: "it would not fit".to_owned(),
    }
}

impl Backend for Fake {
    type Generation = Generation;
    type JobEvents = JobScript;

    fn readiness(&self) -> Readiness {
        self.with(|script| script.readiness.clone())
    }

    fn status(&self) -> StatusView {
        let readiness = self.readiness();
        let served = ServedView {
            model: model(),
            context_len: 128,
            kv_dtype: "f16".to_owned(),
            plan: None,
            draft: None,
        };
        StatusView {
            version: "0.0.0".to_owned(),
            model: readiness.is_ready().then_some(served),
            readiness,
            uptime_s: 1.0,
            queued: 0,
            running: 0,
            queue_len: 8,
            active_job: None,
            n_threads: 2,
        }
    }

    fn metrics(&self) -> MetricsView {
        MetricsView {
            requests_total: 5,
            generated_tokens_total: 42,
            rss_bytes: 77,
            queue_len: 16,
            jobs_running: 1,
            pressure_step: 2,
            stalled_seconds_total: Some(1.5),
            ..MetricsView::default()
        }
    }

    fn memory(&self) -> Result<MemoryView, ServiceError> {
        self.allowed()?;
        Ok(MemoryView {
            total_bytes: 100,
            available_bytes: 50,
            budget_bytes: 40,
            budget: "auto".to_owned(),
            rss_bytes: 10,
            rss_peak_bytes: 20,
            limits: vec![LimitView { source: "MemAvailable".to_owned(), available_bytes: 50 }],
            pressure_some_avg10: Some(0.0),
        })
    }

    fn models(&self) -> Result<Vec<ModelView>, ServiceError> {
        self.allowed()?;
        Ok(vec![model()])
    }

    fn plan(&self, query: &PlanQuery) -> Result<PlanView, ServiceError> {
        self.with(|script| script.plans.push(query.clone()));
        self.allowed()?;
        Ok(plan())
    }

    fn start_prune(&self, query: PruneQuery) -> Result<JobId, ServiceError> {
        self.with(|script| script.prunes.push(query));
        self.allowed()?;
        Ok(JobId(1))
    }

    fn job(&self, id: JobId) -> Result<JobView, ServiceError> {
        if id.0 == 1 { Ok(job(id, JobState::Running)) } else { Err(ServiceError::JobNotFound { id: id.0 }) }
    }

    fn jobs(&self) -> Vec<JobView> {
        vec![job(JobId(1), JobState::Running)]
    }

    fn job_events(&self, id: JobId, after: Option<u64>) -> Result<JobScript, ServiceError> {
        self.job(id)?;
        let state = JobEventKind::State(Box::new(job(id, JobState::Succeeded)));
        let kinds = [JobEventKind::Progress(progress(0)), JobEventKind::Planned(Box::new(plan())), state];
        let events = (1u64..).zip(kinds).map(|(id, kind)| JobEvent { id, kind });
        let events = events.filter(|event| after.unwrap_or(0) < event.id).collect();
        Ok(JobScript { events, ends: self.with(|script| script.job_ends) })
    }

    fn cancel_job(&self, id: JobId) -> Result<JobView, ServiceError> {
        let mut view = self.job(id)?;
        self.with(|script| script.cancelled_jobs.push(id.0));
        view.state = JobState::Cancelled;
        Ok(view)
    }

    fn chat(&self, request: &ChatRequest) -> Result<Generation, ServiceError> {
        self.with(|script| script.chats.push(request.clone()));
        self.allowed()?;
        Ok(self.generation(&request.params))
    }

    fn complete(&self, request: &CompletionRequest) -> Result<Generation, ServiceError> {
        self.with(|script| script.completions.push(request.clone()));
        self.allowed()?;
        Ok(self.generation(&request.params))
    }

    async fn embed(&self, prompt: &Prompt) -> Result<EmbeddingView, ServiceError> {
        self.allowed()?;
        let prompt_tokens = match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(tokens) => tokens.len(),
        };
        Ok(EmbeddingView { values: vec![3.0, 4.0], prompt_tokens })
    }

    fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
        self.allowed()?;
        let first = if special == AddSpecial::Yes { vec![0] } else { Vec::new() };
        Ok(first.into_iter().chain(text.chars().map(u32::from)).collect())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError> {
        let text: Option<String> = tokens.iter().map(|&token| char::from_u32(token)).collect();
        text.ok_or_else(|| ServiceError::Invalid {
            param: "tokens".to_owned(),
            message: "no such token".to_owned(),
        })
    }

    fn is_swapping(&self) -> bool {
        self.with(|script| script.swapping)
    }

    async fn swapped(&self) {
        // The swap of a script ends when somebody waits for it.
        self.with(|script| {
            if std::mem::take(&mut script.swapping) {
                script.readiness = Readiness::Ready;
            }
        });
    }

    fn apply_template(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
    ) -> Result<String, ServiceError> {
        self.allowed()?;
        if let Some(tools) = tools {
            return Ok(tools.to_string());
        }
        Ok(messages.iter().map(|message| format!("<{}>{}", message.role, message.content)).collect())
    }

    async fn activate_model(&self, id: &str) -> Result<ModelView, ServiceError> {
        self.with(|script| script.activated.push(id.to_owned()));
        if id == MODEL { Ok(model()) } else { Err(ServiceError::ModelNotFound { id: id.to_owned() }) }
    }

    fn delete_model(&self, id: &str) -> Result<(), ServiceError> {
        self.with(|script| script.deleted.push(id.to_owned()));
        if id == MODEL { Ok(()) } else { Err(ServiceError::ModelNotFound { id: id.to_owned() }) }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The data of every server-sent event, in order.
    pub(crate) fn data(&self) -> Vec<String> {
        self.text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
    }
}

pub(crate) fn options() -> HttpOptions {
    HttpOptions { ping_interval: Duration::from_secs(600), ..HttpOptions::default() }
}

/// The application over a fake.
pub(crate) fn app(fake: &Fake) -> App {
    App::new(fake.clone(), options())
}

/// A request to this machine.
pub(crate) fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:8712")
}

/// Sends a request and takes in the whole answer.
pub(crate) async fn send(app: &App, request: Request<Body>) -> Answer {
    let response = app.router().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = axum::body::to_bytes(response.into_body(), 16 << 20).await.unwrap();
    Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub(crate) async fn get(app: &App, path: &str) -> Answer {
    send(app, request("GET", path).body(Body::empty()).unwrap()).await
}

pub(crate) async fn post(app: &App, path: &str, body: impl Into<Body>) -> Answer {
    let request = request("POST", path).header(header::CONTENT_TYPE, "application/json");
    send(app, request.body(body.into()).unwrap()).await
}

/// Posts JSON.
pub(crate) async fn post_json(app: &App, path: &str, body: &Value) -> Answer {
    post(app, path, body.to_string()).await
}
