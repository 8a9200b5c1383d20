//! Long jobs: their state, and a ring of events that readers may join at any number.

use crate::ServiceError;
use crate::api::{JobEvent, JobEventKind, JobId, JobState, JobView, PlanView, ProgressView, PruneQuery};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Events kept of each job; older ones are superseded by newer progress.
const MAX_EVENTS: usize = 256;
/// Jobs remembered; the oldest finished ones are forgotten.
const MAX_JOBS: usize = 64;
/// Jobs that may wait at the same time.
const MAX_QUEUED_JOBS: usize = 4;

/// Seconds since 1970; 0 when the clock is before that.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

struct Inner {
    state: JobState,
    started: Option<Instant>,
    ended: Option<Instant>,
    progress: Option<ProgressView>,
    plan: Option<PlanView>,
    model: Option<String>,
    report: Option<serde_json::Value>,
    error: Option<String>,
    events: VecDeque<JobEvent>,
    last_event: u64,
}

/// One job.
pub(crate) struct Job {
    id: JobId,
    created_unix_s: u64,
    query: PruneQuery,
    cancel: Arc<AtomicBool>,
    inner: Mutex<Inner>,
    last_event: watch::Sender<u64>,
}

/// How a job ended.
pub(crate) enum JobEnd {
    Succeeded { model: String, report: serde_json::Value },
    Failed(String),
    Cancelled,
}

impl Job {
    fn new(id: JobId, query: PruneQuery) -> Self {
        let inner = Inner {
            state: JobState::Queued,
            started: None,
            ended: None,
            progress: None,
            plan: None,
            model: None,
            report: None,
            error: None,
            events: VecDeque::new(),
            last_event: 0,
        };
        Self {
            id,
            created_unix_s: unix_s(),
            query,
            cancel: Arc::new(AtomicBool::new(false)),
            inner: Mutex::new(inner),
            last_event: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn query(&self) -> &PruneQuery {
        &self.query
    }

    /// The flag the pruner asks.
    pub(crate) fn cancel_flag(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    fn view_of(&self, inner: &Inner) -> JobView {
        let until = inner.ended.unwrap_or_else(Instant::now);
        JobView {
            id: self.id,
            kind: "prune",
            state: inner.state,
            created_unix_s: self.created_unix_s,
            elapsed_s: inner.started.map_or(0.0, |started| until.duration_since(started).as_secs_f64()),
            progress: inner.progress.clone(),
            plan: inner.plan.clone(),
            model: inner.model.clone(),
            report: inner.report.clone(),
            error: inner.error.clone(),
        }
    }

    pub(crate) fn view(&self) -> JobView {
        self.view_of(&self.lock())
    }

    fn push(&self, inner: &mut Inner, kind: JobEventKind) {
        inner.last_event += 1;
        inner.events.push_back(JobEvent { id: inner.last_event, kind });
        if MAX_EVENTS < inner.events.len() {
            inner.events.pop_front();
        }
        self.last_event.send_replace(inner.last_event);
    }

    fn push_state(&self, inner: &mut Inner) {
        let view = Box::new(self.view_of(inner));
        self.push(inner, JobEventKind::State(view));
    }

    pub(crate) fn start(&self) {
        let mut inner = self.lock();
        inner.state = JobState::Running;
        inner.started = Some(Instant::now());
        self.push_state(&mut inner);
    }

    pub(crate) fn planned(&self, plan: PlanView) {
        let mut inner = self.lock();
        inner.plan = Some(plan.clone());
        self.push(&mut inner, JobEventKind::Planned(Box::new(plan)));
    }

    pub(crate) fn progress(&self, progress: ProgressView) {
        let mut inner = self.lock();
        inner.progress = Some(progress.clone());
        self.push(&mut inner, JobEventKind::Progress(progress));
    }

    /// Ends the job; a job that has ended stays as it is.
    pub(crate) fn end(&self, end: JobEnd) {
        let mut inner = self.lock();
        if inner.state.is_final() {
            return;
        }
        inner.ended = Some(Instant::now());
        match end {
            JobEnd::Succeeded { model, report } => {
                inner.state = JobState::Succeeded;
                inner.model = Some(model);
                inner.report = Some(report);
            }
            JobEnd::Failed(message) => {
                inner.state = JobState::Failed;
                inner.error = Some(message);
            }
            JobEnd::Cancelled => inner.state = JobState::Cancelled,
        }
        self.push_state(&mut inner);
    }

    /// Asks the job to stop. A waiting one ends at once, a running one when the pruner has seen the flag.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
        let waiting = self.lock().state == JobState::Queued;
        if waiting {
            self.end(JobEnd::Cancelled);
        }
    }
}

/// All jobs of this process.
#[derive(Default)]
pub(crate) struct JobRegistry {
    jobs: Mutex<BTreeMap<JobId, Arc<Job>>>,
}

impl JobRegistry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a job that waits.
    /// # Errors
    /// [`ServiceError::Conflict`] when too many jobs wait.
    pub(crate) fn add(&self, query: PruneQuery) -> Result<Arc<Job>, ServiceError> {
        let mut jobs = self.lock();
        let waiting = jobs.values().filter(|job| job.lock().state == JobState::Queued).count();
        if MAX_QUEUED_JOBS <= waiting {
            let message = format!("{waiting} jobs are waiting already; cancel one or try again later");
            return Err(ServiceError::Conflict { message });
        }
        let id = JobId(jobs.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let job = Arc::new(Job::new(id, query));
        jobs.insert(id, job.clone());
        while MAX_JOBS < jobs.len() {
            let oldest = jobs.iter().find(|(_, job)| job.lock().state.is_final()).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            jobs.remove(&oldest);
        }
        Ok(job)
    }

    /// Finds a job.
    /// # Errors
    /// [`ServiceError::JobNotFound`].
    pub(crate) fn get(&self, id: JobId) -> Result<Arc<Job>, ServiceError> {
        self.lock().get(&id).cloned().ok_or(ServiceError::JobNotFound { id: id.0 })
    }

    /// All jobs, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Job>> {
        self.lock().values().cloned().collect()
    }

    /// The job at work.
    pub(crate) fn active(&self) -> Option<JobId> {
        self.all().iter().find(|job| job.lock().state == JobState::Running).map(|job| job.id)
    }
}

/// The events of a job, from a number on.
pub struct JobEvents {
    job: Arc<Job>,
    next_id: u64,
    changed: watch::Receiver<u64>,
}

impl std::fmt::Debug for JobEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobEvents").field("job", &self.job.id).field("next_id", &self.next_id).finish()
    }
}

impl JobEvents {
    /// Events with a number above `after`; all that are kept when absent.
    pub(crate) fn new(job: Arc<Job>, after: Option<u64>) -> Self {
        let changed = job.last_event.subscribe();
        Self { job, next_id: after.unwrap_or(0).saturating_add(1), changed }
    }

    /// The next event if it is there, and whether none can follow.
    fn take(&mut self) -> (Option<JobEvent>, bool) {
        self.changed.mark_unchanged();
        let inner = self.job.lock();
        let event = inner.events.iter().find(|event| self.next_id <= event.id).cloned();
        if let Some(event) = &event {
            self.next_id = event.id + 1;
        }
        (event, inner.state.is_final())
    }

    /// Waits for the next event; `None` after the final one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<JobEvent> {
        loop {
            match self.take() {
                (Some(event), _) => return Some(event),
                (None, true) => return None,
                (None, false) => {}
            }
            // The sender lives in the job this reader holds.
            self.changed.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(layer_idx: usize) -> ProgressView {
        ProgressView {
            stage: "prune".into(),
            layer_idx: Some(layer_idx),
            n_layers: 30,
            done: 0.0,
            eta_s: None,
            rss_bytes: 0,
            rss_peak_bytes: 0,
            loss: None,
        }
    }

    #[tokio::test]
    async fn readers_join_at_any_number_and_end_with_the_job() {
        let registry = JobRegistry::default();
        let job = registry.add(PruneQuery::default()).unwrap();
        job.start();
        for layer_idx in 0..3 {
            job.progress(progress(layer_idx));
        }
        let mut late = JobEvents::new(job.clone(), Some(3));
        assert_eq!(late.next().await.unwrap().id, 4);
        let waiting = {
            let job = job.clone();
            std::thread::spawn(move || job.end(JobEnd::Failed("disk full".into())))
        };
        let last = late.next().await.unwrap();
        waiting.join().unwrap();
        assert_eq!(last.id, 5);
        assert!(matches!(last.kind, JobEventKind::State(view) if view.state == JobState::Failed));
        assert!(late.next().await.is_none());
        let mut all = JobEvents::new(job.clone(), None);
        let mut ids = Vec::new();
        while let Some(event) = all.next().await {
            ids.push(event.id);
        }
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        let mut beyond = JobEvents::new(job, Some(u64::MAX));
        assert!(beyond.next().await.is_none());
    }

    #[tokio::test]
    async fn the_ring_keeps_the_newest_events() {
        let job = JobRegistry::default().add(PruneQuery::default()).unwrap();
        job.start();
        for layer_idx in 0..2 * MAX_EVENTS {
            job.progress(progress(layer_idx));
        }
        let mut events = JobEvents::new(job.clone(), Some(1));
        assert_eq!(events.next().await.unwrap().id, MAX_EVENTS as u64 + 2);
        assert_eq!(job.lock().events.len(), MAX_EVENTS);
    }

    #[test]
    fn a_waiting_job_is_cancelled_at_once_and_too_many_are_refused() {
        let registry = JobRegistry::default();
        let jobs: Vec<_> =
            (0..MAX_QUEUED_JOBS).map(|_| registry.add(PruneQuery::default()).unwrap()).collect();
        assert!(matches!(registry.add(PruneQuery::default()), Err(ServiceError::Conflict { .. })));
        jobs[0].cancel();
        assert_eq!(jobs[0].view().state, JobState::Cancelled);
        for _ in 0..3 * MAX_JOBS {
            let job = registry.add(PruneQuery::default()).unwrap();
            job.cancel();
        }
        assert_eq!(registry.all().len(), MAX_JOBS);
        assert!(registry.get(jobs[1].id()).is_ok(), "a job that waits is not forgotten");
        assert!(registry.get(jobs[0].id()).is_err());
    }
}
