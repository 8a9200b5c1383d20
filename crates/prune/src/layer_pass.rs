//! One layer of the pruning pass: attention and MLP are cut one after the other, each on what the layers before it
//! left, and the streams are moved on.
//!
//! Memory: the layer's mapped pages, one window of activations, and the statistics of one output projection
//! (`4 k^2 + 4 k d` bytes) with the solver's work space.

use crate::align::{NormedSums, aligned};
use crate::apply::{convert_layer, cut_attention, cut_mlp, narrowed, round_matrix, storage_dtype, to_matrix};
use crate::calibration::WINDOW_LEN;
use crate::error::PruneError;
use crate::footprint::SumsIn;
use crate::job::{Job, LayerReport};
use crate::methods::InputSource;
use crate::numeric::NumericError;
use crate::overlay::{LayerWeights, OverlaySource, read_layer, write_layer};
use crate::projection::{Projection, accumulate, make_wanted, numeric, settle_sums};
use crate::registry::Method;
use crate::rounding::{Feedback, feeds_back, is_coarse};
use crate::speed::{
    attention_flops, attention_pass_flops, first_pass_flops, normed_sums_flops, second_pass_flops,
};
use crate::stats::LayerStats;
use crate::streams::Side;
use secateur_engine::{LayerRunner, Sublayer};
use secateur_model::{LayerConfig, LayerIdx, WeightId, WeightRole, WeightSource};
use secateur_tensor::kernels::{ThreadPool, cross_accumulate, gram_accumulate, mirror_upper};
use secateur_tensor::{DType, WeightMatrix};
use std::time::Instant;

/// What is to be done with a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerDecision {
    /// Remove it whole.
    Remove,
    /// Keep this much of it.
    Keep {
        /// MLP neurons.
        width: usize,
        /// Key/value heads, each with the query heads that read it.
        kv_groups: usize,
    },
}

impl LayerDecision {
    /// Keep all of a layer.
    pub(crate) fn whole(layer: &LayerConfig) -> Self {
        Self::Keep { width: layer.intermediate_size, kv_groups: layer.num_key_value_heads }
    }

    /// MLP neurons that stay, in a layer that does.
    pub(crate) fn width(self) -> Option<usize> {
        match self {
            Self::Remove => None,
            Self::Keep { width, .. } => Some(width),
        }
    }
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

/// Runs the layer that follows those `before` it and leaves its outcome in the work folder.
pub(crate) fn prune_layer(
    job: &mut Job<'_>,
    method: &Method,
    decision: LayerDecision,
    before: &[LayerReport],
) -> Result<LayerReport, PruneError> {
    let layer_idx = before.len();
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
        kept_kv_groups: Vec::new(),
        digest: String::new(),
    };
    let mut student = OverlaySource::new(source.clone());
    match decision {
        LayerDecision::Remove => student.remove_layer(layer_idx),
        LayerDecision::Keep { width, kv_groups } => {
            report.intermediate_size = width;
            report.num_key_value_heads = kv_groups;
            let rewriting = Rewriting::new(job, method, before);
            let mids = Mids::default();
            let mut layer =
                LayerAtWork { job: &mut *job, layer_idx, shape, rewriting, has_file: false, mids };
            student.put_memory(layer_idx, shape, layer.weights()?);
            layer.rewrite_inputs(&mut student, Sublayer::Attn)?;
            let refits = kv_groups != 0 && layer.rewrites(WeightRole::OProj)?;
            if kv_groups < shape.num_key_value_heads || refits {
                let kept = layer.cut_attention(&mut student, method, kv_groups)?;
                report.recovery = method.width.name().to_owned();
                report.kept_kv_groups = if kv_groups < shape.num_key_value_heads { kept } else { Vec::new() };
            }
            layer.rewrite_inputs(&mut student, Sublayer::Mlp)?;
            let shape = layer.shape;
            let is_narrowed = width < shape.intermediate_size;
            let refits = width != 0 && layer.rewrites(WeightRole::DownProj)?;
            let cut = (is_narrowed || refits).then_some(method);
            let stats = first_pass(layer.job, layer_idx, &student, cut, &mut layer.mids)?;
            // Nothing of the layer but its down projection is needed while the large systems are solved.
            source.give_back_layer(layer_idx);
            student.put_memory(layer_idx, shape, LayerWeights::new());
            let mut cut_weights = LayerWeights::new();
            if let Some(mut stats) = stats {
                let from = Instant::now();
                let projection = Projection::of_mlp(source.config(), layer_idx);
                let pruned = projection.prune(layer.job, method, width, &mut stats)?;
                drop(stats);
                student.put_memory(layer_idx, shape, layer.weights()?);
                cut_weights = cut_mlp(&student, layer_idx, &pruned.kept, pruned.recovered())?;
                report.recovery = method.width.name().to_owned();
                report.kept_neurons = if is_narrowed { pruned.kept } else { Vec::new() };
                layer.job.clock("solve", from);
            }
            let mut weights = layer.weights()?;
            weights.extend(cut_weights);
            let shape = narrowed(shape, width, kv_groups);
            finish_layer(job, shape, &mut student, weights, &mut report)?;
        }
    }
    second_pass(job, layer_idx, &student, &mut report)?;
    source.give_back_layer(layer_idx);
    job.streams.sync(layer_idx + 1)?;
    job.release_buffers();
    Ok(report)
}

/// A layer between its first cut and its last.
struct LayerAtWork<'j, 'r> {
    job: &'j mut Job<'r>,
    layer_idx: LayerIdx,
    /// With the attention it has now, and the MLP of the base model.
    shape: LayerConfig,
    rewriting: Rewriting,
    /// New matrices of it lie in [`WORK_FILE`].
    has_file: bool,
    mids: Mids,
}

/// The hidden states after a layer's attention that are known: those of so many windows from the first. They lie where
/// the next layer's input will, so attention runs once for all who ask.
#[derive(Clone, Copy, Debug, Default)]
struct Mids {
    teacher: usize,
    student: usize,
}

impl Mids {
    /// Reads the states of a window after the attention that `runner` runs.
    fn read(
        &mut self,
        job: &mut Job<'_>,
        (side, runner): (Side, &LayerRunner),
        (layer_idx, window_idx): (LayerIdx, usize),
        rows: &mut [f32],
    ) -> Result<(), PruneError> {
        let known = match side {
            Side::Teacher => &mut self.teacher,
            Side::Student => &mut self.student,
        };
        if window_idx < *known {
            return job.streams.read(side, layer_idx + 1, window_idx, rows);
        }
        job.streams.read(side, layer_idx, window_idx, rows)?;
        advance(job, runner, Sublayer::Attn, rows)?;
        job.streams.write(side, layer_idx + 1, window_idx, rows)?;
        *known = window_idx + 1;
        let layer = job.request.source.config().layers[layer_idx];
        job.count("calibrate", attention_flops(job, &layer));
        Ok(())
    }
}

/// Where the new matrices of a layer lie until the last of them is made.
const WORK_FILE: &str = "spill-layer";

/// Student and teacher closer than this differ by the rounding of f16 alone.
const DRIFT: f64 = 1e-5;

/// Which matrices of a layer are written anew although no unit of them leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rewriting {
    /// Those whose result is coarser than the source: rounded with feedback, and output projections refitted, one
    /// after the other, each on what the rounding before it left.
    coarser: bool,
    /// Where the student has drifted, also those that lose little by being stored anew; the share of the way from the
    /// student's inputs to the teacher's.
    drifted: Option<f64>,
}

impl Rewriting {
    fn new(job: &Job<'_>, method: &Method, before: &[LayerReport]) -> Self {
        let can_fit = method.width.damping_by_rows().is_some() && job.rung.sums != SumsIn::Moments;
        let has_drifted = can_fit && before.last().is_some_and(|layer| DRIFT < layer.fit_drift);
        Self { coarser: can_fit, drifted: method.teacher.map(|shares| shares.input).filter(|_| has_drifted) }
    }

    /// Whether a matrix of the source is written anew in `dtype`. One whose few bits would stay loses more by another
    /// rounding than it gains.
    fn includes(self, matrix: &WeightMatrix, dtype: DType) -> bool {
        if is_coarse(dtype) { self.coarser && dtype != matrix.dtype() } else { self.drifted.is_some() }
    }
}

impl LayerAtWork<'_, '_> {
    /// The matrices that differ from the base model's, in their storage dtypes. Read anew each time: nothing stays
    /// in memory while systems are solved.
    fn weights(&self) -> Result<LayerWeights, PruneError> {
        let request = self.job.request;
        let mut weights = convert_layer(request.source.as_ref(), self.layer_idx, request.dtype)?;
        if self.has_file {
            let path = self.job.work.file(WORK_FILE);
            weights.extend(read_layer(&path).map_err(|error| self.job.io_error(WORK_FILE, error))?);
        }
        Ok(weights)
    }

    /// Takes new matrices of the layer.
    fn keep(&mut self, new: LayerWeights) -> Result<(), PruneError> {
        let path = self.job.work.file(WORK_FILE);
        let fail = |error| self.job.io_error(WORK_FILE, error);
        let mut weights = if self.has_file { read_layer(&path).map_err(fail)? } else { LayerWeights::new() };
        weights.extend(new);
        write_layer(&path, &weights).map_err(fail)?;
        self.has_file = true;
        Ok(())
    }

    /// The matrix of the source and the dtype it is to be stored in, if it is written anew.
    fn rewritten(&self, role: WeightRole) -> Result<Option<(WeightMatrix, DType)>, PruneError> {
        let matrix = self.job.request.source.weight(WeightId::layer(self.layer_idx, role))?;
        let matrix = matrix.map(|matrix| {
            let dtype = storage_dtype(self.job.request.dtype, matrix.dtype(), matrix.n_cols());
            (matrix, dtype)
        });
        Ok(matrix.filter(|(matrix, dtype)| self.rewriting.includes(matrix, *dtype)))
    }

    fn rewrites(&self, role: WeightRole) -> Result<bool, PruneError> {
        Ok(self.rewritten(role)?.is_some())
    }

    /// Writes the matrices that read the normed hidden states of a sub-layer anew: aligned with what the teacher reads
    /// where the student has drifted, and block formats rounded with feedback from what the student reads (GPTQ,
    /// arXiv 2210.17323).
    fn rewrite_inputs(&mut self, student: &mut OverlaySource, sublayer: Sublayer) -> Result<(), PruneError> {
        const ATTN: [WeightRole; 3] = [WeightRole::QProj, WeightRole::KProj, WeightRole::VProj];
        const MLP: [WeightRole; 2] = [WeightRole::GateProj, WeightRole::UpProj];
        let roles = if sublayer == Sublayer::Attn { &ATTN[..] } else { &MLP[..] };
        let layer_idx = self.layer_idx;
        let mut matrices = Vec::new();
        for &role in roles {
            matrices.extend(self.rewritten(role)?.map(|(matrix, dtype)| (role, matrix, dtype)));
        }
        if matrices.is_empty() {
            return Ok(());
        }
        let share = self.rewriting.drifted;
        let sums = normed_sums(self.job, layer_idx, student, sublayer, share.is_some(), &mut self.mids)?;
        let Some(sums) = sums else {
            return Ok(());
        };
        let from = Instant::now();
        let pool = &self.job.pool;
        let written = self
            .job
            .shared()
            .solve(sums.n_in, || rewrite_matrices(pool, layer_idx, sums, share, matrices))?;
        self.keep(written)?;
        student.put_memory(layer_idx, self.shape, self.weights()?);
        self.job.clock("align", from);
        Ok(())
    }

    /// Cuts the attention to `keep` KV groups and lets the student run what is left; returns the groups that stay.
    fn cut_attention(
        &mut self,
        student: &mut OverlaySource,
        method: &Method,
        keep: usize,
    ) -> Result<Vec<usize>, PruneError> {
        let (source, layer_idx) = (self.job.request.source.clone(), self.layer_idx);
        let projection = Projection::of_attention(source.config(), layer_idx);
        let mut stats = attention_stats(self.job, projection, student, method, &mut self.mids)?;
        source.give_back_layer(layer_idx);
        student.put_memory(layer_idx, self.shape, LayerWeights::new());
        let from = Instant::now();
        let pruned = projection.prune(self.job, method, keep, &mut stats)?;
        drop(stats);
        student.put_memory(layer_idx, self.shape, self.weights()?);
        self.keep(cut_attention(student, layer_idx, &pruned.kept, pruned.recovered())?)?;
        self.shape = narrowed(self.shape, self.shape.intermediate_size, keep);
        self.mids.student = 0;
        student.put_memory(layer_idx, self.shape, self.weights()?);
        self.job.clock("solve", from);
        Ok(pruned.kept)
    }
}

/// Matrices that read the normed hidden states of a sub-layer, in new dtypes: aligned by `share`, and rounded with feedback
/// where the dtype asks for it.
fn rewrite_matrices(
    pool: &ThreadPool,
    layer_idx: LayerIdx,
    sums: NormedSums,
    share: Option<f64>,
    matrices: Vec<(WeightRole, WeightMatrix, DType)>,
) -> Result<LayerWeights, PruneError> {
    let fail = |error: NumericError| numeric(layer_idx, &error);
    let n_in = sums.n_in;
    let map = share.map(|share| sums.alignment(share)).transpose().map_err(fail)?;
    let any = matrices.iter().any(|(.., dtype)| feeds_back(*dtype));
    let feedback = any.then(|| Feedback::of_gram(sums.gram, n_in)).transpose().map_err(fail)?;
    let mut written = LayerWeights::new();
    for (role, matrix, dtype) in matrices {
        let mut values = matrix.to_f32();
        if let Some(map) = &map {
            values = aligned(&values, map, n_in).map_err(|error| numeric(layer_idx, &error))?;
        }
        let stored = match &feedback {
            Some(feedback) if feeds_back(dtype) => {
                round_matrix(pool, layer_idx, values, n_in, (feedback, dtype))
            }
            _ => to_matrix(layer_idx, &values, matrix.n_rows(), n_in, dtype),
        };
        written.insert(role, stored?);
    }
    Ok(written)
}

/// Stores the layer's new matrices and lets the student run them.
fn finish_layer(
    job: &Job<'_>,
    shape: LayerConfig,
    student: &mut OverlaySource,
    weights: LayerWeights,
    report: &mut LayerReport,
) -> Result<(), PruneError> {
    if !weights.is_empty() {
        let name = layer_file(report.layer_idx);
        report.digest =
            write_layer(&job.work.file(&name), &weights).map_err(|error| job.io_error(&name, error))?;
    }
    student.put_memory(report.layer_idx, shape, weights);
    Ok(())
}

/// Name of the file with the new matrices of a layer.
pub(crate) fn layer_file(layer_idx: LayerIdx) -> String {
    format!("layer-{layer_idx:03}.bin")
}

/// Sums up what a sub-layer reads, over the windows that are fitted on. `None` when the layer does not have it.
fn normed_sums(
    job: &mut Job<'_>,
    layer_idx: LayerIdx,
    student: &OverlaySource,
    sublayer: Sublayer,
    with_teacher: bool,
    mids: &mut Mids,
) -> Result<Option<NormedSums>, PruneError> {
    let from = Instant::now();
    let n_in = student.config().hidden_size;
    let runner = job.runner(student, layer_idx)?;
    let source = job.request.source.clone();
    let teacher = with_teacher.then(|| job.runner(source.as_ref(), layer_idx)).transpose()?;
    let mut gram = vec![0.0; n_in * n_in];
    let mut cross = vec![0.0; if with_teacher { n_in * n_in } else { 0 }];
    let mut rows = vec![0.0; WINDOW_LEN * n_in];
    let (mut normed, mut wanted) = (rows.clone(), rows.clone());
    for window_idx in 0..job.set.n_fit() {
        job.check_cancel()?;
        let mut read = |job: &mut Job<'_>, side, runner: &LayerRunner, normed: &mut Vec<f32>| {
            match sublayer {
                Sublayer::Attn => job.streams.read(side, layer_idx, window_idx, &mut rows)?,
                Sublayer::Mlp => mids.read(job, (side, runner), (layer_idx, window_idx), &mut rows)?,
            }
            Ok::<bool, PruneError>(runner.normed(sublayer, &rows, normed))
        };
        if !read(job, Side::Student, &runner, &mut normed)? {
            return Ok(None);
        }
        gram_accumulate(&job.pool, &normed, n_in, &mut gram);
        if let Some(teacher) = &teacher {
            read(job, Side::Teacher, teacher, &mut wanted)?;
            cross_accumulate(&job.pool, &normed, &wanted, n_in, n_in, &mut cross);
        }
    }
    job.release_buffers();
    mirror_upper(&mut gram, n_in);
    job.count("calibrate", normed_sums_flops(job, with_teacher));
    job.clock("calibrate", from);
    Ok(Some(NormedSums { n_in, gram, cross }))
}

/// Passes the windows that are fitted on through the attention of teacher and student, collecting what `method` needs
/// to know of its output projection. The streams stay where they are.
fn attention_stats(
    job: &mut Job<'_>,
    projection: Projection,
    student: &OverlaySource,
    method: &Method,
    mids: &mut Mids,
) -> Result<LayerStats, PruneError> {
    let from = Instant::now();
    let (source, layer_idx) = (job.request.source.clone(), projection.layer_idx);
    let teacher_runner = job.runner(source.as_ref(), layer_idx)?;
    let student_runner = job.runner(student, layer_idx)?;
    let mut stats = projection.stats(method);
    let mut rows = vec![0.0; WINDOW_LEN * projection.n_out];
    let (side, runner) = match method.width.inputs() {
        InputSource::Dense => (Side::Teacher, &teacher_runner),
        InputSource::PrunedPrefix => (Side::Student, &student_runner),
    };
    let has_target = side == Side::Student && method.teacher.is_some();
    let mut target = vec![0.0; if has_target { rows.len() } else { 0 }];
    for window_idx in 0..job.set.n_fit() {
        job.check_cancel()?;
        if has_target {
            mids.read(job, (Side::Teacher, &teacher_runner), (layer_idx, window_idx), &mut target)?;
        }
        job.streams.read(side, layer_idx, window_idx, &mut rows)?;
        if let Some(run) = runner.run(Sublayer::Attn, &rows)? {
            make_wanted(&mut target, &rows);
            accumulate(job, layer_idx, run.inner(), has_target.then_some(&target), &mut stats)?;
        }
    }
    job.release_buffers();
    settle_sums(job, &mut stats)?;
    job.count("calibrate", attention_pass_flops(job, &source.config().layers[layer_idx], method));
    job.clock("calibrate", from);
    Ok(stats)
}

/// Moves the teacher through the layer and the student through its attention, collecting what `method` needs.
fn first_pass(
    job: &mut Job<'_>,
    layer_idx: LayerIdx,
    student: &OverlaySource,
    method: Option<&Method>,
    mids: &mut Mids,
) -> Result<Option<LayerStats>, PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let hidden_size = source.config().hidden_size;
    let teacher_runner = job.runner(source.as_ref(), layer_idx)?;
    let student_runner = job.runner(student, layer_idx)?;
    let mut stats = method.map(|method| Projection::of_mlp(source.config(), layer_idx).stats(method));
    let layer = source.config().layers[layer_idx];
    let mut rows = vec![0.0; WINDOW_LEN * hidden_size];
    let mut teacher = rows.clone();
    for window_idx in 0..job.set.n_windows() {
        job.check_cancel()?;
        let is_fit = window_idx < job.set.n_fit();
        mids.read(job, (Side::Teacher, &teacher_runner), (layer_idx, window_idx), &mut teacher)?;
        let dense_method = method.filter(|method| method.width.inputs() == InputSource::Dense && is_fit);
        if let (Some(_), Some(stats)) = (dense_method, &mut stats) {
            collect(job, layer_idx, &teacher_runner, &teacher, None, stats)?;
        }
        advance(job, &teacher_runner, Sublayer::Mlp, &mut teacher)?;
        job.streams.write(Side::Teacher, layer_idx + 1, window_idx, &teacher)?;
        mids.read(job, (Side::Student, &student_runner), (layer_idx, window_idx), &mut rows)?;
        let own_method = method.filter(|method| method.width.inputs() == InputSource::PrunedPrefix && is_fit);
        if let (Some(_), Some(stats)) = (own_method, &mut stats) {
            make_wanted(&mut teacher, &rows);
            collect(job, layer_idx, &student_runner, &rows, Some(&teacher), stats)?;
        }
    }
    job.release_buffers();
    if let Some(stats) = &mut stats {
        settle_sums(job, stats)?;
    }
    job.count("calibrate", first_pass_flops(job, &layer, method));
    job.clock("calibrate", from);
    Ok(stats)
}

/// [`run_in_place`] with the portions of the rung.
pub(crate) fn advance(
    job: &Job<'_>,
    runner: &LayerRunner,
    sublayer: Sublayer,
    rows: &mut [f32],
) -> Result<(), PruneError> {
    run_in_place(runner, sublayer, rows, job.rung.mlp_rows * job.request.source.config().hidden_size)
}

/// Runs a sub-layer in place; an absent one leaves the rows as they are. Tokens of an MLP know nothing of each
/// other, so they pass in portions of `mlp_portion` values.
pub(crate) fn run_in_place(
    runner: &LayerRunner,
    sublayer: Sublayer,
    rows: &mut [f32],
    mlp_portion: usize,
) -> Result<(), PruneError> {
    let portion = match sublayer {
        Sublayer::Attn => rows.len(),
        Sublayer::Mlp => mlp_portion,
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

/// Adds one window to the statistics of an MLP. `mid`: hidden states before it; `wanted`: what it should add to them.
pub(crate) fn collect(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    runner: &LayerRunner,
    mid: &[f32],
    wanted: Option<&[f32]>,
    stats: &mut LayerStats,
) -> Result<(), PruneError> {
    let portion = job.rung.mlp_rows * stats.n_out;
    let mut wanted = wanted.map(|wanted| wanted.chunks(portion));
    for mid in mid.chunks(portion) {
        let wanted = wanted.as_mut().and_then(Iterator::next);
        let Some(run) = runner.run_mlp_inner(mid)? else { return Ok(()) };
        accumulate(job, layer_idx, run.inner(), wanted, stats)?;
    }
    Ok(())
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
    let teacher_runner = if report.removed { Some(job.runner(source.as_ref(), layer_idx)?) } else { None };
    let student_runner = job.runner(student, layer_idx)?;
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
