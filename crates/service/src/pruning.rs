//! A prune job from plan to file: what the command line and the jobs of the service have in common.

use crate::ServiceError;
use crate::api::ProgressView;
use crate::budget::{PlanSettings, plan_file, resident_bytes};
use crate::calibration::Calibration;
use crate::convert::io_error;
use crate::opened::OpenModel;
use crate::stage_watch::StageWatch;
use rustix::fs::{FlockOperation, flock};
use secateur_memory::format_bytes;
use secateur_model::{PlanAction, PrunePlan, WeightSource};
use secateur_model_file::{ModelFile, RetabledSource, WriteOptions, Written, write_gguf};
pub use secateur_prune::{DEFAULT_METHOD, method_names};
use secateur_prune::{
    HeadRounder, Progress, PruneError, PruneOutcome, PruneReport, PruneRequest, discard_work, prune,
};
use secateur_tensor::DType;
use secateur_tensor::kernels::ThreadPool;
use secateur_tensor::kernels::heap::release_free_heap;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Changes when the same inputs would give other bytes, so that older results are not taken for new ones.
const KEY_VERSION: u32 = 3;
/// Keeps two processes from working in one folder.
const LOCK_FILE: &str = "lock";

/// How to prune.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneSettings {
    /// What to cut.
    pub plan: PlanSettings,
    /// By which method.
    pub method: String,
    /// Seed of whatever is random.
    pub seed: u64,
    /// The calibration text.
    pub calibration: Calibration,
}

impl Default for PruneSettings {
    fn default() -> Self {
        Self {
            plan: PlanSettings::default(),
            method: DEFAULT_METHOD.to_owned(),
            seed: 0,
            calibration: Calibration::default(),
        }
    }
}

/// A job whose plan is made.
///
/// The tokenizer is gone by then: tens of thousands of strings would be in memory for nothing.
pub(crate) struct Prepared {
    pub(crate) file: ModelFile,
    /// Empty when nothing is to be pruned.
    calibration_tokens: Vec<u32>,
    pub(crate) settings: PruneSettings,
    pub(crate) plan: PrunePlan,
    pub(crate) source_digest: String,
    pub(crate) calibration_digest: String,
    pub(crate) fit_tokens: usize,
    /// The budget the plan was made for.
    pub(crate) budget_bytes: u64,
}

impl Prepared {
    /// Plans the job and digests its inputs.
    /// # Errors
    /// [`ServiceError::Refused`], [`ServiceError::Invalid`], [`ServiceError::Io`].
    pub(crate) fn new(
        model: OpenModel,
        settings: PruneSettings,
        budget_bytes: u64,
    ) -> Result<Self, ServiceError> {
        check_method(&settings.method)?;
        let plan = plan_file(model.file(), budget_bytes, &settings.plan)?;
        let digest = model.file().digest();
        let source_digest =
            digest.map_err(|error| crate::convert::data_error(model.file().path(), &error))?;
        let calibration_digest = settings.calibration.digest()?;
        let fit_tokens = settings.calibration.fit_tokens()?;
        let calibration_tokens = match plan.action {
            PlanAction::Untouched => Vec::new(),
            PlanAction::Prune => settings.calibration.load(model.tokenizer())?,
        };
        let file = model.file().clone();
        drop(model);
        file.give_back_all();
        release_free_heap();
        Ok(Self {
            file,
            calibration_tokens,
            settings,
            plan,
            source_digest,
            calibration_digest,
            fit_tokens,
            budget_bytes,
        })
    }

    /// Digest of everything that influences the bytes of the result.
    pub(crate) fn key(&self) -> String {
        let plan = &self.plan;
        let text = format!(
            "{KEY_VERSION} {}\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n{:?}\n{:?}\n{:?}\n{:?}\n",
            env!("CARGO_PKG_VERSION"),
            self.source_digest,
            self.calibration_digest,
            self.fit_tokens,
            self.settings.method,
            self.settings.seed,
            plan.ratio.get(),
            plan.policy.name(),
            plan.dtype,
            plan.table_dtype,
            plan.layers_to_remove,
            plan.layers,
        );
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn request(&self, run: &Run<'_>) -> Result<PruneRequest, ServiceError> {
        // Before tables are stored anew: that brings code into memory which the prediction of the job counts itself.
        let (rss_bytes, _) = resident_bytes();
        let mut source: Arc<dyn WeightSource> = Arc::new(self.file.clone());
        let mut source_digest = self.source_digest.clone();
        if let Some(dtype) = self.plan.table_dtype {
            source = self.restore_tables(source, &self.calibration_tokens, dtype, run)?;
            source_digest = format!("{source_digest} with tables as {dtype}");
            release_free_heap();
        }
        Ok(PruneRequest {
            source,
            source_digest,
            calibration_tokens: self.calibration_tokens.clone(),
            fit_tokens: self.fit_tokens,
            calibration_digest: self.calibration_digest.clone(),
            method: self.settings.method.clone(),
            ratio: self.plan.ratio,
            policy: self.plan.policy,
            dtype: self.plan.dtype,
            seed: self.settings.seed,
            budget_bytes: Some(run.budget_bytes),
            runtime_bytes: rss_bytes.saturating_sub(run.served_bytes),
            has_factored: self.plan.table_dtype.is_some(),
            work_dir: run.work_dir.to_owned(),
            n_threads: run.n_threads,
        })
    }

    /// The model with its tables in `dtype`, the head rounded for what it reads.
    fn restore_tables(
        &self,
        base: Arc<dyn WeightSource>,
        tokens: &[u32],
        dtype: DType,
        run: &Run<'_>,
    ) -> Result<Arc<dyn WeightSource>, ServiceError> {
        let mut rounder: Option<HeadRounder> = None;
        // What stopped the rounding says more than the error of the file that was not written.
        let mut cause: Option<PruneError> = None;
        let mut round = |rows, dtype| {
            let rounder = match &mut rounder {
                Some(rounder) => Ok(&*rounder),
                empty => {
                    let pool = Arc::new(ThreadPool::new(run.n_threads));
                    HeadRounder::new(base.as_ref(), tokens, pool, run.cancel).map(|new| &*empty.insert(new))
                }
            };
            rounder.and_then(|rounder| rounder.round(rows, dtype)).map_err(|error| {
                let text = error.to_string();
                cause = Some(error);
                text.into()
            })
        };
        let made_of =
            format!("{}\n{}\n{}\n{dtype}", self.source_digest, self.calibration_digest, self.fit_tokens);
        let key = &blake3::hash(made_of.as_bytes()).to_hex()[..16];
        match RetabledSource::create(base.clone(), run.work_dir, key, dtype, &mut round) {
            Ok(source) => Ok(Arc::new(source)),
            Err(error) => Err(match cause {
                Some(cause) => cause.into(),
                None => write_error(run.work_dir, error),
            }),
        }
    }

    /// Writes the result of a job; equal inputs give equal bytes.
    /// # Errors
    /// [`ServiceError::Io`] and what a weight's reading says.
    pub(crate) fn write(&self, outcome: &PruneOutcome, path: &Path) -> Result<Written, ServiceError> {
        let options = WriteOptions { dtype: self.plan.dtype, ..WriteOptions::default() };
        let metadata = self.file.metadata();
        write_gguf(path, metadata, outcome.source.as_ref(), &options)
            .map_err(|error| write_error(path, error))
    }
}

pub(crate) fn check_method(name: &str) -> Result<(), ServiceError> {
    let known = secateur_prune::method_names();
    if known.contains(&name) {
        return Ok(());
    }
    let message = format!("`{name}` is not known, allowed are {}", known.join(", "));
    Err(crate::convert::invalid("method", message))
}

/// Where and how a prepared job runs.
pub(crate) struct Run<'a> {
    /// Folder for spill files and checkpoints.
    pub(crate) work_dir: &'a Path,
    /// Bound on the peak of the whole process.
    pub(crate) budget_bytes: u64,
    /// What the served model may need beside the job, which is not part of that bound.
    pub(crate) served_bytes: u64,
    pub(crate) n_threads: usize,
    /// Takes the reports.
    pub(crate) progress: &'a mut dyn FnMut(ProgressView),
    /// Turns true to stop.
    pub(crate) cancel: &'a AtomicBool,
}

/// A result whose layers still lie in the work folder.
pub(crate) struct Finished {
    pub(crate) outcome: PruneOutcome,
    watch: StageWatch,
    request: PruneRequest,
    _lock: WorkLock,
}

impl Finished {
    /// Removes the work folder: the result has been stored.
    /// # Errors
    /// [`ServiceError::Io`].
    ///
    /// Returns the report and the largest resident memory of each stage.
    pub(crate) fn discard_work(self) -> Result<(PruneReport, BTreeMap<String, u64>), ServiceError> {
        let Self { outcome, watch, request, _lock } = self;
        let report = outcome.report;
        drop(outcome.source);
        let work_dir = &request.work_dir;
        let _ = fs::remove_file(work_dir.join(LOCK_FILE));
        RetabledSource::remove_files(work_dir).map_err(|error| io_error(work_dir, error))?;
        discard_work(&request)?;
        Ok((report, watch.stop()))
    }
}

/// Runs a prepared job, taking up what an earlier run left in the work folder.
/// # Errors
/// [`ServiceError::Cancelled`]; [`ServiceError::Conflict`] when another process works in the folder; what the
/// pruner says. What was done stays in the work folder.
pub(crate) fn run(prepared: &Prepared, run: Run<'_>) -> Result<Finished, ServiceError> {
    let lock = WorkLock::take(run.work_dir)?;
    let budget_bytes = run.budget_bytes + run.served_bytes;
    let watch = StageWatch::start("start", budget_bytes);
    let request = prepared.request(&run)?;
    let Run { progress, cancel, .. } = run;
    let mut report = |progress_now: Progress| {
        watch.enter(progress_now.stage.name());
        progress(progress_view(&progress_now));
    };
    let mut outcome = prune(&request, &mut report, cancel)?;
    watch.enter("write");
    release_free_heap();
    let (_, peak) = resident_bytes();
    if budget_bytes < peak {
        let note = format!(
            "the peak of {} went over the memory budget of {}",
            format_bytes(peak),
            format_bytes(budget_bytes)
        );
        tracing::warn!("{note}");
        outcome.report.notes.push(note);
    }
    Ok(Finished { outcome, watch, request, _lock: lock })
}

fn progress_view(progress: &Progress) -> ProgressView {
    let (rss_bytes, rss_peak_bytes) = resident_bytes();
    ProgressView {
        stage: progress.stage.name().to_owned(),
        layer_idx: progress.layer_idx,
        n_layers: progress.n_layers,
        done: progress.done,
        eta_s: progress.eta_seconds,
        rss_bytes,
        rss_peak_bytes,
        loss: progress.held_out_error,
    }
}

/// Holds a work folder for this process; the system lets go of it when the process dies.
struct WorkLock {
    _file: File,
}

impl WorkLock {
    fn take(work_dir: &Path) -> Result<Self, ServiceError> {
        fs::create_dir_all(work_dir).map_err(|error| io_error(work_dir, error))?;
        let path = work_dir.join(LOCK_FILE);
        let file = File::create(&path).map_err(|error| io_error(&path, error))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let message =
                format!("{} is in use by another prune job; wait for it to end", work_dir.display());
            return Err(ServiceError::Conflict { message });
        }
        Ok(Self { _file: file })
    }
}

/// The work folder of a job that writes to `out`.
#[must_use]
pub(crate) fn work_dir_beside(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".secateur-job");
    out.with_file_name(name)
}

pub(crate) fn write_error(path: &Path, error: secateur_model_file::WriteError) -> ServiceError {
    use secateur_model_file::WriteError;
    use std::io::{Error, ErrorKind};
    match error {
        WriteError::Io { path, source, .. } => ServiceError::Io { path, source },
        WriteError::DiskFull { ref path, .. } => {
            let source = Error::new(ErrorKind::StorageFull, error.to_string());
            ServiceError::Io { path: path.clone(), source }
        }
        WriteError::Dtype(_) => crate::convert::invalid("dtype", error.to_string()),
        other => ServiceError::Io { path: path.to_owned(), source: Error::other(other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_lies_beside_the_result() {
        assert_eq!(work_dir_beside(Path::new("/a/b.gguf")), Path::new("/a/b.gguf.secateur-job"));
        assert_eq!(work_dir_beside(Path::new("p.gguf")), Path::new("p.gguf.secateur-job"));
    }

    #[test]
    fn one_process_works_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("w");
        let lock = WorkLock::take(&work).unwrap();
        assert!(matches!(WorkLock::take(&work), Err(ServiceError::Conflict { .. })));
        drop(lock);
        assert!(WorkLock::take(&work).is_ok());
    }
}
