//! Long jobs: their state, and a ring of events that readers may join at any number.

use crate::ServiceError;
use crate::api::{JobEvent, JobEventKind, JobId, JobState, JobView, PlanView, ProgressView, PruneQuery};
use crate::pending::{PendingJob, PendingJobs};
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
/// Kills of the service while one job was at work, after which it is no longer taken up: it may be their cause.
const MAX_KILLS: u32 = 3;
/// Events of one start of the service are numbered from a multiple of this, so that a reader that has seen those of
/// an earlier one misses none.
const EVENTS_PER_START: u64 = 1 << 20;

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

/// Who wants a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client: it is gone on with after a stop or a kill of the service.
    Client,
    /// The service itself, which comes to it again by itself.
    Service,
}

/// One job.
pub(crate) struct Job {
    origin: Origin,
    id: JobId,
    created_unix_s: u64,
    n_starts: u32,
    n_kills: u32,
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
    fn new(origin: Origin, job: PendingJob) -> Self {
        let PendingJob { id, created_unix_s, n_starts, n_kills, query } = job;
        let last_event = u64::from(n_starts) * EVENTS_PER_START;
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
            last_event,
        };
        Self {
            origin,
            id,
            created_unix_s,
            n_starts,
            n_kills,
            query,
            cancel: Arc::new(AtomicBool::new(false)),
            inner: Mutex::new(inner),
            last_event: watch::Sender::new(last_event),
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

    /// What a later start of the service must know of it; nothing when it has ended, is to end, or is the service's own.
    fn pending(&self) -> Option<PendingJob> {
        let ends = self.cancel.load(Ordering::Relaxed) || self.lock().state.is_final();
        let is_pending = self.origin == Origin::Client && !ends;
        is_pending.then(|| PendingJob {
            id: self.id,
            created_unix_s: self.created_unix_s,
            n_starts: self.n_starts,
            n_kills: self.n_kills,
            query: self.query.clone(),
        })
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

#[derive(Default)]
struct Jobs {
    last_id: JobId,
    by_id: BTreeMap<JobId, Arc<Job>>,
}

/// All jobs of this process, and those of earlier ones that had not ended.
#[derive(Default)]
pub(crate) struct JobRegistry {
    jobs: Mutex<Jobs>,
}

impl JobRegistry {
    /// Takes up what was pending when an earlier process ended; all of it waits, but for a job during which that was
    /// killed time and again.
    pub(crate) fn restored(pending: PendingJobs) -> Self {
        let PendingJobs { mut last_id, at_work, jobs } = pending;
        let mut by_id = BTreeMap::new();
        for mut job in jobs {
            last_id = last_id.max(job.id);
            job.n_starts = job.n_starts.saturating_add(1);
            job.n_kills = job.n_kills.saturating_add(u32::from(at_work == Some(job.id)));
            let n_kills = job.n_kills;
            let job = Arc::new(Job::new(Origin::Client, job));
            if MAX_KILLS <= n_kills {
                let why =
                    "the service was killed again and again while this job was at work; ask again to go on";
                job.end(JobEnd::Failed(why.to_owned()));
            }
            by_id.insert(job.id, job);
        }
        Self { jobs: Mutex::new(Jobs { last_id, by_id }) }
    }

    /// What a later process must know.
    pub(crate) fn pending(&self) -> PendingJobs {
        let jobs = self.lock();
        let at_work = jobs.by_id.values().find(|job| job.lock().state == JobState::Running);
        PendingJobs {
            last_id: jobs.last_id,
            at_work: at_work.map(|job| job.id),
            jobs: jobs.by_id.values().filter_map(|job| job.pending()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a job that waits.
    /// # Errors
    /// [`ServiceError::Conflict`] when too many jobs of clients wait.
    pub(crate) fn add(&self, origin: Origin, query: PruneQuery) -> Result<Arc<Job>, ServiceError> {
        let mut jobs = self.lock();
        let waiting = jobs.by_id.values().filter(|job| job.lock().state == JobState::Queued).count();
        if origin == Origin::Client && MAX_QUEUED_JOBS <= waiting {
            let message = format!("{waiting} jobs are waiting already; cancel one or try again later");
            return Err(ServiceError::Conflict { message });
        }
        let id = JobId(jobs.last_id.0 + 1);
        let job = PendingJob { id, created_unix_s: unix_s(), query, ..PendingJob::default() };
        let job = Arc::new(Job::new(origin, job));
        jobs.last_id = id;
        jobs.by_id.insert(id, job.clone());
        while MAX_JOBS < jobs.by_id.len() {
            let oldest = jobs.by_id.iter().find(|(_, job)| job.lock().state.is_final()).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            jobs.by_id.remove(&oldest);
        }
        Ok(job)
    }

    /// Finds a job.
    /// # Errors
    /// [`ServiceError::JobNotFound`].
    pub(crate) fn get(&self, id: JobId) -> Result<Arc<Job>, ServiceError> {
        self.lock().by_id.get(&id).cloned().ok_or(ServiceError::JobNotFound { id: id.0 })
    }

    /// All jobs, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Job>> {
        self.lock().by_id.values().cloned().collect()
    }

    /// Jobs of earlier processes that wait, oldest first.
    pub(crate) fn interrupted(&self) -> Vec<Arc<Job>> {
        let is_interrupted = |job: &Arc<Job>| 0 < job.n_starts && job.lock().state == JobState::Queued;
        self.all().into_iter().filter(is_interrupted).collect()
    }

    /// How many jobs wait, and how many are at work.
    pub(crate) fn n_unfinished(&self) -> (u64, u64) {
        let n = |state| self.all().iter().filter(|job| job.lock().state == state).count() as u64;
        (n(JobState::Queued), n(JobState::Running))
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
        let job = registry.add(Origin::Client, PruneQuery::default()).unwrap();
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
        let job = JobRegistry::default().add(Origin::Client, PruneQuery::default()).unwrap();
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
        let jobs: Vec<_> = (0..MAX_QUEUED_JOBS)
            .map(|_| registry.add(Origin::Client, PruneQuery::default()).unwrap())
            .collect();
        assert!(matches!(
            registry.add(Origin::Client, PruneQuery::default()),
            Err(ServiceError::Conflict { .. })
        ));
        jobs[0].cancel();
        assert_eq!(jobs[0].view().state, JobState::Cancelled);
        for _ in 0..3 * MAX_JOBS {
            let job = registry.add(Origin::Client, PruneQuery::default()).unwrap();
            job.cancel();
        }
        assert_eq!(registry.all().len(), MAX_JOBS);
        assert!(registry.get(jobs[1].id()).is_ok(), "a job that waits is not forgotten");
        assert!(registry.get(jobs[0].id()).is_err());
    }

    #[tokio::test]
    async fn what_was_pending_keeps_its_number_and_its_readers() {
        let registry = JobRegistry::default();
        let queries = [PruneQuery { seed: Some(1), ..PruneQuery::default() }, PruneQuery::default()];
        let jobs = queries.map(|query| registry.add(Origin::Client, query).unwrap());
        let own = registry.add(Origin::Service, PruneQuery::default()).unwrap();
        jobs[0].start();
        jobs[0].progress(progress(0));
        let mut pending = registry.pending();
        assert_eq!((pending.last_id, pending.at_work), (own.id, Some(jobs[0].id)));
        for n_kills in 1..=MAX_KILLS {
            let registry = JobRegistry::restored(pending);
            let states: Vec<_> = registry.all().iter().map(|job| (job.id.0, job.view().state)).collect();
            let first = if n_kills < MAX_KILLS { JobState::Queued } else { JobState::Failed };
            assert_eq!(states, [(1, first), (2, JobState::Queued)], "after {n_kills} kills");
            let job = registry.get(JobId(1)).unwrap();
            assert_eq!(job.query().seed, Some(1));
            if n_kills < MAX_KILLS {
                // A reader that has seen thousands of events in the process before.
                let mut events = JobEvents::new(job.clone(), Some(5000));
                job.start();
                assert!(matches!(events.next().await.unwrap().kind, JobEventKind::State(_)));
            }
            let newest = registry.add(Origin::Client, PruneQuery::default()).unwrap();
            assert_eq!(newest.id(), JobId(3 + u64::from(n_kills)), "no number is given twice");
            pending = registry.pending();
            pending.jobs.truncate(2);
        }
        assert_eq!(pending.jobs[0].id, JobId(2), "what has ended is not pending");
        // A stop in good order is no kill, and the job that waited was not at work.
        let waiting = PendingJobs { at_work: None, ..pending };
        let again = JobRegistry::restored(waiting).pending();
        assert_eq!((again.jobs[0].n_kills, again.jobs[0].n_starts), (0, MAX_KILLS + 1));
    }
}
