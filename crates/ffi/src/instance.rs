//! One service inside an app: started, stopped, started again. Safe Rust; the C and JNI sides only translate.
//!
//! Calls that wait do so on the caller's thread. A stop does not wait for the app's callbacks: calls at work end with
//! an error as soon as their callback returns, so that an app cannot deadlock itself.

use crate::config::{Config, Generate, Http, parse};
use crate::error::{FfiError, SecateurCode};
use crate::registry::{check_may_wait, in_callback};
use crate::waiting::{First, block_on, block_on_for, first};
use secateur_http_api::{ApiKeys, App, Drained, HttpOptions};
use secateur_service::api::{
    GenerationEvent, JobEventKind, JobState, JobView, PlanQuery, PruneQuery, Readiness,
};
use secateur_service::{MemoryPressure, Service, ServiceHandle, ThermalState, error_chain};
use serde::Serialize;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Threads for connections; all heavy work is done elsewhere.
const WORKER_THREADS: usize = 1;
/// Threads for calls that take milliseconds.
const BLOCKING_THREADS: usize = 4;
/// Stack of each; deep enough for templates, whose depth is limited.
const STACK_BYTES: usize = 1 << 20;
/// Time beyond the drain in which the server must have ended.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;

/// Silence after which a callback is asked whether anybody still waits.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// Whether a callback wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    Stop,
}

/// Where the service answers, and what it wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Endpoint {
    /// Port on 127.0.0.1; 0 when there is no HTTP.
    pub(crate) port: u16,
    /// Bearer token of this start; empty when there is no HTTP.
    pub(crate) token: String,
}

/// A configured service that may be running.
pub(crate) struct Instance {
    config: Config,
    running: Mutex<Option<Arc<Running>>>,
    /// Held while starting and stopping.
    life: Mutex<()>,
}

struct Running {
    handle: ServiceHandle,
    endpoint: Endpoint,
    /// Counts cancellations: calls at work end when it changes.
    cancels: watch::Sender<u64>,
    parts: Mutex<Option<Parts>>,
}

/// What a stop takes apart.
struct Parts {
    service: Service,
    runtime: Runtime,
    server: Option<(oneshot::Sender<()>, JoinHandle<std::io::Result<Drained>>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    /// Checks the configuration; starts nothing.
    pub(crate) fn create(config_json: &str) -> Result<Self, FfiError> {
        #[cfg(target_os = "ios")]
        crate::apple::install_probe();
        let config = Config::parse(config_json)?;
        Ok(Self { config, running: Mutex::new(None), life: Mutex::new(()) })
    }

    /// Starts the service; the model is made ready behind it.
    pub(crate) fn start(&self) -> Result<Endpoint, FfiError> {
        check_may_wait()?;
        let _life = lock(&self.life);
        if lock(&self.running).is_some() {
            return Err(FfiError::new(SecateurCode::AlreadyRunning, "the service is running already"));
        }
        let running = Arc::new(Running::start(&self.config)?);
        let endpoint = running.endpoint.clone();
        *lock(&self.running) = Some(running);
        Ok(endpoint)
    }

    fn running(&self) -> Result<Arc<Running>, FfiError> {
        lock(&self.running).clone().ok_or_else(FfiError::not_running)
    }

    /// Stops the service if it runs; returns when its threads have ended.
    pub(crate) fn stop(&self) -> Result<(), FfiError> {
        check_may_wait()?;
        let _life = lock(&self.life);
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.stop(self.config.drain());
        }
        Ok(())
    }

    /// Status and memory as JSON; answers while stopped, too.
    pub(crate) fn status(&self) -> Result<String, FfiError> {
        let Ok(running) = self.running() else {
            return Ok(json!({ "running": false }).to_string());
        };
        let memory = running.handle.memory()?;
        let status = json!({
            "running": true,
            "port": running.endpoint.port,
            "status": running.handle.status(),
            "memory": memory,
        });
        Ok(status.to_string())
    }

    /// Waits until the model answers; false when the time is over.
    pub(crate) fn wait_ready(&self, timeout: Duration) -> Result<bool, FfiError> {
        check_may_wait()?;
        let running = self.running()?;
        let deadline = std::time::Instant::now() + timeout;
        // Readiness changes seldom, so a short nap costs nothing and needs no timer.
        loop {
            match running.handle.readiness() {
                Readiness::Ready => return Ok(true),
                Readiness::NoModel => {
                    return Err(FfiError::new(
                        SecateurCode::NotReady,
                        "there is no model: prune or activate one",
                    ));
                }
                Readiness::Failed { message } => return Err(FfiError::new(SecateurCode::NotReady, message)),
                Readiness::ShuttingDown => return Err(FfiError::not_running()),
                Readiness::Starting
                | Readiness::Loading
                | Readiness::Released
                | Readiness::Pruning { .. } => {}
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
    }

    /// The plan for a query, as JSON.
    pub(crate) fn plan(&self, query_json: &str) -> Result<String, FfiError> {
        check_may_wait()?;
        let query: PlanQuery = parse(query_json, "plan query")?;
        to_json(&self.running()?.handle.plan(&query)?)
    }

    /// Prunes and waits for the end; `on_event` gets each event of the job as JSON, and empty text when nothing has
    /// happened for a while. Returns the job as JSON.
    pub(crate) fn prune(
        &self,
        query_json: &str,
        mut on_event: impl FnMut(&str) -> Flow,
    ) -> Result<String, FfiError> {
        check_may_wait()?;
        let query: PruneQuery = parse(query_json, "prune query")?;
        let running = self.running()?;
        let handle = &running.handle;
        let mut cancels = running.cancels.subscribe();
        let id = handle.start_prune(query)?;
        let mut events = handle.job_events(id, None)?;
        let mut last: Option<JobView> = None;
        let mut cancelled = false;
        loop {
            let next = match cancelled {
                true => Some(First::B(block_on(events.next()))),
                // However fast events come, a cancellation is not kept waiting.
                false => block_on_for(first(cancels.changed(), events.next()), ASK_INTERVAL),
            };
            let (text, event) = match next {
                Some(First::B(Some(event))) => (to_json(&event)?, Some(event)),
                Some(First::B(None)) => break,
                Some(First::A(_)) => {
                    cancelled = true;
                    handle.cancel_job(id)?;
                    continue;
                }
                None => (String::new(), None),
            };
            if in_callback(|| on_event(&text)) == Flow::Stop && !cancelled {
                cancelled = true;
                handle.cancel_job(id)?;
            }
            if let Some(JobEventKind::State(view)) = event.map(|event| event.kind) {
                last = Some(*view);
            }
        }
        finished(last)
    }

    /// Generates and waits for the end; `on_text` gets whole characters as they come, and empty text when nothing has
    /// come for a while. Returns the end as JSON.
    pub(crate) fn generate(
        &self,
        request_json: &str,
        mut on_text: impl FnMut(&str) -> Flow,
    ) -> Result<String, FfiError> {
        check_may_wait()?;
        let request = Generate::parse(request_json)?;
        let running = self.running()?;
        let mut cancels = running.cancels.subscribe();
        // Dropping the stream cancels the request within one token.
        let mut events = match &request {
            Generate::Chat(request) => running.handle.chat(request)?,
            Generate::Complete(request) => running.handle.complete(request)?,
        };
        let mut answer = String::new();
        loop {
            let event = match block_on_for(first(cancels.changed(), events.next()), ASK_INTERVAL) {
                Some(First::A(_)) => return Err(FfiError::cancelled()),
                Some(First::B(event)) => event.ok_or_else(FfiError::not_running)?,
                None if in_callback(|| on_text("")) == Flow::Stop => return Err(FfiError::cancelled()),
                None => continue,
            };
            match event {
                GenerationEvent::Started { .. } => {}
                GenerationEvent::Delta { text, .. } => {
                    answer.push_str(&text);
                    if in_callback(|| on_text(&text)) == Flow::Stop {
                        return Err(FfiError::cancelled());
                    }
                }
                GenerationEvent::Finished { reason, stop_string, usage, timings, .. } => {
                    let end = json!({
                        "text": answer,
                        "finish_reason": reason.name(),
                        "stop_string": stop_string,
                        "prompt_tokens": usage.prompt_tokens,
                        "cached_tokens": usage.cached_tokens,
                        "completion_tokens": usage.completion_tokens,
                        "ttft_ms": timings.ttft_ms,
                        "tokens_per_s": timings.tokens_per_s,
                    });
                    return Ok(end.to_string());
                }
                GenerationEvent::Failed(error) => return Err(error.into()),
            }
        }
    }

    /// Ends every prune and generate call at work; the calls return `Cancelled`.
    pub(crate) fn cancel(&self) -> Result<(), FfiError> {
        self.running()?.cancels.send_modify(|count| *count += 1);
        Ok(())
    }

    pub(crate) fn memory_pressure(&self, level: MemoryPressure) -> Result<(), FfiError> {
        self.running()?.handle.hint_memory(level);
        Ok(())
    }

    pub(crate) fn thermal(&self, state: ThermalState) -> Result<(), FfiError> {
        self.running()?.handle.hint_thermal(state);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(running) = lock(&self.running).take() {
            running.stop(self.config.drain());
        }
    }
}

/// The result of a prune job.
fn finished(last: Option<JobView>) -> Result<String, FfiError> {
    let lost = || FfiError::new(SecateurCode::Internal, "the job ended without a word");
    let view = last.ok_or_else(lost)?;
    match view.state {
        JobState::Succeeded => to_json(&view),
        JobState::Cancelled => Err(FfiError::cancelled()),
        JobState::Failed => {
            let message = view.error.unwrap_or_else(|| "the job failed".to_owned());
            Err(FfiError::new(SecateurCode::Conflict, message))
        }
        JobState::Queued | JobState::Running => Err(lost()),
    }
}

fn to_json(value: &impl Serialize) -> Result<String, FfiError> {
    serde_json::to_string(value).map_err(|error| FfiError::new(SecateurCode::Internal, error.to_string()))
}

impl Running {
    fn start(config: &Config) -> Result<Self, FfiError> {
        let internal = |error: std::io::Error| FfiError::new(SecateurCode::Internal, error.to_string());
        let service = Service::start(config.service_options())?;
        let handle = service.handle();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_stack_size(STACK_BYTES)
            .thread_name("secateur-http")
            .enable_all()
            .build()
            .map_err(internal);
        let listening = runtime.and_then(|runtime| {
            let server = match config.http {
                Http::Off => None,
                Http::Localhost => Some(serve(&runtime, config, handle.clone())?),
            };
            Ok((runtime, server))
        });
        let (runtime, server) = match listening {
            Ok(listening) => listening,
            Err(error) => {
                block_on(handle.shutdown(Duration::ZERO));
                service.join();
                return Err(error);
            }
        };
        let (endpoint, server) = match server {
            Some((endpoint, stop, server)) => (endpoint, Some((stop, server))),
            None => (Endpoint { port: 0, token: String::new() }, None),
        };
        let parts = Mutex::new(Some(Parts { service, runtime, server }));
        Ok(Self { handle, endpoint, cancels: watch::Sender::new(0), parts })
    }

    /// Takes everything apart, on a thread of its own: the caller's may be at its end, with its thread-local values gone,
    /// where a runtime cannot be waited for. Swift frees what a thread held last there.
    fn stop(&self, drain: Duration) {
        let Some(parts) = lock(&self.parts).take() else { return };
        let handle = self.handle.clone();
        let thread = std::thread::Builder::new().name("secateur-stop".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn(move || parts.stop(&handle, drain)).map(std::thread::JoinHandle::join) {
            Ok(Ok(())) => {}
            // The guard of the call makes an error of it.
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => {
                tracing::error!(%error, "no thread to stop on");
                block_on(self.handle.shutdown(drain));
            }
        }
    }
}

impl Parts {
    fn stop(self, handle: &ServiceHandle, drain: Duration) {
        let Self { service, runtime, server } = self;
        runtime.block_on(async {
            let served = async {
                let Some((stop, server)) = server else { return };
                // Dropping it would do as well.
                let _ = stop.send(());
                match tokio::time::timeout(drain + STOP_GRACE, server).await {
                    Ok(Ok(Ok(drained))) => tracing::info!(?drained, "connections have ended"),
                    Ok(Ok(Err(error))) => tracing::warn!(%error, "the server ended with an error"),
                    Ok(Err(error)) => tracing::error!(%error, "the server has broken"),
                    Err(_) => tracing::warn!("the server did not end in time"),
                }
            };
            tokio::join!(served, handle.shutdown(drain));
        });
        service.join();
        runtime.shutdown_timeout(Duration::from_millis(100));
    }
}

type Server = (Endpoint, oneshot::Sender<()>, JoinHandle<std::io::Result<Drained>>);

/// Opens the port with a token of this start.
fn serve(runtime: &Runtime, config: &Config, handle: ServiceHandle) -> Result<Server, FfiError> {
    let token = fresh_token()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, config.port));
    let io = |error: std::io::Error| {
        FfiError::new(SecateurCode::Io, format!("{address}: {}", error_chain(&error)))
    };
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(io)?;
    let port = listener.local_addr().map_err(io)?.port();
    // Every app of a phone reaches its loopback address, so nothing but health is answered without the token.
    let keys = ApiKeys { admin: vec![token.clone()], ..ApiKeys::default() };
    let app = App::new(handle, HttpOptions { keys, ..HttpOptions::default() });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime.spawn(app.serve(listener, async { drop(stopped.await) }, config.drain()));
    Ok((Endpoint { port, token }, stop, server))
}

/// A token that nobody can guess, in hexadecimal digits.
fn fresh_token() -> Result<String, FfiError> {
    let mut bytes = [0_u8; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        FfiError::new(SecateurCode::Internal, format!("no randomness for a token: {error}"))
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
