//! The way of a prune job: embed, measure, cut layer after layer, evaluate. Each step leaves a record in the
//! work folder; a rerun with the same inputs goes on after the last one.

use crate::apply::narrowed;
use crate::calibration::{CalibrationSet, WINDOW_LEN};
use crate::checkpoint::WorkDir;
use crate::course::Course;
use crate::error::PruneError;
use crate::footprint::{FootprintInputs, LADDER, PruneFootprint, Rung, SumsIn, choose_rung};
use crate::job::{Job, JobParts, LayerReport, Progress, PruneOutcome, PruneReport, PruneRequest, Stage};
use crate::layer_pass::{LayerDecision, layer_file, prune_layer};
use crate::measure::{decide, even};
use crate::overlay::{OverlaySource, verify_layer};
use crate::registry::{Method, Spread, method};
use crate::rounding::is_coarse;
use crate::speed::layer_weights;
use crate::streams::{Side, Streams};
use secateur_engine::Head;
use secateur_model::{ModelConfig, PruneRatio, WeightSource};
use secateur_tensor::kernels::ThreadPool;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Part of every fingerprint: a change that alters results makes old work folders useless.
const ALGORITHM_VERSION: u32 = 7;

/// Prunes a model. Deterministic: the same request gives the same bytes, whatever the number of threads and
/// however often it was interrupted.
///
/// Stages of COMP (arXiv 2501.15255, as reconstructed in the documentation): layers by importance, neurons of
/// the remaining layers, recovery. Peak memory: [`PruneFootprint`], within the budget of the request.
/// # Errors
/// [`PruneError::Budget`] before anything is done when the budget is too small; else the work folder then holds everything done so far.
pub fn prune(
    request: &PruneRequest,
    progress: &mut dyn FnMut(Progress),
    cancel: &AtomicBool,
) -> Result<PruneOutcome, PruneError> {
    let asked = method(&request.method)?;
    if request.ratio == PruneRatio::ZERO && !request.dtype.is_some_and(is_coarse) {
        return Ok(nothing_to_cut(request));
    }
    let set = CalibrationSet::new(request.calibration_tokens.clone(), request.fit_tokens)?;
    let (rung, footprint) = within_budget(request, &asked, &set)?;
    let method = asked.on(rung);
    let io = |source| PruneError::Io { path: request.work_dir.clone(), source };
    let fingerprint = fingerprint(request, &set, rung);
    let (work, resumed) = WorkDir::open(&request.work_dir, &fingerprint).map_err(io)?;
    let hidden_size = request.source.config().hidden_size;
    let streams = Streams::open(&work, hidden_size)?;
    let pool = Arc::new(ThreadPool::new(request.n_threads.max(1)));
    let mut job = Job::new(JobParts { request, pool, set, work, streams, rung, footprint, progress, cancel });
    job.course = Course::of(&job, &method);
    note_rung(&mut job, &asked, &method);
    embed(&mut job)?;
    let decisions = decide(&mut job, &method)?;
    job.course.decided(&layer_weights(&job, &decisions.layers, &method));
    let layers = prune_layers(&mut job, &method, &decisions.layers, &decisions.importance)?;
    let (before, after) = evaluate(&mut job)?;
    let source = assemble(&job, &layers)?;
    let report = summarize(&job, source.config(), layers, Losses { before, after }, resumed);
    job.report(Stage::Evaluate, None, 1.0, None);
    Ok(PruneOutcome { report, source: Arc::new(source) })
}

/// The outcome of a job that only stores the model in another way.
fn nothing_to_cut(request: &PruneRequest) -> PruneOutcome {
    let params = request.source.config().all_layer_params();
    let note = "nothing is cut, so nothing was measured";
    let report = PruneReport::uncut(&request.method, request.seed, params, note);
    PruneOutcome { report, source: Arc::new(OverlaySource::new(request.source.clone())) }
}

/// Removes the work folder of a job whose result has been stored.
/// # Errors
/// [`PruneError::Io`].
pub fn discard_work(request: &PruneRequest) -> Result<(), PruneError> {
    let io = |source| PruneError::Io { path: request.work_dir.clone(), source };
    WorkDir::at(&request.work_dir).remove().map_err(io)
}

/// Chooses the rung of the memory ladder before anything is done.
fn within_budget(
    request: &PruneRequest,
    method: &Method,
    set: &CalibrationSet,
) -> Result<(Rung, PruneFootprint), PruneError> {
    let mut inputs =
        FootprintInputs::of_source(request.source.as_ref(), request.dtype, method.memory_needs())?;
    if method.spread == Spread::Uniform {
        let widths = even(request)?.into_iter().filter_map(LayerDecision::width);
        inputs.kept_width = widths.max().unwrap_or(0);
    }
    inputs.n_tokens = set.n_windows() * WINDOW_LEN;
    inputs.n_threads = request.n_threads.max(1);
    inputs.runtime_bytes = request.runtime_bytes;
    inputs.has_factored = request.has_factored;
    choose_rung(&inputs, request.budget_bytes).map_err(|needed_bytes| PruneError::Budget {
        needed_bytes,
        budget_bytes: request.budget_bytes.unwrap_or(u64::MAX),
    })
}

/// Says what the budget made of the job.
fn note_rung(job: &mut Job<'_>, asked: &Method, method: &Method) {
    let peak_bytes = job.footprint.peak_bytes();
    tracing::info!(rung = job.rung.name, peak_bytes, "memory ladder");
    if job.rung != LADDER[0] {
        let peak_mib = peak_bytes as f64 / f64::from(1 << 20);
        let mut note = format!("memory ladder: {}, {peak_mib:.1} MiB predicted", job.rung.name);
        if asked.name != method.name {
            note +=
                &format!("; no room for a Gram matrix, so {} works instead of {}", method.name, asked.name);
        }
        job.notes.push(note);
    }
}

/// Digest of everything the result depends on.
fn fingerprint(request: &PruneRequest, set: &CalibrationSet, rung: Rung) -> String {
    let mut hasher = blake3::Hasher::new();
    let config = request.source.config();
    // Where the sums lie changes no byte; whether there are any does, and so does the order in which they add up.
    let arithmetic = (rung.sums == SumsIn::Moments, rung.mlp_rows);
    let text = format!(
        "{ALGORITHM_VERSION}\n{arithmetic:?}\n{}\n{}\n{}\n{}\n{}\n{}\n{:?}\n{}\n{config:?}\n",
        request.source_digest,
        request.calibration_digest,
        set.n_fit(),
        request.method,
        request.ratio.get(),
        request.policy.name(),
        request.dtype,
        request.seed,
    );
    hasher.update(text.as_bytes());
    for window_idx in 0..set.n_windows() {
        for token in set.window(window_idx) {
            hasher.update(&token.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn embed(job: &mut Job<'_>) -> Result<(), PruneError> {
    const RECORD: &str = "layer-embed.done";
    let from = Instant::now();
    if job.work.read::<bool>(RECORD).map_err(|error| job.io_error(RECORD, error))? == Some(true) {
        return Ok(());
    }
    job.report(Stage::Embed, None, 0.0, None);
    let source = job.request.source.clone();
    job.streams.embed(source.as_ref(), &job.set)?;
    job.work.write(RECORD, &true).map_err(|error| job.io_error(RECORD, error))?;
    job.clock("embed", from);
    job.report(Stage::Embed, None, job.course.embedded(), None);
    Ok(())
}

fn prune_layers(
    job: &mut Job<'_>,
    method: &Method,
    decisions: &[LayerDecision],
    importance: &[f64],
) -> Result<Vec<LayerReport>, PruneError> {
    let mut layers: Vec<LayerReport> = Vec::new();
    let mut fresh = false;
    for (layer_idx, &decision) in decisions.iter().enumerate() {
        let record = format!("layer-{layer_idx:03}.done");
        let known = if fresh { None } else { recorded(job, &record, layer_idx)? };
        if let Some(report) = known {
            layers.push(report);
            continue;
        }
        fresh = true;
        job.report(Stage::Prune, Some(layer_idx), job.course.pruned(layer_idx), None);
        let mut report = prune_layer(job, method, decision, &layers)?;
        report.importance = importance.get(layer_idx).copied();
        job.work.write(&record, &report).map_err(|error| job.io_error(&record, error))?;
        let error = Some(report.held_out_drift);
        layers.push(report);
        job.report(Stage::Prune, Some(layer_idx), job.course.pruned(layer_idx + 1), error);
    }
    Ok(layers)
}

/// The outcome of a layer that an earlier run finished, if its files are whole.
fn recorded(job: &Job<'_>, record: &str, layer_idx: usize) -> Result<Option<LayerReport>, PruneError> {
    let found: Option<LayerReport> = job.work.read(record).map_err(|error| job.io_error(record, error))?;
    let Some(report) = found.filter(|report| report.layer_idx == layer_idx) else { return Ok(None) };
    if report.digest.is_empty() {
        return Ok(Some(report));
    }
    let whole =
        verify_layer(&job.work.file(&layer_file(layer_idx))).is_ok_and(|digest| digest == report.digest);
    Ok(whole.then_some(report))
}

/// Mean loss of the held-out windows, teacher and student.
fn evaluate(job: &mut Job<'_>) -> Result<(f64, f64), PruneError> {
    let from = Instant::now();
    job.report(Stage::Evaluate, None, job.course.pruned(job.request.source.config().n_layers()), None);
    let source = job.request.source.clone();
    let config = source.config();
    let head = Head::new(source.as_ref())?.giving_back(source.clone());
    let mut rows = vec![0.0; WINDOW_LEN * config.hidden_size];
    let (mut before, mut after, mut n) = (0.0, 0.0, 0usize);
    for window_idx in job.set.n_fit()..job.set.n_windows() {
        job.check_cancel()?;
        let targets = &job.set.window(window_idx)[1..];
        let used = targets.len() * config.hidden_size;
        for (side, sum) in [(Side::Teacher, &mut before), (Side::Student, &mut after)] {
            job.streams.read(side, config.n_layers(), window_idx, &mut rows)?;
            let losses = head.nll(&job.pool, &rows[..used], targets)?;
            *sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        }
        n += targets.len();
    }
    job.clock("evaluate", from);
    let n = n.max(1) as f64;
    Ok((before / n, after / n))
}

/// The base model with every changed layer replaced by its file.
fn assemble(job: &Job<'_>, layers: &[LayerReport]) -> Result<OverlaySource, PruneError> {
    let mut source = OverlaySource::new(job.request.source.clone());
    for layer in layers {
        if layer.removed {
            source.remove_layer(layer.layer_idx);
        } else if !layer.digest.is_empty() {
            let whole = job.request.source.config().layers[layer.layer_idx];
            let shape = narrowed(whole, layer.intermediate_size, layer.num_key_value_heads);
            let name = layer_file(layer.layer_idx);
            source
                .put_file(layer.layer_idx, shape, &job.work.file(&name))
                .map_err(|error| job.io_error(&name, error))?;
        }
    }
    source.config().validate()?;
    Ok(source)
}

struct Losses {
    before: f64,
    after: f64,
}

fn summarize(
    job: &Job<'_>,
    pruned: &ModelConfig,
    layers: Vec<LayerReport>,
    losses: Losses,
    resumed: bool,
) -> PruneReport {
    let params_before = job.request.source.config().all_layer_params();
    let params_after = pruned.all_layer_params();
    let seconds: BTreeMap<String, f64> = job.seconds.clone();
    PruneReport {
        method: job.request.method.clone(),
        seed: job.request.seed,
        ratio_asked: job.request.ratio.get(),
        ratio_reached: 1.0 - params_after as f64 / params_before.max(1) as f64,
        params_before,
        params_after,
        layers_removed: layers.iter().filter(|layer| layer.removed).map(|layer| layer.layer_idx).collect(),
        layers,
        calibration_tokens: job.set.fit_tokens(),
        held_out_tokens: (job.set.n_windows() - job.set.n_fit()) * WINDOW_LEN,
        held_out_loss_before: losses.before,
        held_out_loss_after: losses.after,
        seconds,
        rates: job.rates(),
        memory: Some(job.footprint.clone()),
        resumed,
        notes: job.notes.clone(),
    }
}
