//! The application: options, state and the table of routes.

use crate::backend::Backend;
use crate::error::{ApiError, Dialect};
use crate::guard::{self, ApiKeys, Gate};
use crate::metrics::HttpMetrics;
use crate::{health, metrics, native, openai, page};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{get, post};
use secateur_service::ServiceError;
use secateur_service::api::SamplingParams;
use std::any::Any;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower_http::catch_panic::CatchPanicLayer;

/// Who may ask: what can change while the server runs.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Host names to answer to, besides `localhost` and loopback addresses.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages that may ask from a browser, exactly as browsers write them: `https://app.example:8443`.
    pub cors_origins: Vec<String>,
    /// Keys that clients must show.
    pub keys: ApiKeys,
}

/// Settings of the HTTP side.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Host names to answer to, besides `localhost` and loopback addresses.
    pub allowed_hosts: Vec<String>,
    /// Origins of pages that may ask from a browser.
    pub cors_origins: Vec<String>,
    /// Keys that clients must show.
    pub keys: ApiKeys,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Bytes of bodies that are read at the same time; more wait.
    pub max_bodies_bytes: usize,
    /// Time a body may take to arrive.
    pub body_timeout: Duration,
    /// Time the head of a request may take to arrive, and a connection may idle.
    pub header_timeout: Duration,
    /// Requests worked on at the same time, streams included; more are told to come back.
    pub max_requests: usize,
    /// Connections open at the same time; more wait to be accepted.
    pub max_connections: usize,
    /// Silence after which a stream sends a comment, so that proxies keep it open.
    pub ping_interval: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            keys: ApiKeys::default(),
            max_body_bytes: 1 << 20,
            max_bodies_bytes: 4 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            max_requests: 64,
            max_connections: 256,
            ping_interval: Duration::from_secs(15),
        }
    }
}

impl HttpOptions {
    /// Who may ask at the beginning.
    fn access(&self) -> Access {
        let Self { allowed_hosts, cors_origins, keys, .. } = self.clone();
        Access { allowed_hosts, cors_origins, keys }
    }
}

/// How near the end of the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Everything is served.
    Serving,
    /// Nothing new is accepted; streams that would go on for ever end.
    Draining,
    /// The time for that is over: every answer ends.
    Ending,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) options: HttpOptions,
    access: RwLock<Arc<Gate>>,
    /// One permit for each KiB of bodies.
    pub(crate) bodies: Arc<Semaphore>,
    pub(crate) metrics: HttpMetrics,
    /// Differs between processes: the front of made-up ids.
    pub(crate) process_id: u64,
    requests: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
}

impl Shared {
    /// Who may ask at the moment.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes one of the places for requests, held until the permit drops.
    /// # Errors
    /// [`ApiError::Busy`] when all are taken.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.requests.clone().try_acquire_owned().map_err(|_| ApiError::Busy { retry_after_s: 1 })
    }

    /// Waits until the end is at least this near.
    pub(crate) async fn reaches(&self, phase: Phase) {
        // The sender lives as long as this.
        let _ = self.phase.subscribe().wait_for(|reached| phase <= *reached).await;
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

/// What a route gets.
#[derive(Clone)]
pub(crate) struct AppState<B> {
    pub(crate) backend: B,
    pub(crate) shared: Arc<Shared>,
}

impl<B: Backend> AppState<B> {
    /// Calls the backend from a thread that may block.
    /// # Errors
    /// What the call says, or [`ApiError::Internal`] when it panicked.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&B) -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let backend = self.backend.clone();
        match tokio::task::spawn_blocking(move || call(&backend)).await {
            Ok(result) => result.map_err(ApiError::from),
            Err(error) => {
                tracing::error!(%error, "a call of the service panicked");
                Err(ApiError::Internal)
            }
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// All routes over a service.
pub struct App {
    pub(crate) router: Router,
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl App {
    /// Builds the routes.
    #[must_use]
    pub fn new<B: Backend>(backend: B, options: HttpOptions) -> Self {
        let shared = Arc::new(Shared {
            access: RwLock::new(Arc::new(Gate::new(&options.access()))),
            bodies: Arc::new(Semaphore::new((options.max_bodies_bytes.max(options.max_body_bytes)) >> 10)),
            metrics: HttpMetrics::default(),
            process_id: SamplingParams::random_seed(),
            requests: Arc::new(Semaphore::new(options.max_requests)),
            phase: watch::Sender::new(Phase::Serving),
            options,
        });
        let max_body_bytes = shared.options.max_body_bytes;
        let router = routes::<B>()
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(DefaultBodyLimit::max(max_body_bytes))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(shared.clone(), guard::guard))
            .with_state(AppState { backend, shared: shared.clone() });
        Self { router, shared }
    }

    /// The way to change who may ask while the server runs.
    #[must_use]
    pub fn access_control(&self) -> AccessControl {
        AccessControl { shared: self.shared.clone() }
    }

    /// The routes as a service, for embedding and tests.
    pub fn router(&self) -> Router {
        self.router.clone()
    }
}

/// Changes who may ask.
#[derive(Clone)]
pub struct AccessControl {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for AccessControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessControl").finish_non_exhaustive()
    }
}

impl AccessControl {
    /// Takes the place of what was set before; requests at work are not asked again.
    pub fn set(&self, access: &Access) {
        *self.shared.access.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Gate::new(access));
    }
}

fn routes<B: Backend>() -> Router<AppState<B>> {
    let openai = Router::new()
        .route("/v1/models", get(openai::list_models::<B>))
        .route("/v1/models/{id}", get(openai::get_model::<B>))
        .route("/v1/chat/completions", post(openai::chat::<B>))
        .route("/v1/completions", post(openai::complete::<B>))
        .route("/v1/embeddings", post(openai::embed::<B>))
        .route("/tokenize", post(openai::tokenize::<B>))
        .route("/detokenize", post(openai::detokenize::<B>))
        .route("/apply-template", post(openai::apply_template::<B>));
    let native = Router::new()
        .route("/api/v1/status", get(native::status::<B>))
        .route("/api/v1/memory", get(native::memory::<B>))
        .route("/api/v1/plan", post(native::plan::<B>))
        .route("/api/v1/prune", post(native::prune::<B>))
        .route("/api/v1/jobs", get(native::list_jobs::<B>))
        .route("/api/v1/jobs/{id}", get(native::get_job::<B>).delete(native::cancel_job::<B>))
        .route("/api/v1/jobs/{id}/events", get(native::job_events::<B>))
        .route("/api/v1/models", get(native::list_models::<B>))
        .route("/api/v1/models/{id}", get(native::get_model::<B>).delete(native::delete_model::<B>))
        .route("/api/v1/models/{id}/activate", post(native::activate_model::<B>));
    let about = Router::new()
        .route("/", get(page::page))
        .route("/page.js", get(page::script))
        .route("/page.css", get(page::style))
        .route("/docs", get(page::docs))
        .route("/docs.js", get(page::docs_script))
        .route("/openapi.json", get(crate::openapi::openapi))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz::<B>))
        .route("/health", get(health::health::<B>))
        .route("/metrics", get(metrics::metrics::<B>));
    openai.merge(native).merge(about)
}

async fn unknown_route(request: Request) -> Response {
    let error = ApiError::NotFound { what: "this route", code: "unknown_route" };
    error.render(Dialect::of_path(request.uri().path()))
}

async fn wrong_method(request: Request) -> Response {
    ApiError::MethodNotAllowed.render(Dialect::of_path(request.uri().path()))
}

/// A panic is a bug of ours: its text goes to the log, not to the client.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!(panic = text, "a route panicked");
    ApiError::Internal.render(Dialect::OpenAi)
}
