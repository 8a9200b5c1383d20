//! What the handles and the compute thread share: readiness, the queue, jobs, counters.

use crate::ServiceError;
use crate::api::{EmbeddingView, JobId, MetricsView, ModelView, Readiness, StatusView};
use crate::budget::resident_bytes;
use crate::catalog::Known;
use crate::convert::error_chain;
use crate::handle::Heartbeat;
use crate::hints::{Hints, MemoryPressure};
use crate::jobs::{Job, JobRegistry};
use crate::options::ServiceOptions;
use crate::pending::PendingJobs;
use crate::pressure::RETRY_AFTER;
use crate::queue::{PushError, Queue};
use crate::served::{PreparedRequest, Served};
use crate::stream::EventSink;
use secateur_memory::{PressureSample, PressureStep, ProbeRoot, probe};
use secateur_store::Store;
use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Work for the compute thread that ends soon.
pub(crate) enum Request {
    Generate { prepared: Box<PreparedRequest>, sink: EventSink },
    Embed { tokens: Vec<u32>, reply: oneshot::Sender<Result<EmbeddingView, ServiceError>> },
}

/// Work for the compute thread that changes what it has.
pub(crate) enum Control {
    Prune(Arc<Job>),
    Activate {
        id: String,
        reply: oneshot::Sender<Result<ModelView, ServiceError>>,
    },
    /// The memory hint has changed.
    Relieve,
    /// The step of memory pressure has changed.
    Pressure,
}

/// What requests are told while the model is let go of.
const RELEASED: &str =
    "the device is short of memory, so the model was let go of; it comes back when that is over";
/// Work folders, and the file of pending jobs.
const JOBS_DIR: &str = "jobs";
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
    options: ServiceOptions,
    /// The bound on the whole process, fixed at the start.
    budget_bytes: u64,
    n_threads: usize,
    store: Store,
    base: OnceLock<Known>,
    /// What was served before a job needed the memory.
    last_served: Mutex<Option<String>>,
    queue: Queue<Request, Control>,
    jobs: JobRegistry,
    /// Held while the file of pending jobs is written.
    jobs_file: Mutex<()>,
    readiness: watch::Sender<Readiness>,
    /// Another model is about to take the place of the served one.
    swapping: watch::Sender<bool>,
    served: RwLock<Option<Arc<Served>>>,
    counters: Mutex<Counters>,
    /// Step of memory pressure, by its level.
    pressure: AtomicUsize,
    ticks: AtomicU64,
    idle: AtomicBool,
    hints: Hints,
    /// When running requests are cancelled; set by a shutdown.
    drain_until: Mutex<Option<Instant>>,
    stopped: watch::Sender<bool>,
    /// Closed by the stop: who waits at the other side ends.
    alive: Mutex<Option<PipeWriter>>,
}

impl Shared {
    pub(crate) fn new(options: ServiceOptions, store: Store, budget_bytes: u64, n_threads: usize) -> Self {
        let pending = PendingJobs::read(&pending_file(&options.state_dir)).unwrap_or_else(|error| {
            tracing::warn!(error = error_chain(&error), "jobs that were interrupted are given up");
            PendingJobs::default()
        });
        Self {
            started: Instant::now(),
            budget_bytes,
            n_threads,
            store,
            base: OnceLock::new(),
            last_served: Mutex::new(None),
            queue: Queue::new(options.queue_len),
            options,
            jobs: JobRegistry::restored(pending),
            jobs_file: Mutex::new(()),
            readiness: watch::Sender::new(Readiness::Starting),
            swapping: watch::Sender::new(false),
            served: RwLock::new(None),
            counters: Mutex::new(Counters::default()),
            pressure: AtomicUsize::new(0),
            ticks: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            hints: Hints::default(),
            drain_until: Mutex::new(None),
            stopped: watch::Sender::new(false),
            alive: Mutex::new(None),
        }
    }

    pub(crate) fn options(&self) -> &ServiceOptions {
        &self.options
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.n_threads
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The model of the options, once it has been looked at; absent when that is one of the store.
    pub(crate) fn base(&self) -> Option<&Known> {
        self.base.get()
    }

    pub(crate) fn set_base(&self, known: Known) {
        // The first one stays: the options do not change.
        let _ = self.base.set(known);
    }

    pub(crate) fn set_last_served(&self, id: Option<String>) {
        *self.last_served.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    pub(crate) fn take_last_served(&self) -> Option<String> {
        self.last_served.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Folder for the unfinished work of jobs.
    pub(crate) fn jobs_dir(&self) -> PathBuf {
        self.options.state_dir.join(JOBS_DIR)
    }

    /// Brings the file of pending jobs up to date. A stop cancels all jobs but is not their end: what is in the file
    /// when it begins stays there.
    pub(crate) fn keep_jobs(&self) {
        let _guard = self.jobs_file.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = self.jobs.pending();
        // Looked at after the jobs: the queue is closed before they are cancelled.
        if !self.queue.is_closed() {
            self.write_pending(&pending);
        }
    }

    /// Notes during a stop that no job is at work any more, and that `done` came to its end before it saw the stop.
    pub(crate) fn keep_end_of_work(&self, done: Option<JobId>) {
        let _guard = self.jobs_file.lock().unwrap_or_else(PoisonError::into_inner);
        match PendingJobs::read(&pending_file(&self.options.state_dir)) {
            Ok(mut pending) => {
                pending.at_work = None;
                pending.jobs.retain(|job| Some(job.id) != done);
                self.write_pending(&pending);
            }
            Err(error) => tracing::debug!(error = error_chain(&error), "no file of pending jobs"),
        }
    }

    fn write_pending(&self, pending: &PendingJobs) {
        if let Err(error) = pending.write(&pending_file(&self.options.state_dir)) {
            tracing::warn!(error = error_chain(&error), "jobs would not survive a restart");
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
        self.with_served(|served| Ok(served.clone()))
    }

    /// Makes something with what is served, which stays until it is made and queued.
    /// # Errors
    /// As [`Self::served`], and what `make` says.
    pub(crate) fn with_served<T>(
        &self,
        make: impl FnOnce(&Arc<Served>) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let message = match (self.readiness(), &*served) {
            (Readiness::ShuttingDown, _) => return Err(ServiceError::ShuttingDown),
            (_, Some(served)) => return make(served),
            (Readiness::Ready | Readiness::Starting | Readiness::Loading, None) => {
                "the model is being loaded".to_owned()
            }
            (Readiness::Pruning { job, progress }, None) => {
                let done = progress.map_or(0.0, |progress| 100.0 * progress.done);
                format!("the model is being pruned to fit the memory budget, {done:.0} % done (job {job})")
            }
            (Readiness::Released, None) => RELEASED.to_owned(),
            (Readiness::NoModel, None) => "there is none; activate one".to_owned(),
            (Readiness::Failed { message }, None) => message,
        };
        Err(ServiceError::NotReady { message })
    }

    /// True while another model is about to take the place of the served one.
    pub(crate) fn is_swapping(&self) -> bool {
        *self.swapping.borrow()
    }

    /// Waits until no model is being changed for another one.
    pub(crate) async fn swapped(&self) {
        // The sender lives as long as `self`.
        let _ = self.swapping.subscribe().wait_for(|swapping| !swapping).await;
    }

    pub(crate) fn set_served(&self, served: Option<Arc<Served>>) {
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = served;
    }

    /// The present step of memory pressure.
    pub(crate) fn pressure(&self) -> PressureStep {
        let level = self.pressure.load(Ordering::Relaxed);
        PressureStep::ALL.get(level).copied().unwrap_or_default()
    }

    pub(crate) fn store_pressure(&self, step: PressureStep) {
        self.pressure.store(step.level(), Ordering::Relaxed);
    }

    pub(crate) fn request(&self, request: Request) -> Result<(), ServiceError> {
        if PressureStep::RefuseWork <= self.pressure() {
            self.counters().view.requests_busy_total += 1;
            return Err(ServiceError::Busy {
                queue_len: self.queue.max_requests(),
                retry_after: RETRY_AFTER,
            });
        }
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

    pub(crate) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// Takes a memory hint: the compute thread acts when it is free, and is made free when the need is dire.
    pub(crate) fn hint_memory(&self, level: MemoryPressure) {
        if !self.hints.set_memory(level) {
            return;
        }
        tracing::info!(?level, "the system's memory");
        if level == MemoryPressure::Critical {
            for job in self.jobs.all() {
                job.cancel();
            }
        }
        // After a shutdown there is nothing left to let go of.
        let _ = self.control(Control::Relieve);
    }

    /// Why a request was ended by the service.
    pub(crate) fn end_reason(&self) -> ServiceError {
        if self.readiness() == Readiness::ShuttingDown || self.hints.memory() != MemoryPressure::Critical {
            return ServiceError::ShuttingDown;
        }
        ServiceError::NotReady { message: RELEASED.to_owned() }
    }

    /// True when running requests must end.
    pub(crate) fn drained(&self) -> bool {
        let until = *self.drain_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until <= Instant::now()) || self.hints.memory() == MemoryPressure::Critical
    }

    /// Keeps one side of a pipe open until the compute thread has ended.
    pub(crate) fn keep_until_stopped(&self, alive: PipeWriter) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Some(alive);
    }

    pub(crate) fn set_stopped(&self) {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.stopped.send_replace(true);
    }

    pub(crate) async fn wait_stopped(&self) {
        let mut stopped = self.stopped.subscribe();
        // The sender lives as long as `self`.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    pub(crate) fn status(&self) -> StatusView {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            readiness: self.readiness(),
            model: served.as_ref().map(|served| served.view()),
            uptime_s: self.started.elapsed().as_secs_f64(),
            queued: self.queue.n_requests(),
            running: self.counters().view.running as usize,
            queue_len: self.queue.max_requests(),
            active_job: self.jobs.active(),
            n_threads: self.n_threads,
        }
    }

    pub(crate) fn set_running(&self, running: u64) {
        self.counters().view.running = running;
    }

    pub(crate) fn metrics(&self) -> MetricsView {
        let view = self.counters().view;
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let (rss_bytes, rss_peak_bytes) = resident_bytes();
        let sample = probe(&ProbeRoot::host()).ok().map(|status| PressureSample::of(&status, false));
        let sample = sample.unwrap_or_default();
        let (jobs_queued, jobs_running) = self.jobs.n_unfinished();
        MetricsView {
            available_bytes: sample.available_bytes,
            stalled_seconds_total: sample.stalled_us.map(|stalled_us| stalled_us as f64 / 1e6),
            jobs_queued,
            jobs_running,
            queue_len: self.queue.max_requests() as u64,
            queued: self.queue.n_requests() as u64,
            rss_bytes,
            rss_peak_bytes,
            budget_bytes: self.budget_bytes,
            pressure_step: self.pressure().level() as u64,
            model_bytes: served.as_ref().map_or(0, |served| served.model.bytes),
            uptime_s: self.started.elapsed().as_secs_f64(),
            ..view
        }
    }
}

fn pending_file(state_dir: &Path) -> PathBuf {
    state_dir.join(JOBS_DIR).join("pending.json")
}

/// While it lives, requests wait for the next model.
pub(crate) struct Swap {
    shared: Arc<Shared>,
}

impl Swap {
    pub(crate) fn begin(shared: Arc<Shared>) -> Self {
        shared.swapping.send_replace(true);
        Self { shared }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.shared.swapping.send_replace(false);
    }
}
