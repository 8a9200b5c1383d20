//! One layer of the pruning pass: statistics of its inputs, selection, recovery, and the streams moved on.
//!
//! Memory: the layer's mapped pages, one window of activations, and the statistics of its down projection
//! (`4 k^2 + 4 k d` bytes) with the solver's work space.

use crate::apply::{convert_layer, cut_mlp, narrowed, storage_dtype, store_down};
use crate::calibration::WINDOW_LEN;
use crate::error::PruneError;
use crate::footprint::SumsIn;
use crate::job::{Job, LayerReport};
use crate::matrix::{MatrixView, RowStore};
use crate::methods::{InputSource, Linear, Needs, Recovery, select_neurons};
use crate::numeric::NumericError;
use crate::overlay::{LayerWeights, OverlaySource, write_layer};
use crate::refit::{Damping, FitMatrices, FitProblem, refit};
use crate::registry::Method;
use crate::speed::{first_pass_flops, second_pass_flops, solve_flops};
use crate::spill::{DiskMatrix, WeightRows};
use crate::stats::{LayerStats, StoredSums, TargetStats};
use crate::streams::Side;
use secateur_engine::{LayerRunner, Sublayer};
use secateur_model::{LayerIdx, WeightId, WeightRole};
use secateur_tensor::kernels::heap::release_free_heap;
use secateur_tensor::kernels::{cross_accumulate, gram_accumulate, mirror_upper};
use std::sync::Arc;
use std::time::Instant;

/// What is to be done with a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerDecision {
    /// Remove it whole.
    Remove,
    /// Keep this many MLP neurons.
    Width(usize),
}

/// Sums of squares that tell how far the student has drifted from the teacher.
#[derive(Clone, Copy, Debug, Default)]
struct Drift {
    gap: f64,
    energy: f64,
}

impl Drift {
    fn add(&mut self, teacher: &[f32], student: &[f32]) {
        for (t, h) in teacher.iter().zip(student) {
            let (t, gap) = (f64::from(*t), f64::from(h - t));
            self.gap += gap * gap;
            self.energy += t * t;
        }
    }

    fn get(self) -> f64 {
        if self.energy == 0.0 { 0.0 } else { self.gap / self.energy }
    }
}

/// Runs one layer of the pass and leaves its outcome in the work folder.
pub(crate) fn prune_layer(
    job: &mut Job<'_>,
    method: &Method,
    layer_idx: LayerIdx,
    decision: LayerDecision,
) -> Result<LayerReport, PruneError> {
    let source = job.request.source.clone();
    let shape = source.config().layers[layer_idx];
    let mut report = LayerReport {
        layer_idx,
        removed: decision == LayerDecision::Remove,
        importance: None,
        intermediate_size_before: shape.intermediate_size,
        intermediate_size: 0,
        num_key_value_heads_before: shape.num_key_value_heads,
        num_key_value_heads: 0,
        fit_drift: 0.0,
        held_out_drift: 0.0,
        recovery: "none".to_owned(),
        kept_neurons: Vec::new(),
        digest: String::new(),
    };
    let mut student = OverlaySource::new(source.clone());
    match decision {
        LayerDecision::Remove => student.remove_layer(layer_idx),
        LayerDecision::Width(width) => {
            let request = job.request;
            let convert = || convert_layer(source.as_ref(), layer_idx, request.dtype);
            student.put_memory(layer_idx, shape, convert()?);
            report.intermediate_size = width;
            report.num_key_value_heads = shape.num_key_value_heads;
            let cut = (width < shape.intermediate_size).then_some((method, width));
            let stats = first_pass(job, layer_idx, &student, cut.map(|(method, _)| method))?;
            // Nothing of the layer but its down projection is needed while the large systems are solved.
            source.give_back_layer(layer_idx);
            student.put_memory(layer_idx, shape, LayerWeights::new());
            let mut cut_weights = LayerWeights::new();
            if let (Some((method, width)), Some(mut stats)) = (cut, stats) {
                let from = Instant::now();
                let (kept, mut recovery) = solve(job, layer_idx, method, width, &mut stats)?;
                let source_dtype = source.require(WeightId::layer(layer_idx, WeightRole::DownProj))?.dtype();
                let dtype = storage_dtype(job.request.dtype, source_dtype, kept.len());
                let down = store_down(&job.pool, layer_idx, &mut recovery, &kept, &stats, dtype)?;
                job.count("solve", solve_flops(&stats, kept.len()));
                drop(stats);
                let bias = recovery.bias.as_deref();
                student.put_memory(layer_idx, shape, convert()?);
                cut_weights = cut_mlp(&student, layer_idx, &kept, down, bias)?;
                report.recovery = method.width.name().to_owned();
                report.kept_neurons = kept;
                job.clock("solve", from);
            }
            let mut weights = convert()?;
            weights.extend(cut_weights);
            finish_layer(job, layer_idx, &mut student, width, weights, &mut report)?;
        }
    }
    second_pass(job, layer_idx, &student, &mut report)?;
    source.give_back_layer(layer_idx);
    job.streams.sync(layer_idx + 1)?;
    release_free_heap();
    Ok(report)
}

/// Stores the layer's new matrices and lets the student run them.
fn finish_layer(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    student: &mut OverlaySource,
    width: usize,
    weights: LayerWeights,
    report: &mut LayerReport,
) -> Result<(), PruneError> {
    let shape = narrowed(job.request.source.config().layers[layer_idx], width);
    if !weights.is_empty() {
        let name = layer_file(layer_idx);
        report.digest =
            write_layer(&job.work.file(&name), &weights).map_err(|error| job.io_error(&name, error))?;
    }
    student.put_memory(layer_idx, shape, weights);
    Ok(())
}

/// Name of the file with the new matrices of a layer.
pub(crate) fn layer_file(layer_idx: LayerIdx) -> String {
    format!("layer-{layer_idx:03}.bin")
}

/// Moves the teacher through the layer and the student through its attention, collecting what `method` needs.
fn first_pass(
    job: &mut Job<'_>,
    layer_idx: LayerIdx,
    student: &OverlaySource,
    method: Option<&Method>,
) -> Result<Option<LayerStats>, PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let hidden_size = source.config().hidden_size;
    let width = source.config().layers[layer_idx].intermediate_size;
    let teacher_runner = LayerRunner::new(source.as_ref(), layer_idx, job.pool.clone())?;
    let student_runner = LayerRunner::new(student, layer_idx, job.pool.clone())?;
    let mut stats = method.map(|method| empty_stats(method, width, hidden_size));
    let layer = source.config().layers[layer_idx];
    let mut rows = vec![0.0; WINDOW_LEN * hidden_size];
    for window_idx in 0..job.set.n_windows() {
        job.check_cancel()?;
        let is_fit = window_idx < job.set.n_fit();
        job.streams.read(Side::Teacher, layer_idx, window_idx, &mut rows)?;
        advance(job, &teacher_runner, Sublayer::Attn, &mut rows)?;
        let dense_method = method.filter(|method| method.width.inputs() == InputSource::Dense && is_fit);
        if let (Some(_), Some(stats)) = (dense_method, &mut stats) {
            collect(job, layer_idx, &teacher_runner, &rows, None, stats)?;
        }
        advance(job, &teacher_runner, Sublayer::Mlp, &mut rows)?;
        job.streams.write(Side::Teacher, layer_idx + 1, window_idx, &rows)?;
        let teacher_next = std::mem::take(&mut rows);
        rows = vec![0.0; WINDOW_LEN * hidden_size];
        job.streams.read(Side::Student, layer_idx, window_idx, &mut rows)?;
        advance(job, &student_runner, Sublayer::Attn, &mut rows)?;
        let own_method = method.filter(|method| method.width.inputs() == InputSource::PrunedPrefix && is_fit);
        if let (Some(_), Some(stats)) = (own_method, &mut stats) {
            collect(job, layer_idx, &student_runner, &rows, Some(&teacher_next), stats)?;
        }
        job.streams.write(Side::Student, layer_idx + 1, window_idx, &rows)?;
    }
    if let Some(stats) = &mut stats {
        settle_sums(job, stats)?;
    }
    job.count("calibrate", first_pass_flops(job, &layer, method));
    job.clock("calibrate", from);
    Ok(stats)
}

/// Ends the accumulation: both triangles of the Gram matrix are filled, and where the rung says so the large sums
/// go to files.
pub(crate) fn settle_sums(job: &Job<'_>, stats: &mut LayerStats) -> Result<(), PruneError> {
    const FILES: [&str; 2] = ["spill-gram", "spill-cross"];
    let Some(gram) = &mut stats.gram else { return Ok(()) };
    mirror_upper(gram, stats.n_in);
    // What the windows have left in the heap must not lie beside the systems that are solved next.
    release_free_heap();
    if job.rung.sums != SumsIn::Files {
        return Ok(());
    }
    let store = |name: &str, n_cols: usize, values: Vec<f32>| -> Result<Arc<dyn RowStore>, PruneError> {
        let matrix = DiskMatrix::create(&job.work.file(name), n_cols).and_then(|matrix| {
            matrix.write_rows(0, &values)?;
            Ok(matrix)
        });
        Ok(Arc::new(matrix.map_err(|error| job.io_error(name, error))?))
    };
    let gram = store(FILES[0], stats.n_in, stats.gram.take().unwrap_or_default())?;
    let cross = stats.target.as_mut().map(|target| std::mem::take(&mut target.cross)).unwrap_or_default();
    let cross = store(FILES[1], stats.n_out, cross)?;
    stats.stored = Some(StoredSums { gram, cross });
    Ok(())
}

fn empty_stats(method: &Method, width: usize, hidden_size: usize) -> LayerStats {
    let mut stats = LayerStats::new(width, hidden_size);
    if Needs::Gram <= method.width.needs() {
        stats.gram = Some(vec![0.0; width * width]);
    }
    if method.teacher_share.is_some() {
        let cross = vec![0.0; width * hidden_size];
        stats.target = Some(TargetStats { cross, sum: vec![0.0; hidden_size], energy: 0.0 });
    }
    stats
}

/// Runs a sub-layer in place; an absent one leaves the rows as they are. Tokens of an MLP know nothing of each
/// other, so they pass in the portions of the rung.
pub(crate) fn advance(
    job: &Job<'_>,
    runner: &LayerRunner,
    sublayer: Sublayer,
    rows: &mut [f32],
) -> Result<(), PruneError> {
    let portion = match sublayer {
        Sublayer::Attn => rows.len(),
        Sublayer::Mlp => job.rung.mlp_rows * job.request.source.config().hidden_size,
    };
    for rows in rows.chunks_mut(portion.max(1)) {
        if let Some(run) = runner.run(sublayer, rows)? {
            rows.copy_from_slice(run.output());
        }
    }
    Ok(())
}

/// Runs a whole layer in place, as [`advance`] runs its halves.
pub(crate) fn advance_layer(job: &Job<'_>, runner: &LayerRunner, rows: &mut [f32]) -> Result<(), PruneError> {
    advance(job, runner, Sublayer::Attn, rows)?;
    advance(job, runner, Sublayer::Mlp, rows)
}

/// Adds one window to the statistics. `mid`: hidden states before the MLP; the target is what the MLP would
/// have to add to reach `teacher_next`.
pub(crate) fn collect(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    runner: &LayerRunner,
    mid: &[f32],
    teacher_next: Option<&[f32]>,
    stats: &mut LayerStats,
) -> Result<(), PruneError> {
    let portion = job.rung.mlp_rows * stats.n_out;
    let mut next = teacher_next.map(|next| next.chunks(portion));
    for mid in mid.chunks(portion) {
        let next = next.as_mut().and_then(Iterator::next);
        collect_portion(job, layer_idx, runner, mid, next, stats)?;
    }
    Ok(())
}

fn collect_portion(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    runner: &LayerRunner,
    mid: &[f32],
    teacher_next: Option<&[f32]>,
    stats: &mut LayerStats,
) -> Result<(), PruneError> {
    let Some(run) = runner.run_mlp_inner(mid)? else { return Ok(()) };
    let inner = run.inner();
    let (k, d) = (stats.n_in, stats.n_out);
    stats.add_moments(inner).map_err(|error| numeric(layer_idx, &error))?;
    if let Some(gram) = &mut stats.gram {
        gram_accumulate(&job.pool, inner, k, gram);
    }
    if let (Some(target), Some(teacher_next)) = (&mut stats.target, teacher_next) {
        let wanted: Vec<f32> = teacher_next.iter().zip(mid).map(|(t, h)| t - h).collect();
        cross_accumulate(&job.pool, inner, &wanted, k, d, &mut target.cross);
        for row in wanted.chunks_exact(d) {
            for (sum, &value) in target.sum.iter_mut().zip(row) {
                *sum += f64::from(value);
                target.energy += f64::from(value) * f64::from(value);
            }
        }
    }
    Ok(())
}

pub(crate) fn numeric(layer_idx: LayerIdx, error: &dyn std::error::Error) -> PruneError {
    PruneError::Numeric { layer_idx, what: error.to_string() }
}

/// Chooses the neurons that stay and refits what is left.
fn solve(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    method: &Method,
    width: usize,
    stats: &mut LayerStats,
) -> Result<(Vec<usize>, Recovery), PruneError> {
    job.check_cancel()?;
    let fail = |error: NumericError| numeric(layer_idx, &error);
    let source = &job.request.source;
    if method.width.reads_by_rows() {
        let down = down_rows(job, layer_idx)?;
        let down = down.view();
        if let Some(share) = method.teacher_share {
            stats.blend_own_target(down, share).map_err(fail)?;
        } else {
            stats.set_own_target(down).map_err(fail)?;
        }
        let problem = fit_problem(stats, down).map_err(fail)?;
        let kept = select_neurons(&problem, width, &mut |_| job.flow()).map_err(fail)?;
        job.check_cancel()?;
        let weight = refit(&problem, &kept).map_err(fail)?;
        return Ok((kept, Recovery { weight, bias: None }));
    }
    let role = |role| source.require(WeightId::layer(layer_idx, role));
    let down = role(WeightRole::DownProj)?.to_f32();
    let coupled: Vec<Vec<f32>> = if method.width.needs() == Needs::Weights {
        vec![role(WeightRole::GateProj)?.to_f32(), role(WeightRole::UpProj)?.to_f32()]
    } else {
        Vec::new()
    };
    let coupled: Vec<&[f32]> = coupled.iter().map(Vec::as_slice).collect();
    if let Some(share) = method.teacher_share {
        stats.blend_own_target(&down, share).map_err(fail)?;
    }
    let linear =
        Linear { weight: &down, n_out: stats.n_out, n_in: stats.n_in, unit_len: 1, coupled: &coupled };
    let kept = method.width.select(&linear, stats, width).map_err(fail)?;
    job.check_cancel()?;
    let recovery = method.width.recover(&linear, stats, &kept).map_err(fail)?;
    Ok((kept, recovery))
}

/// The original down projection: in memory when there is room for it, else decoded row by row.
pub(crate) enum DownRows {
    Memory(Vec<f32>),
    Mapped(WeightRows),
}

impl DownRows {
    pub(crate) fn view(&self) -> MatrixView<'_> {
        match self {
            Self::Memory(values) => MatrixView::Memory(values),
            Self::Mapped(rows) => MatrixView::Stored(rows),
        }
    }
}

pub(crate) fn down_rows(job: &Job<'_>, layer_idx: LayerIdx) -> Result<DownRows, PruneError> {
    let (source, id) = (&job.request.source, WeightId::layer(layer_idx, WeightRole::DownProj));
    Ok(match job.rung.sums {
        SumsIn::Files => DownRows::Mapped(WeightRows::new(source.clone(), id)?),
        SumsIn::Memory | SumsIn::Moments => DownRows::Memory(source.require(id)?.to_f32()),
    })
}

/// The problem of a down projection with its target.
pub(crate) fn fit_problem<'a>(
    stats: &'a LayerStats,
    prior: MatrixView<'a>,
) -> Result<FitProblem<'a>, NumericError> {
    let matrices = FitMatrices { gram: stats.gram_view()?, cross: stats.cross_view()?, prior };
    FitProblem::of_matrices(matrices, stats.n_in, stats.n_out, Damping::DEFAULT)
}

/// Moves the student through what is left of the layer and measures its drift.
fn second_pass(
    job: &mut Job<'_>,
    layer_idx: LayerIdx,
    student: &OverlaySource,
    report: &mut LayerReport,
) -> Result<(), PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let hidden_size = source.config().hidden_size;
    let teacher_runner = if report.removed {
        Some(LayerRunner::new(source.as_ref(), layer_idx, job.pool.clone())?)
    } else {
        None
    };
    let student_runner = LayerRunner::new(student, layer_idx, job.pool.clone())?;
    let mut rows = vec![0.0; WINDOW_LEN * hidden_size];
    let mut teacher = vec![0.0; WINDOW_LEN * hidden_size];
    let (mut fit, mut held_out) = (Drift::default(), Drift::default());
    for window_idx in 0..job.set.n_windows() {
        job.check_cancel()?;
        if let Some(runner) = &teacher_runner {
            job.streams.read(Side::Teacher, layer_idx, window_idx, &mut teacher)?;
            advance_layer(job, runner, &mut teacher)?;
            job.streams.write(Side::Teacher, layer_idx + 1, window_idx, &teacher)?;
            job.streams.read(Side::Student, layer_idx, window_idx, &mut rows)?;
        } else {
            job.streams.read(Side::Teacher, layer_idx + 1, window_idx, &mut teacher)?;
            job.streams.read(Side::Student, layer_idx + 1, window_idx, &mut rows)?;
            advance(job, &student_runner, Sublayer::Mlp, &mut rows)?;
        }
        job.streams.write(Side::Student, layer_idx + 1, window_idx, &rows)?;
        let drift = if window_idx < job.set.n_fit() { &mut fit } else { &mut held_out };
        drift.add(&teacher, &rows);
    }
    report.fit_drift = fit.get();
    report.held_out_drift = held_out.get();
    job.count("advance", second_pass_flops(job, &source.config().layers[layer_idx], report));
    job.clock("advance", from);
    Ok(())
}
