//! Whole layers leave, chosen by a [`DepthMethod`]: what ShortGPT and SLEB need to know is measured here.

use crate::calibration::WINDOW_LEN;
use crate::comp::LayerImportance;
use crate::error::PruneError;
use crate::job::{Job, Stage};
use crate::layer_pass::{LayerDecision, advance_layer};
use crate::measure::Decisions;
use crate::methods::DepthMethod;
use crate::projection::numeric;
use crate::streams::Side;
use secateur_engine::Head;
use secateur_model::LayerIdx;
use std::time::Instant;

/// Windows over which the influence of a layer is averaged.
pub(crate) const INFLUENCE_WINDOWS: usize = 16;
/// Windows whose loss SLEB compares; each comparison is a run of the model over them.
pub(crate) const LOSS_WINDOWS: usize = 2;
const RECORD: &str = "probe-depth.json";

/// Decides which layers leave so that the share removed comes closest to what was asked.
pub(crate) fn decide_depth(job: &mut Job<'_>, method: DepthMethod) -> Result<Decisions, PruneError> {
    let n_layers = job.request.source.config().n_layers();
    let n_remove = (job.request.ratio.get() * n_layers as f64).round() as usize;
    let (influence, removed): (Vec<f64>, Vec<LayerIdx>) = job.remembered(RECORD, |job| {
        let from = Instant::now();
        let influence = influence(job)?;
        let mut losses = Losses::new(job)?;
        let removed = method.select_layers(&influence, n_remove, &mut |present, without| {
            losses.without(job, present, without)
        })?;
        job.clock("measure", from);
        Ok((influence, removed))
    })?;
    let config = job.request.source.config();
    let keep = |layer_idx: usize| LayerDecision::whole(&config.layers[layer_idx]);
    let mut layers: Vec<LayerDecision> = (0..n_layers).map(keep).collect();
    removed.into_iter().for_each(|layer_idx| layers[layer_idx] = LayerDecision::Remove);
    Ok(Decisions { layers, importance: influence })
}

/// Block influence of every layer of the base model.
fn influence(job: &mut Job<'_>) -> Result<Vec<f64>, PruneError> {
    let source = job.request.source.clone();
    let (n_layers, hidden_size) = (source.config().n_layers(), source.config().hidden_size);
    let n_windows = INFLUENCE_WINDOWS.min(job.set.n_fit());
    let mut sums = vec![LayerImportance::default(); n_layers];
    let mut rows = vec![0.0; WINDOW_LEN * hidden_size];
    // Window after window through all layers: nothing but one window is held, and mapped layers are read again.
    for window_idx in 0..n_windows {
        let done = 0.5 * window_idx as f64 / n_windows as f64;
        job.report(Stage::Measure, None, job.course.measured(done), None);
        job.streams.read(Side::Teacher, 0, window_idx, &mut rows)?;
        for (layer_idx, sum) in sums.iter_mut().enumerate() {
            job.check_cancel()?;
            let runner = job.runner(source.as_ref(), layer_idx)?;
            let before = rows.clone();
            advance_layer(job, &runner, &mut rows)?;
            sum.add_window(&before, &rows, hidden_size).map_err(|error| numeric(layer_idx, &error))?;
            source.give_back_layer(layer_idx);
        }
    }
    Ok(sums.iter().map(LayerImportance::block_influence).collect())
}

/// Losses of the model without some layers. What comes before the layer under trial is computed once.
struct Losses {
    /// Hidden states as they enter `entered`, window after window, with `present` before it.
    rows: Vec<f32>,
    present: Vec<bool>,
    entered: LayerIdx,
    n_windows: usize,
}

impl Losses {
    fn new(job: &Job<'_>) -> Result<Self, PruneError> {
        let hidden_size = job.request.source.config().hidden_size;
        let n_windows = LOSS_WINDOWS.min(job.set.n_fit());
        let rows = vec![0.0; n_windows * WINDOW_LEN * hidden_size];
        let mut losses = Self { rows, present: Vec::new(), entered: 0, n_windows };
        losses.restart(job)?;
        Ok(losses)
    }

    fn restart(&mut self, job: &Job<'_>) -> Result<(), PruneError> {
        let len = self.rows.len() / self.n_windows;
        for (window_idx, rows) in self.rows.chunks_exact_mut(len).enumerate() {
            job.streams.read(Side::Teacher, 0, window_idx, rows)?;
        }
        (self.present, self.entered) = (Vec::new(), 0);
        Ok(())
    }

    /// Mean loss without the layers that are absent in `present`; `without` is the one under trial.
    fn without(&mut self, job: &mut Job<'_>, present: &[bool], without: LayerIdx) -> Result<f64, PruneError> {
        if without < self.entered || self.present.get(..self.entered) != present.get(..self.entered) {
            self.restart(job)?;
        }
        let mut rows = std::mem::take(&mut self.rows);
        for layer_idx in self.entered..without {
            run_layer(job, present, layer_idx, &mut rows, self.n_windows)?;
        }
        (self.rows, self.present, self.entered) = (rows.clone(), present.to_vec(), without);
        for layer_idx in without..present.len() {
            run_layer(job, present, layer_idx, &mut rows, self.n_windows)?;
        }
        let source = job.request.source.clone();
        let head = Head::new(source.as_ref())?.giving_back(source);
        let hidden_size = job.request.source.config().hidden_size;
        let (mut sum, mut n) = (0.0, 0usize);
        for (window_idx, rows) in rows.chunks_exact(WINDOW_LEN * hidden_size).enumerate() {
            let targets = &job.set.window(window_idx)[1..];
            let losses = head.nll(&job.pool, &rows[..targets.len() * hidden_size], targets)?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            n += targets.len();
        }
        let gone = present.iter().filter(|present| !**present).count();
        let done =
            0.5 + 0.5 * (gone as f64 / (1.0 + job.request.ratio.get() * present.len() as f64)).min(1.0);
        job.report(Stage::Measure, Some(without), job.course.measured(done), None);
        Ok(sum / n.max(1) as f64)
    }
}

fn run_layer(
    job: &Job<'_>,
    present: &[bool],
    layer_idx: LayerIdx,
    rows: &mut [f32],
    n_windows: usize,
) -> Result<(), PruneError> {
    if !present[layer_idx] {
        return Ok(());
    }
    let source = &job.request.source;
    let runner = job.runner(source.as_ref(), layer_idx)?;
    let len = rows.len() / n_windows;
    for rows in rows.chunks_exact_mut(len) {
        job.check_cancel()?;
        advance_layer(job, &runner, rows)?;
    }
    source.give_back_layer(layer_idx);
    Ok(())
}
