//! What the handles and the compute thread share: readiness, the queue, jobs, counters.

use crate::ServiceError;
use crate::api::{
    EmbeddingView, JobId, MemoryView, MetricsView, ModelView, PlanQuery, PlanView, PruneQuery, Readiness,
    StatusView,
};
use crate::handle::Heartbeat;
use crate::jobs::{Job, JobRegistry};
use crate::queue::{PushError, Queue};
use crate::served::Served;
use crate::stream::EventSink;
use secateur_generate::GenerateRequest;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Work for the compute thread that ends soon.
pub(crate) enum Request {
    Generate { request: GenerateRequest, sink: EventSink },
    Embed { tokens: Vec<u32>, reply: oneshot::Sender<Result<EmbeddingView, ServiceError>> },
}

/// Work for the compute thread that changes what it has.
pub(crate) enum Control {
    Prune(Arc<Job>),
    Activate { id: String, reply: oneshot::Sender<Result<ModelView, ServiceError>> },
}

/// Bounds of the wait a full queue asks of its clients.
const RETRY_AFTER_S: std::ops::RangeInclusive<f64> = 1.0..=60.0;
/// How much the newest request weighs in the mean duration.
const MEAN_WEIGHT: f64 = 0.2;

/// Counters behind one lock; see [`MetricsView`] for their meaning.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) view: MetricsView,
    /// Seconds a request took lately.
    pub(crate) mean_request_s: f64,
}

impl Counters {
    /// Takes note of how long a request has taken.
    pub(crate) fn request_took(&mut self, seconds: f64) {
        let old = if self.mean_request_s == 0.0 { seconds } else { self.mean_request_s };
        self.mean_request_s = old + MEAN_WEIGHT * (seconds - old);
    }
}

pub(crate) struct Shared {
    started: Instant,
    n_threads: usize,
    queue: Queue<Request, Control>,
    jobs: JobRegistry,
    readiness: watch::Sender<Readiness>,
    served: RwLock<Option<Arc<Served>>>,
    counters: Mutex<Counters>,
    ticks: AtomicU64,
    idle: AtomicBool,
    /// When running requests are cancelled; set by a shutdown.
    drain_until: Mutex<Option<Instant>>,
    stopped: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new(queue_len: usize, n_threads: usize) -> Self {
        Self {
            started: Instant::now(),
            n_threads,
            queue: Queue::new(queue_len),
            jobs: JobRegistry::default(),
            readiness: watch::Sender::new(Readiness::Starting),
            served: RwLock::new(None),
            counters: Mutex::new(Counters::default()),
            ticks: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            drain_until: Mutex::new(None),
            stopped: watch::Sender::new(false),
        }
    }

    pub(crate) fn queue(&self) -> &Queue<Request, Control> {
        &self.queue
    }

    pub(crate) fn jobs(&self) -> &JobRegistry {
        &self.jobs
    }

    pub(crate) fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.borrow().clone()
    }

    pub(crate) fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Sets the readiness; a shutdown is never taken back.
    pub(crate) fn set_readiness(&self, readiness: Readiness) {
        self.readiness.send_if_modified(|current| {
            let changes = *current != Readiness::ShuttingDown && *current != readiness;
            if changes {
                *current = readiness;
            }
            changes
        });
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        Heartbeat { ticks: self.ticks.load(Ordering::Relaxed), idle: self.idle.load(Ordering::Relaxed) }
    }

    /// A sign of life of the compute thread.
    pub(crate) fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
        self.tick();
    }

    /// What is served.
    /// # Errors
    /// [`ServiceError::NotReady`] with the reason, [`ServiceError::ShuttingDown`].
    pub(crate) fn served(&self) -> Result<Arc<Served>, ServiceError> {
        let message = match self.readiness() {
            Readiness::Ready => {
                let served = self.served.read().unwrap_or_else(PoisonError::into_inner).clone();
                return served.ok_or(ServiceError::Internal { message: "ready without a model".into() });
            }
            Readiness::ShuttingDown => return Err(ServiceError::ShuttingDown),
            Readiness::Starting | Readiness::Loading => "the model is being loaded".to_owned(),
            Readiness::Pruning { job, progress } => {
                let done = progress.map_or(0.0, |progress| 100.0 * progress.done);
                format!("the model is being pruned to fit the memory budget, {done:.0} % done (job {job})")
            }
            Readiness::NoModel => "there is none; activate one".to_owned(),
            Readiness::Failed { message } => message,
        };
        Err(ServiceError::NotReady { message })
    }

    pub(crate) fn set_served(&self, served: Option<Arc<Served>>) {
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = served;
    }

    pub(crate) fn request(&self, request: Request) -> Result<(), ServiceError> {
        let result = self.queue.push_request(request);
        let mut counters = self.counters();
        match result {
            Ok(()) => {
                counters.view.requests_total += 1;
                Ok(())
            }
            Err(PushError::Closed) => Err(ServiceError::ShuttingDown),
            Err(PushError::Full) => {
                counters.view.requests_busy_total += 1;
                let queue_len = self.queue.max_requests();
                let wait_s = counters.mean_request_s.clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end());
                Err(ServiceError::Busy { queue_len, retry_after: Duration::from_secs_f64(wait_s.ceil()) })
            }
        }
    }

    pub(crate) fn control(&self, control: Control) -> Result<(), ServiceError> {
        self.queue.push_control(control).map_err(|_| ServiceError::ShuttingDown)
    }

    pub(crate) fn begin_shutdown(&self, drain: Duration) {
        let mut until = self.drain_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + drain);
        drop(until);
        self.set_readiness(Readiness::ShuttingDown);
        self.queue.close();
        for job in self.jobs.all() {
            job.cancel();
        }
    }

    /// True when running requests must end.
    pub(crate) fn drained(&self) -> bool {
        let until = *self.drain_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until <= Instant::now())
    }

    pub(crate) fn set_stopped(&self) {
        self.stopped.send_replace(true);
    }

    pub(crate) async fn wait_stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives as long as `self`.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    pub(crate) fn status(&self) -> StatusView {
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            readiness: self.readiness(),
            model: None,
            uptime_s: self.started.elapsed().as_secs_f64(),
            queued: self.queue.n_requests(),
            queue_len: self.queue.max_requests(),
            active_job: self.jobs.active(),
            n_threads: self.n_threads,
        }
    }

    pub(crate) fn metrics(&self) -> MetricsView {
        let view = self.counters().view;
        MetricsView {
            queued: self.queue.n_requests() as u64,
            uptime_s: self.started.elapsed().as_secs_f64(),
            ..view
        }
    }

    fn no_model() -> ServiceError {
        ServiceError::NotReady { message: "there is no model; activate one".into() }
    }

    pub(crate) fn memory(&self) -> Result<MemoryView, ServiceError> {
        Err(Self::no_model())
    }

    pub(crate) fn models(&self) -> Result<Vec<ModelView>, ServiceError> {
        Ok(Vec::new())
    }

    pub(crate) fn plan(&self, _query: &PlanQuery) -> Result<PlanView, ServiceError> {
        Err(Self::no_model())
    }

    pub(crate) fn check_prune(&self, _query: &PruneQuery) -> Result<(), ServiceError> {
        Err(Self::no_model())
    }

    pub(crate) fn delete_model(&self, id: &str) -> Result<(), ServiceError> {
        Err(ServiceError::ModelNotFound { id: id.to_owned() })
    }

    #[expect(dead_code, reason = "used by the worker, which follows")]
    pub(crate) fn job_ids(&self) -> Vec<JobId> {
        self.jobs.all().iter().map(|job| job.id()).collect()
    }
}
