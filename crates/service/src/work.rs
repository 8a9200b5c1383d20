//! Prune jobs on the compute thread.

use crate::ServiceError;
use crate::api::{JobState, PruneQuery, Readiness};
use crate::budget::plan_view;
use crate::calibration::{Calibration, CalibrationText};
use crate::catalog::{Known, all_models, find_model, stored_model};
use crate::convert::{error_chain, io_error};
use crate::hints::Pacer;
use crate::jobs::{Job, JobEnd, Origin, unix_s};
use crate::opened::OpenModel;
use crate::pruning::{Finished, Prepared, PruneSettings, Run, run};
use crate::shared::{Control, Shared};
use crate::worker::{Worker, serve_round};
use secateur_model::{PlanAction, PrunePlan, PruneRatio};
use secateur_prune::MOMENTS_RUNG;
use secateur_store::{CalibrationRecord, Draft, Entry, SourceRecord};
use secateur_tensor::kernels::disk::IdleDisk;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Longest time in which requests keep a job from its next step.
const MAX_YIELD: Duration = Duration::from_secs(30);

/// Work folders of unfinished jobs that are kept for going on with; older ones are swept up.
const MAX_WORK_DIRS: usize = 4;

/// Name of the memory budget of a job among the settings in a manifest.
const BUDGET_SETTING: &str = "budget_bytes";

impl Worker {
    /// Queues again what a stop or a kill interrupted.
    pub(crate) fn take_up_pending(&self) {
        for job in self.shared.jobs().interrupted() {
            if let Err(error) = self.shared.check_prune(job.query()) {
                let error = error_chain(&error);
                tracing::warn!(job = %job.id(), error, "an interrupted job is given up");
                job.end(JobEnd::Failed(error));
                continue;
            }
            tracing::info!(job = %job.id(), "taking up a job that was interrupted");
            if self.shared.control(Control::Prune(job.clone())).is_err() {
                job.cancel();
            }
        }
        self.shared.keep_jobs();
    }

    /// Runs a job to its end; a failure is the job's, not the service's.
    pub(crate) fn run_job(&mut self, job: &Arc<Job>) {
        if job.view().state != JobState::Queued {
            return;
        }
        job.start();
        self.shared.keep_jobs();
        let end = match self.prune_job(job) {
            Ok(end) => end,
            Err(ServiceError::Cancelled) => JobEnd::Cancelled,
            Err(error) => JobEnd::Failed(error_chain(&error)),
        };
        let mut counters = self.shared.counters();
        match &end {
            JobEnd::Succeeded { .. } => counters.view.jobs_succeeded_total += 1,
            JobEnd::Failed(error) => {
                counters.view.jobs_failed_total += 1;
                tracing::warn!(job = %job.id(), error, "a job failed");
            }
            JobEnd::Cancelled => {
                counters.view.jobs_cancelled_total += 1;
                tracing::info!(job = %job.id(), "a job was cancelled");
            }
        }
        drop(counters);
        let done = (!matches!(end, JobEnd::Cancelled)).then(|| job.id());
        job.end(end);
        self.shared.keep_jobs();
        if self.shared.queue().is_closed() {
            self.shared.keep_end_of_work(done);
        }
    }

    fn prune_job(&mut self, job: &Arc<Job>) -> Result<JobEnd, ServiceError> {
        let shared = self.shared.clone();
        let query = job.query();
        let known = shared.model_or_base(query.model.as_deref())?;
        let settings = prune_settings(&shared.options().prune, query);
        let budget_bytes = shared.budget_or_own(query.memory_budget.as_deref())?;
        let prepared = Prepared::new(OpenModel::open(&known.path)?, settings, budget_bytes)?;
        job.planned(plan_view(&prepared.plan, budget_bytes, &prepared.settings.plan));
        if prepared.plan.action == PlanAction::Untouched {
            let report = serde_json::json!({ "untouched": true, "reason": prepared.plan.reason });
            return Ok(JobEnd::Succeeded { model: known.view.id, report });
        }
        let entry = match made_before(&shared, &prepared, budget_bytes)? {
            Some(entry) => {
                tracing::info!(id = %entry.id, "this has been pruned before");
                entry
            }
            None => self.prune_and_store(job, &prepared, &known, budget_bytes)?,
        };
        // The base model leaves memory before the pruned one comes.
        drop(prepared);
        let end = JobEnd::Succeeded { model: entry.id.to_string(), report: entry.manifest.report.clone() };
        let served = if query.activate { self.serve_entry(&entry) } else { Ok(()) };
        if !query.activate || served.is_err() {
            self.serve_again();
        }
        served.map(|()| end)
    }

    /// Prunes beside the served model when there is memory for both, and without it otherwise.
    fn prune_and_store(
        &mut self,
        job: &Arc<Job>,
        prepared: &Prepared,
        known: &Known,
        budget_bytes: u64,
    ) -> Result<Entry, ServiceError> {
        let used = self.loaded.as_ref().map_or(0, |loaded| loaded.footprint_bytes);
        let beside = budget_bytes.saturating_sub(used);
        let result = match self.prune_stored(job, prepared, known, beside) {
            Err(ServiceError::Refused { .. }) if self.loaded.is_some() => {
                tracing::info!("the served model makes room for the job and comes back after it");
                self.shared.set_last_served(self.loaded.as_ref().map(|loaded| loaded.model_id()));
                self.retire();
                self.prune_stored(job, prepared, known, budget_bytes)
            }
            other => other,
        };
        if result.is_err() {
            self.serve_again();
        }
        result
    }

    fn prune_stored(
        &mut self,
        job: &Arc<Job>,
        prepared: &Prepared,
        known: &Known,
        budget_bytes: u64,
    ) -> Result<Entry, ServiceError> {
        let shared = self.shared.clone();
        let work_dir = shared.jobs_dir().join(prepared.key());
        let served_bytes = self.loaded.as_ref().map_or(0, |loaded| loaded.footprint_bytes);
        let loaded = &mut self.loaded;
        let mut pacer = Pacer::new();
        let mut progress = |view: crate::api::ProgressView| {
            shared.tick();
            pacer.rest(shared.hints().thermal());
            job.progress(view.clone());
            match loaded {
                // Requests go first, but not for ever: the job comes to its end under any load.
                Some(loaded) => {
                    loaded.give_up(shared.pressure());
                    let since = Instant::now();
                    while since.elapsed() < MAX_YIELD && serve_round(&shared, loaded) {}
                }
                None => shared.set_readiness(Readiness::Pruning { job: job.id(), progress: Some(view) }),
            }
        };
        let how = Run {
            work_dir: &work_dir,
            budget_bytes,
            served_bytes,
            n_threads: shared.n_threads(),
            progress: &mut progress,
            cancel: job.cancel_flag(),
        };
        // This thread cannot take back niceness, but it can take back its place at the disk.
        let _idle = IdleDisk::new();
        let finished = run(prepared, how)?;
        store_result(&shared, prepared, known, finished)
    }

    /// Prunes the base model and serves the result; a result made earlier is served at once.
    pub(crate) fn serve_pruned(&mut self) -> Result<(), ServiceError> {
        let job = self
            .shared
            .jobs()
            .add(Origin::Service, PruneQuery { activate: true, ..PruneQuery::default() })?;
        self.run_job(&job);
        let view = job.view();
        match view.state {
            JobState::Succeeded => Ok(()),
            JobState::Cancelled => {
                let message = "pruning was cancelled; start a prune job or activate a model".to_owned();
                self.shared.set_readiness(Readiness::Failed { message });
                Err(ServiceError::Cancelled)
            }
            _ => {
                let message = view.error.unwrap_or_else(|| "pruning failed".to_owned());
                Err(ServiceError::Conflict { message })
            }
        }
    }

    fn serve_entry(&mut self, entry: &Entry) -> Result<(), ServiceError> {
        let known = stored_model(entry)?;
        let model = OpenModel::open(&known.path)?;
        let fit = self.fit(&model)?;
        let _swap = self.begin_swap();
        self.load(&known, model, &fit, Some(entry.manifest.plan.clone()))
    }

    /// Serves what was served before a job needed the memory.
    pub(crate) fn serve_again(&mut self) {
        let shared = self.shared.clone();
        let Some(id) = shared.take_last_served() else { return };
        let again = || -> Result<(Known, OpenModel), ServiceError> {
            let models = all_models(shared.base(), shared.store())?;
            let known = find_model(&models, &id)?;
            let model = OpenModel::open(&known.path)?;
            Ok((known, model))
        };
        let result = again().and_then(|(known, model)| {
            let fit = self.fit(&model)?;
            self.load(&known, model, &fit, None)
        });
        if let Err(error) = result {
            shared.set_readiness(Readiness::Failed { message: error_chain(&error) });
        }
    }
}

/// What an earlier job made of the same inputs: the best there is of them, or, with no more memory than it had then, what
/// came of little memory. Without the latter a service would prune again at every start.
fn made_before(
    shared: &Shared,
    prepared: &Prepared,
    budget_bytes: u64,
) -> Result<Option<Entry>, ServiceError> {
    if let Some(entry) = shared.store().find(&prepared.key())? {
        return Ok(Some(entry));
    }
    let poorer = shared.store().find(&poorer_key(prepared))?;
    let had_as_much = |entry: &Entry| {
        let had = entry.manifest.settings.get(BUDGET_SETTING).and_then(serde_json::Value::as_u64);
        had.is_some_and(|had| budget_bytes <= had)
    };
    Ok(poorer.filter(had_as_much))
}

/// The key of a result for which memory was too short to do all that its method would.
fn poorer_key(prepared: &Prepared) -> String {
    blake3::hash(format!("{} {MOMENTS_RUNG}", prepared.key()).as_bytes()).to_string()
}

fn store_result(
    shared: &Shared,
    prepared: &Prepared,
    known: &Known,
    finished: Finished,
) -> Result<Entry, ServiceError> {
    let report = &finished.outcome.report;
    let report = serde_json::to_value(report).map_err(|error| crate::convert::internal(&error))?;
    let draft = || draft(prepared, known, report);
    let expected_bytes = prepared.file.file_bytes();
    let fill = |path: &Path| prepared.write(&finished.outcome, path).map(drop);
    let entry = shared.store().add(expected_bytes, fill, draft)?.into_entry();
    tracing::info!(id = %entry.id, "stored");
    finished.discard_work()?;
    Ok(entry)
}

fn draft(prepared: &Prepared, known: &Known, report: serde_json::Value) -> Draft {
    let settings = &prepared.settings;
    // A job with more memory asks for a better model by the same inputs: it must not be given this one.
    let is_poorer = report["memory"]["rung"] == MOMENTS_RUNG;
    let key = if is_poorer { poorer_key(prepared) } else { prepared.key() };
    Draft {
        key,
        generator: format!("secateur {}", env!("CARGO_PKG_VERSION")),
        name: result_name(&known.view.name, &prepared.plan),
        created_unix_s: unix_s(),
        source: SourceRecord {
            digest: prepared.source_digest.clone(),
            name: known.view.name.clone(),
            bytes: known.view.bytes,
        },
        plan: plan_view(&prepared.plan, prepared.budget_bytes, &settings.plan),
        method: settings.method.clone(),
        settings: BTreeMap::from([
            ("fit_tokens".to_owned(), prepared.fit_tokens.into()),
            (BUDGET_SETTING.to_owned(), prepared.budget_bytes.into()),
        ]),
        seed: settings.seed,
        calibration: CalibrationRecord {
            digest: prepared.calibration_digest.clone(),
            tokens: prepared.fit_tokens,
        },
        report,
    }
}

/// `Name-pruned-17`, or `Name-q4_0` when nothing but the dtype changes.
fn result_name(base: &str, plan: &PrunePlan) -> String {
    let dtype = plan.table_dtype.or(plan.dtype).filter(|_| plan.ratio == PruneRatio::ZERO);
    match dtype {
        Some(dtype) => format!("{base}-{dtype}"),
        None => format!("{base}-pruned-{:.0}", 100.0 * plan.ratio.get()),
    }
}

/// The service's settings with what the query says in their place.
pub(crate) fn prune_settings(base: &PruneSettings, query: &PruneQuery) -> PruneSettings {
    let mut settings = base.clone();
    let plan = &mut settings.plan;
    plan.ratio = query.ratio.or(plan.ratio);
    plan.context_len = query.context_len.or(plan.context_len);
    plan.policy = query.policy.clone().or(plan.policy.take());
    plan.dtype = query.dtype.clone().or(plan.dtype.take());
    plan.table_dtype = query.table_dtype.clone().or(plan.table_dtype.take());
    if let Some(method) = &query.method {
        settings.method = method.clone();
    }
    settings.seed = query.seed.unwrap_or(settings.seed);
    if let Some(text) = &query.calibration_text {
        settings.calibration = Calibration { text: CalibrationText::Text(text.clone()), tokens: None };
    }
    settings.calibration.tokens = query.calibration_tokens.or(settings.calibration.tokens);
    settings
}

/// Removes all but the newest work folders.
/// # Errors
/// [`ServiceError::Io`].
pub(crate) fn sweep_work_dirs(jobs_dir: &Path) -> Result<(), ServiceError> {
    let fail = |error| io_error(jobs_dir, error);
    let mut dirs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(jobs_dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.path().is_dir() {
            continue;
        }
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        dirs.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
    }
    dirs.sort();
    let n_old = dirs.len().saturating_sub(MAX_WORK_DIRS);
    for (_, path) in &dirs[..n_old] {
        fs::remove_dir_all(path).map_err(|error| io_error(path, error))?;
    }
    Ok(())
}
