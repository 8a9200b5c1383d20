//! What a prune job is asked, what it tells while it runs, and what it returns.

use crate::calibration::CalibrationSet;
use crate::checkpoint::WorkDir;
use crate::course::{Course, Pace};
use crate::error::PruneError;
use crate::footprint::{PruneFootprint, Rung, solve_threads};
use crate::speed::{StageRate, Work};
use crate::streams::Streams;
use secateur_engine::{LayerBuffers, LayerRunner};
use secateur_model::{LayerIdx, PlanPolicy, PruneRatio, WeightSource};
use secateur_tensor::DType;
use secateur_tensor::kernels::ThreadPool;
use secateur_tensor::kernels::heap::release_free_heap;
use secateur_tensor::linalg::on_threads;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Everything a prune job depends on.
#[derive(Clone)]
pub struct PruneRequest {
    /// The base model.
    pub source: Arc<dyn WeightSource>,
    /// Digest of its file: part of the job's identity.
    pub source_digest: String,
    /// Tokens of the calibration text, from its start; [`crate::calibration::tokens_needed`] are used.
    pub calibration_tokens: Vec<u32>,
    /// Tokens to fit on; held-out ones come on top.
    pub fit_tokens: usize,
    /// Digest of the calibration text: part of the job's identity.
    pub calibration_digest: String,
    /// Method, by a name of [`crate::method_names`].
    pub method: String,
    /// Share of decoder-layer parameters to remove.
    pub ratio: PruneRatio,
    /// How free the method is in spreading the cut.
    pub policy: PlanPolicy,
    /// Storage dtype of the result's matrices; `None` keeps the source's.
    pub dtype: Option<DType>,
    /// Seed of whatever is random.
    pub seed: u64,
    /// Bound on the peak resident memory of the process.
    pub budget_bytes: Option<u64>,
    /// What the process holds when the job starts and keeps: code, libraries, heap.
    pub runtime_bytes: u64,
    /// Whether systems were factored since that was taken, so that their code is in memory from the start.
    pub has_factored: bool,
    /// Folder for spill files and checkpoints; made when it is not there.
    pub work_dir: PathBuf,
    /// Threads that compute.
    pub n_threads: usize,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Calibration tokens become hidden states.
    Embed,
    /// What each layer would cost is measured on the base model.
    Measure,
    /// Layers are cut, first to last.
    Prune,
    /// Held-out loss before and after.
    Evaluate,
}

impl Stage {
    /// Name as reports and progress lines write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Measure => "measure",
            Self::Prune => "prune",
            Self::Evaluate => "evaluate",
        }
    }
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Layer at work, in stages that go layer by layer.
    pub layer_idx: Option<LayerIdx>,
    /// Layers of the base model.
    pub n_layers: usize,
    /// Share of the whole job that is done, `0.0..=1.0`.
    pub done: f64,
    /// Seconds to the end at the pace so far; absent at the beginning.
    pub eta_seconds: Option<f64>,
    /// Relative output error of the layer just finished, on tokens nothing was fitted on.
    pub held_out_error: Option<f64>,
}

/// One layer of a [`PruneReport`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Position in the base model.
    pub layer_idx: LayerIdx,
    /// Removed whole.
    pub removed: bool,
    /// COMP's layer importance (methods: 1 - aggregated cosine of input and output), when measured.
    pub importance: Option<f64>,
    /// MLP width before.
    pub intermediate_size_before: usize,
    /// MLP width after.
    pub intermediate_size: usize,
    /// Key/value heads before.
    pub num_key_value_heads_before: usize,
    /// Key/value heads after.
    pub num_key_value_heads: usize,
    /// `|h - t|^2 / |t|^2` of the residual stream after the layer, on the tokens fitted on.
    pub fit_drift: f64,
    /// The same on held-out tokens.
    pub held_out_drift: f64,
    /// Recovery that won.
    pub recovery: String,
    /// Neurons of the base model that stay, ascending; empty when all stay or none.
    pub kept_neurons: Vec<usize>,
    /// KV groups of the base model that stay, ascending; empty when all stay or none.
    #[serde(default)]
    pub kept_kv_groups: Vec<usize>,
    /// Digest of the layer's new matrices.
    pub digest: String,
}

/// What a job did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Method.
    pub method: String,
    /// Seed.
    pub seed: u64,
    /// Share asked.
    pub ratio_asked: f64,
    /// Share removed.
    pub ratio_reached: f64,
    /// Decoder-layer matrix parameters before.
    pub params_before: u64,
    /// And after.
    pub params_after: u64,
    /// Layers removed whole.
    pub layers_removed: Vec<LayerIdx>,
    /// Layers in order.
    pub layers: Vec<LayerReport>,
    /// Tokens fitted on.
    pub calibration_tokens: usize,
    /// Tokens only measured on.
    pub held_out_tokens: usize,
    /// Mean negative log likelihood (nats) of the held-out tokens, base model.
    pub held_out_loss_before: f64,
    /// And pruned model.
    pub held_out_loss_after: f64,
    /// Seconds by stage.
    pub seconds: BTreeMap<String, f64>,
    /// Speed by stage, as far as it did work in this run.
    #[serde(default)]
    pub rates: BTreeMap<String, StageRate>,
    /// The rung of the memory ladder and what it was predicted to need.
    #[serde(default)]
    pub memory: Option<PruneFootprint>,
    /// True when earlier work was taken up.
    pub resumed: bool,
    /// Steps down the memory ladder, and other decisions worth knowing.
    pub notes: Vec<String>,
}

impl PruneReport {
    /// The report on a model of `params` layer parameters that keeps all of them, and why.
    #[must_use]
    pub fn uncut(method: &str, seed: u64, params: u64, note: &str) -> Self {
        Self {
            method: method.to_owned(),
            seed,
            ratio_asked: 0.0,
            ratio_reached: 0.0,
            params_before: params,
            params_after: params,
            layers_removed: Vec::new(),
            layers: Vec::new(),
            calibration_tokens: 0,
            held_out_tokens: 0,
            held_out_loss_before: 0.0,
            held_out_loss_after: 0.0,
            seconds: BTreeMap::new(),
            rates: BTreeMap::new(),
            memory: None,
            resumed: false,
            notes: vec![note.to_owned()],
        }
    }
}

/// Report and result of a job.
pub struct PruneOutcome {
    /// What was done.
    pub report: PruneReport,
    /// The pruned model; its changed layers lie in the work folder.
    pub source: Arc<dyn WeightSource>,
}

/// A job at work: inputs, threads, files, and the clock.
pub(crate) struct Job<'a> {
    pub(crate) request: &'a PruneRequest,
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) set: CalibrationSet,
    pub(crate) work: WorkDir,
    pub(crate) streams: Streams,
    pub(crate) seconds: BTreeMap<String, f64>,
    pub(crate) notes: Vec<String>,
    /// How the job keeps within its budget.
    pub(crate) rung: Rung,
    pub(crate) footprint: PruneFootprint,
    /// What lies inside of a layer that runs.
    buffers: LayerBuffers,
    work_done: BTreeMap<String, Work>,
    progress: &'a mut dyn FnMut(Progress),
    cancel: &'a AtomicBool,
    pub(crate) course: Course,
    pace: Option<Pace>,
}

/// The parts of a new [`Job`].
pub(crate) struct JobParts<'a> {
    pub(crate) request: &'a PruneRequest,
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) set: CalibrationSet,
    pub(crate) work: WorkDir,
    pub(crate) streams: Streams,
    pub(crate) rung: Rung,
    pub(crate) footprint: PruneFootprint,
    pub(crate) progress: &'a mut dyn FnMut(Progress),
    pub(crate) cancel: &'a AtomicBool,
}

/// What of a job the threads that solve its systems may see.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) request: &'a PruneRequest,
    pub(crate) pool: &'a ThreadPool,
    pub(crate) rung: Rung,
    cancel: &'a AtomicBool,
}

impl Shared<'_> {
    /// # Errors
    /// [`PruneError::Cancelled`] when the caller asked to stop.
    pub(crate) fn check_cancel(&self) -> Result<(), PruneError> {
        if self.cancel.load(Ordering::Relaxed) { Err(PruneError::Cancelled) } else { Ok(()) }
    }

    /// Runs `work`, whose systems have `n_unknowns`, on as many threads as pay for their memory.
    pub(crate) fn solve<T: Send>(&self, n_unknowns: usize, work: impl FnOnce() -> T + Send) -> T {
        on_threads(solve_threads(n_unknowns, self.pool.n_threads()), work)
    }

    /// Goes on unless the caller asked to stop.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl<'a> Job<'a> {
    pub(crate) fn new(parts: JobParts<'a>) -> Self {
        Self {
            request: parts.request,
            pool: parts.pool,
            set: parts.set,
            work: parts.work,
            streams: parts.streams,
            seconds: BTreeMap::new(),
            notes: Vec::new(),
            rung: parts.rung,
            footprint: parts.footprint,
            buffers: LayerBuffers::default(),
            work_done: BTreeMap::new(),
            progress: parts.progress,
            cancel: parts.cancel,
            course: Course::default(),
            pace: None,
        }
    }

    /// A layer of `source` that can be run.
    pub(crate) fn runner(
        &self,
        source: &dyn WeightSource,
        layer_idx: LayerIdx,
    ) -> Result<LayerRunner, PruneError> {
        Ok(LayerRunner::with_buffers(source, layer_idx, self.pool.clone(), &self.buffers)?)
    }

    /// Gives back what running layers has left: it must not lie beside the systems that are solved next.
    pub(crate) fn release_buffers(&self) {
        self.buffers.release();
        self.pool.release_panels();
        release_free_heap();
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        Shared { request: self.request, pool: &self.pool, rung: self.rung, cancel: self.cancel }
    }

    /// # Errors
    /// [`PruneError::Cancelled`] when the caller asked to stop.
    pub(crate) fn check_cancel(&self) -> Result<(), PruneError> {
        self.shared().check_cancel()
    }

    /// Adds work to a stage; its time is added by [`Self::clock`].
    pub(crate) fn count(&mut self, name: &str, work: Work) {
        self.work_done.entry(name.to_owned()).or_default().add(work);
    }

    /// Speed of every stage that counted its work.
    pub(crate) fn rates(&self) -> BTreeMap<String, StageRate> {
        let rate = |(name, work): (&String, &Work)| {
            let seconds = self.seconds.get(name).copied().unwrap_or(0.0);
            (name.clone(), StageRate::of(*work, seconds))
        };
        self.work_done.iter().map(rate).collect()
    }

    pub(crate) fn report(
        &mut self,
        stage: Stage,
        layer_idx: Option<LayerIdx>,
        done: f64,
        error: Option<f64>,
    ) {
        let now = Instant::now();
        let eta_seconds =
            self.pace.get_or_insert_with(|| Pace::new(stage, now, done)).eta_seconds(stage, now, done);
        (self.progress)(Progress {
            stage,
            layer_idx,
            n_layers: self.request.source.config().n_layers(),
            done,
            eta_seconds,
            held_out_error: error,
        });
    }

    /// Adds the time since `from` to a stage.
    pub(crate) fn clock(&mut self, name: &str, from: Instant) {
        *self.seconds.entry(name.to_owned()).or_default() += from.elapsed().as_secs_f64();
    }

    /// What an earlier run left under `name`, or else what `make` makes, which is then left there.
    pub(crate) fn remembered<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        make: impl FnOnce(&mut Self) -> Result<T, PruneError>,
    ) -> Result<T, PruneError> {
        if let Some(known) = self.work.read(name).map_err(|error| self.io_error(name, error))? {
            return Ok(known);
        }
        let made = make(self)?;
        self.work.write(name, &made).map_err(|error| self.io_error(name, error))?;
        Ok(made)
    }

    pub(crate) fn io_error(&self, name: &str, source: std::io::Error) -> PruneError {
        PruneError::Io { path: self.work.file(name), source }
    }
}
