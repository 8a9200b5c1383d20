//! Planning, and pruning into a file.

use crate::ServiceError;
use crate::api::{FootprintView, PlanView, ProgressView};
use crate::budget::{Budget, PlanSettings, plan_file, plan_view, resident_bytes};
use crate::convert::{invalid, io_error};
use crate::opened::OpenModel;
use crate::ops::run::RunOptions;
use crate::pruning::{Prepared, PruneSettings, Run, run, work_dir_beside, write_error};
use secateur_model::PlanAction;
use secateur_model::WeightSource;
use secateur_model_file::{WriteOptions, write_gguf};
use secateur_prune::{LayerReport, PruneReport};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A plan with the budget it was made for.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// The model.
    pub model: PathBuf,
    /// What is allowed.
    pub budget_bytes: u64,
    /// Where the budget comes from.
    pub budget_explanation: String,
    /// Set when the device cannot give as much.
    pub warning: Option<String>,
    /// The decision.
    #[serde(flatten)]
    pub plan: PlanView,
}

/// Plans for a budget or a ratio, and changes nothing.
/// # Errors
/// [`ServiceError::Refused`] with the smallest feasible budget; [`ServiceError::Invalid`].
pub fn plan(file: &Path, memory_budget: &str, settings: &PlanSettings) -> Result<PlanReport, ServiceError> {
    let file = crate::opened::open_file(file)?;
    let budget = Budget::resolve(memory_budget)?;
    let plan = plan_file(&file, budget.bytes(), settings)?;
    Ok(PlanReport {
        model: file.path().to_owned(),
        budget_bytes: budget.bytes(),
        budget_explanation: budget.resolved.explanation.clone(),
        warning: budget.resolved.warning.clone(),
        plan: plan_view(&plan, budget.bytes(), settings),
    })
}

/// What to prune, and where the result goes.
#[derive(Clone, Debug)]
pub struct PruneFileRequest {
    /// The result.
    pub out: PathBuf,
    /// How to prune.
    pub settings: PruneSettings,
    /// The budget for the job itself, which also decides how much is cut unless a ratio does.
    pub run: RunOptions,
    /// File for a page that shows the outcome layer by layer.
    pub report: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct PruneFileReport {
    /// The result.
    pub out: PathBuf,
    /// Digest of its file.
    pub output_digest: String,
    /// Architecture the file says it has: `llama`, `qwen2` or `deci`.
    pub output_architecture: &'static str,
    /// Size of the base model's file.
    pub bytes_before: u64,
    /// Size of the result.
    pub bytes_after: u64,
    /// Method.
    pub method: String,
    /// Seed.
    pub seed: u64,
    /// Policy.
    pub policy: String,
    /// Share of decoder-layer parameters asked for; the plan's when a budget decided.
    pub ratio_asked: f64,
    /// Share removed.
    pub ratio_reached: f64,
    /// Decoder-layer matrix parameters before.
    pub params_before: u64,
    /// And after.
    pub params_after: u64,
    /// Layers removed whole.
    pub layers_removed: Vec<usize>,
    /// MLP width of every layer of the base model; 0 where the layer is gone.
    pub widths: Vec<usize>,
    /// Key/value heads likewise.
    pub kv_heads: Vec<usize>,
    /// Budget of the job.
    pub budget_bytes: u64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
    /// The rung of the memory ladder, with every buffer it was predicted to need.
    pub memory: Option<secateur_prune::PruneFootprint>,
    /// Largest resident memory seen in each stage.
    pub stage_rss_peak_bytes: std::collections::BTreeMap<String, u64>,
    /// Speed of each stage that did work in this run.
    pub rates: std::collections::BTreeMap<String, secateur_prune::StageRate>,
    /// Seconds in all.
    pub seconds_total: f64,
    /// Seconds by stage.
    pub seconds: std::collections::BTreeMap<String, f64>,
    /// Tokens fitted on.
    pub calibration_tokens: usize,
    /// Digest of the calibration text.
    pub calibration_digest: String,
    /// Mean loss of held-out tokens, in nats, base model.
    pub held_out_loss_before: f64,
    /// And pruned model.
    pub held_out_loss_after: f64,
    /// Earlier work was taken up.
    pub resumed: bool,
    /// Memory that serving the result needs.
    pub footprint: FootprintView,
    /// Why so much was cut.
    pub reason: String,
    /// Decisions worth knowing.
    pub notes: Vec<String>,
}

/// Prunes a model into a file, within the budget. A run that was stopped is taken up by the next one with the same
/// settings; its work lies beside the result.
/// # Errors
/// [`ServiceError::Refused`], [`ServiceError::Invalid`], [`ServiceError::Io`]; [`ServiceError::Cancelled`].
pub fn prune_to_file(
    model: OpenModel,
    request: &PruneFileRequest,
    progress: &mut dyn FnMut(ProgressView),
    cancel: &AtomicBool,
) -> Result<PruneFileReport, ServiceError> {
    let started = std::time::Instant::now();
    check_out(&request.out, model.file().path())?;
    let (budget, n_threads) = request.run.resolve()?;
    let prepared = Prepared::new(model, request.settings.clone(), budget.bytes())?;
    tracing::info!(reason = prepared.plan.reason, "planned");
    if prepared.plan.action == PlanAction::Untouched {
        let report = copy_untouched(&prepared, request, budget.bytes(), started)?;
        write_page(request, &report, &[])?;
        return Ok(report);
    }
    let work_dir = work_dir_beside(&request.out);
    let budget_bytes = budget.bytes();
    let how = Run { work_dir: &work_dir, budget_bytes, served_bytes: 0, n_threads, progress, cancel };
    let finished = run(&prepared, how)?;
    let written = prepared.write(&finished.outcome, &request.out)?;
    let (report, stage_peaks) = finished.discard_work()?;
    let layers = report.layers.clone();
    let mut report = file_report(&prepared, request, report, budget.bytes());
    report.output_digest = written.digest;
    report.output_architecture = written.architecture;
    report.bytes_after = written.bytes;
    report.notes.extend(written.notes);
    report.stage_rss_peak_bytes = stage_peaks;
    report.seconds_total = started.elapsed().as_secs_f64();
    report.rss_peak_bytes = resident_bytes().1;
    write_page(request, &report, &layers)?;
    Ok(report)
}

/// Writes the page, when one is wanted.
fn write_page(
    request: &PruneFileRequest,
    report: &PruneFileReport,
    layers: &[LayerReport],
) -> Result<(), ServiceError> {
    let Some(path) = &request.report else { return Ok(()) };
    std::fs::write(path, super::report::html(report, layers)).map_err(|error| io_error(path, error))
}

/// The result must not be the model it is made from, and its folder must be there.
pub(super) fn check_out(out: &Path, base: &Path) -> Result<(), ServiceError> {
    let dir = match out.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if out.file_name().is_none() || out.is_dir() {
        return Err(invalid("out", format!("{} is a folder; give the name of a file", out.display())));
    }
    if !dir.is_dir() {
        return Err(invalid("out", format!("there is no folder {}", dir.display())));
    }
    let same = match (out.canonicalize(), base.canonicalize()) {
        (Ok(out), Ok(base)) => out == base,
        _ => false,
    };
    if same {
        return Err(invalid("out", "is the model itself; give another name"));
    }
    Ok(())
}

/// The model fits as it is: the result is the same model.
fn copy_untouched(
    prepared: &Prepared,
    request: &PruneFileRequest,
    budget_bytes: u64,
    started: std::time::Instant,
) -> Result<PruneFileReport, ServiceError> {
    let file = &prepared.file;
    let options = WriteOptions::default();
    let written = write_gguf(&request.out, file.metadata(), file, &options)
        .map_err(|error| write_error(&request.out, error))?;
    let (settings, params) = (&prepared.settings, file.config().all_layer_params());
    let note = "the model fits as it is, so the result is the same model";
    let report = PruneReport::uncut(&settings.method, settings.seed, params, note);
    let mut report = file_report(prepared, request, report, budget_bytes);
    report.output_digest = written.digest;
    report.output_architecture = written.architecture;
    report.bytes_after = written.bytes;
    report.seconds_total = started.elapsed().as_secs_f64();
    report.rss_peak_bytes = resident_bytes().1;
    Ok(report)
}

fn file_report(
    prepared: &Prepared,
    request: &PruneFileRequest,
    report: PruneReport,
    budget_bytes: u64,
) -> PruneFileReport {
    let file = &prepared.file;
    let (mut widths, mut kv_heads): (Vec<usize>, Vec<usize>) =
        file.config().layers.iter().map(|layer| (layer.intermediate_size, layer.num_key_value_heads)).unzip();
    for layer in &report.layers {
        widths[layer.layer_idx] = if layer.removed { 0 } else { layer.intermediate_size };
        kv_heads[layer.layer_idx] = if layer.removed { 0 } else { layer.num_key_value_heads };
    }
    PruneFileReport {
        out: request.out.clone(),
        output_digest: String::new(),
        output_architecture: "",
        bytes_before: file.file_bytes(),
        bytes_after: 0,
        method: report.method,
        seed: report.seed,
        policy: prepared.plan.policy.name().to_owned(),
        ratio_asked: request.settings.plan.ratio.unwrap_or(prepared.plan.ratio.get()),
        ratio_reached: report.ratio_reached,
        params_before: report.params_before,
        params_after: report.params_after,
        layers_removed: report.layers_removed,
        widths,
        kv_heads,
        budget_bytes,
        rss_peak_bytes: 0,
        memory: report.memory,
        stage_rss_peak_bytes: std::collections::BTreeMap::new(),
        rates: report.rates,
        seconds_total: 0.0,
        seconds: report.seconds,
        calibration_tokens: report.calibration_tokens,
        calibration_digest: prepared.calibration_digest.clone(),
        held_out_loss_before: report.held_out_loss_before,
        held_out_loss_after: report.held_out_loss_after,
        resumed: report.resumed,
        footprint: (&prepared.plan.footprint).into(),
        reason: prepared.plan.reason.clone(),
        notes: report.notes,
    }
}
