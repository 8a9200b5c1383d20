//! Decides what each layer loses: evenly, or from what each cut does to the base model's predictions.
//!
//! The measurement is one sweep over the layers. At each layer the second-order removal gives the error curve
//! of its MLP; then two perturbed copies of a short token window are started: one without the layer, one with
//! its MLP cut to half. All copies move on together with the sweep, so that each layer is in memory once. At
//! the end the divergence of every copy from the untouched one is the measured damage of that cut.

use crate::calibration::WINDOW_LEN;
use crate::comp::LayerImportance;
use crate::depth_pass::decide_depth;
use crate::error::PruneError;
use crate::job::{Job, Stage};
use crate::layer_pass::{
    LayerDecision, advance, advance_layer, collect, down_rows, fit_problem, numeric, settle_sums,
};
use crate::methods::NEURON_STEP;
use crate::pipeline::measured_share;
use crate::refit::refit;
use crate::registry::{Method, Spread};
use crate::select::{Quadratic, Removal, RemovalOptions, remove_units};
use crate::speed::sweep_flops;
use crate::spill::Spill;
use crate::stats::LayerStats;
use crate::streams::Side;
use crate::widths::{DamageCurve, Stack, WidthGrid, allocate, uniform};
use secateur_engine::{Head, LayerRunner, Sublayer};
use secateur_model::{ModelConfig, PlanPolicy};
use secateur_tensor::kernels::heap::release_free_heap;
use secateur_tensor::kernels::{GemmArgs, MatMut, MatRef, gemm};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Windows whose tokens make the error curves.
const CURVE_WINDOWS: usize = 8;
/// Positions at the end of the damage window whose predictions are compared.
const DAMAGE_POSITIONS: usize = 256;
/// Exponent of the damage model: 3 was best on the reference model.
const GAMMA: f64 = 3.0;

const RECORD: &str = "probe.json";

/// Measured damage of cutting one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerDamage {
    /// COMP's layer importance.
    importance: f64,
    /// `errors[i]`: squared output error when the i least useful neurons are gone and the others refitted.
    errors: Vec<f64>,
    /// Neurons removed when `narrowed` was measured.
    reference: usize,
    /// Divergence (nats per token) of the model with this layer's MLP cut by `reference` neurons.
    narrowed: f64,
    /// Divergence of the model without this layer.
    removed: f64,
}

/// What was decided.
pub(crate) struct Decisions {
    pub(crate) layers: Vec<LayerDecision>,
    pub(crate) importance: Vec<f64>,
}

/// Decides layer by layer.
pub(crate) fn decide(job: &mut Job<'_>, method: &Method) -> Result<Decisions, PruneError> {
    match method.spread {
        Spread::Uniform => return Ok(Decisions { layers: even(job)?, importance: Vec::new() }),
        Spread::Depth(depth) => return decide_depth(job, depth),
        Spread::Measured => {}
    }
    let known: Option<Vec<LayerDamage>> =
        job.work.read(RECORD).map_err(|error| job.io_error(RECORD, error))?;
    let damages = match known {
        Some(damages) => damages,
        None => {
            let damages = sweep(job)?;
            job.work.write(RECORD, &damages).map_err(|error| job.io_error(RECORD, error))?;
            damages
        }
    };
    job.resume_at(measured_share(1.0));
    let layers = match job.request.policy {
        PlanPolicy::Compatible => even(job)?,
        PlanPolicy::Quality => spread(job, &damages)?,
    };
    Ok(Decisions { layers, importance: damages.iter().map(|damage| damage.importance).collect() })
}

fn to_remove(job: &Job<'_>) -> u64 {
    let config = job.request.source.config();
    (job.request.ratio.get() * config.all_layer_params() as f64).round() as u64
}

fn unit_params(config: &ModelConfig) -> u64 {
    3 * config.hidden_size as u64
}

fn ratio_error(job: &Job<'_>, error: &dyn std::error::Error) -> PruneError {
    PruneError::Ratio { asked: job.request.ratio, reason: error.to_string() }
}

/// The same width everywhere; with [`PlanPolicy::Quality`] some layers, evenly spread, keep one step more so
/// that the share removed is met as closely as steps allow.
fn even(job: &Job<'_>) -> Result<Vec<LayerDecision>, PruneError> {
    let config = job.request.source.config();
    let widest = config.layers.iter().map(|layer| layer.intermediate_size).max().unwrap_or(0);
    let n_layers = config.n_layers();
    let (grid, remove) = (WidthGrid::NEURONS, to_remove(job));
    let width = match job.request.policy {
        PlanPolicy::Compatible => {
            let widths = uniform(widest, unit_params(config), n_layers, grid, remove);
            widths.map_err(|error| ratio_error(job, &error))?.keep
        }
        PlanPolicy::Quality => {
            let per_step = grid.snap as u64 * unit_params(config);
            let steps = (remove as f64 / per_step as f64).round() as usize;
            let width = |layer_idx: usize| {
                let cut = (layer_idx + 1) * steps / n_layers - layer_idx * steps / n_layers;
                config.layers[layer_idx].intermediate_size.saturating_sub(cut * grid.snap)
            };
            (0..n_layers).map(width).collect()
        }
    };
    if width.iter().any(|&width| width < grid.floor) {
        let reason = format!("layers would keep fewer than {} neurons", grid.floor);
        return Err(PruneError::Ratio { asked: job.request.ratio, reason });
    }
    let kept = width.iter().zip(&config.layers);
    Ok(kept.map(|(&width, layer)| LayerDecision::Width(width.min(layer.intermediate_size))).collect())
}

/// Layers and widths by measured damage.
///
/// COMP's order: the least important layers are tried first, and each leaves only when that is cheaper than
/// narrowing the others for the same number of parameters. The amplitudes of removed layers add up (they all
/// disturb the same residual stream), so their divergences add as `(sum of square roots)^2`.
fn spread(job: &mut Job<'_>, damages: &[LayerDamage]) -> Result<Vec<LayerDecision>, PruneError> {
    let config = job.request.source.config().clone();
    let mut order: Vec<usize> = (0..damages.len()).collect();
    order.sort_by(|&a, &b| damages[a].importance.total_cmp(&damages[b].importance).then(a.cmp(&b)));
    let mut removed: Vec<usize> = Vec::new();
    let mut best = without(job, &config, damages, &removed)?;
    for candidate in order {
        let mut tried = removed.clone();
        tried.push(candidate);
        match without(job, &config, damages, &tried) {
            Ok(next) if next.damage < best.damage => {
                removed = tried;
                best = next;
            }
            // Not cheaper, or more than was to be removed: later candidates matter more.
            _ => break,
        }
    }
    if !removed.is_empty() {
        removed.sort_unstable();
        job.notes.push(format!("layers {removed:?} leave whole: cheaper than narrowing the others"));
    }
    Ok(best.layers)
}

/// A way to spread the cut, and what it is predicted to cost.
struct Spreading {
    layers: Vec<LayerDecision>,
    damage: f64,
}

/// The cheapest widths when the layers `removed` leave whole.
fn without(
    job: &Job<'_>,
    config: &ModelConfig,
    damages: &[LayerDamage],
    removed: &[usize],
) -> Result<Spreading, PruneError> {
    let freed: u64 = removed.iter().map(|&layer_idx| config.layer_params(&config.layers[layer_idx])).sum();
    let beyond = |error: &dyn std::error::Error| ratio_error(job, error);
    let remove = to_remove(job).checked_sub(freed).ok_or_else(|| PruneError::Ratio {
        asked: job.request.ratio,
        reason: "whole layers are more than was to be removed".to_owned(),
    })?;
    let kept: Vec<usize> = (0..damages.len()).filter(|layer_idx| !removed.contains(layer_idx)).collect();
    let mut stacks = Vec::new();
    for &layer_idx in &kept {
        let damage = &damages[layer_idx];
        let curve = DamageCurve {
            errors: &damage.errors,
            reference: damage.reference,
            measured: damage.narrowed,
            gamma: GAMMA,
        };
        let n_units = config.layers[layer_idx].intermediate_size;
        let stack = Stack::new(n_units, unit_params(config), WidthGrid::NEURONS, &curve);
        stacks.push(stack.map_err(|error| beyond(&error))?);
    }
    let widths = allocate(&stacks, remove, config.all_layer_params()).map_err(|error| beyond(&error))?;
    let mut layers = vec![LayerDecision::Remove; damages.len()];
    for (&layer_idx, &width) in kept.iter().zip(&widths.keep) {
        layers[layer_idx] = LayerDecision::Width(width);
    }
    let amplitude: f64 = removed.iter().map(|&layer_idx| damages[layer_idx].removed.sqrt()).sum();
    Ok(Spreading { layers, damage: widths.damage + amplitude * amplitude })
}

/// The windows of the sweep: those that make the curves, and the one whose predictions are compared.
struct SweepWindows {
    curve: Vec<usize>,
    damage: usize,
}

impl SweepWindows {
    fn new(n_fit: usize) -> Self {
        let n_curve = CURVE_WINDOWS.min(n_fit.saturating_sub(1)).max(1);
        // Evenly over the set, so that the text of every part is heard.
        let curve = (0..n_curve).map(|at| at * n_fit / n_curve).collect();
        Self { curve, damage: n_fit - 1 }
    }
}

fn sweep(job: &mut Job<'_>) -> Result<Vec<LayerDamage>, PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let (n_layers, hidden_size) = (source.config().n_layers(), source.config().hidden_size);
    let windows = SweepWindows::new(job.set.n_fit());
    let open = |name: &str| {
        Spill::open(&job.work.file(name), hidden_size).map_err(|error| job.io_error(name, error))
    };
    let spills = [open(SPILL_NAMES[0])?, open(SPILL_NAMES[1])?];
    let mut state =
        Sweep { windows, spills, layer_idx: 0, rows: vec![0.0; WINDOW_LEN * hidden_size], n_copies: 0 };
    let mut damages: Vec<LayerDamage> = Vec::with_capacity(n_layers);
    let mut fresh = false;
    for layer_idx in 0..n_layers {
        let record = format!("probe-{layer_idx:03}.done");
        let share = |n_done: usize| measured_share(n_done as f64 / n_layers as f64);
        state.layer_idx = layer_idx;
        if !fresh {
            if let Some(known) = job.work.read(&record).map_err(|error| job.io_error(&record, error))? {
                damages.push(known);
                state.n_copies += 2;
                job.resume_at(share(layer_idx + 1));
                continue;
            }
            fresh = true;
            if layer_idx == 0 {
                state.start(job)?;
            }
        }
        job.report(Stage::Measure, Some(layer_idx), share(layer_idx), None);
        let damage = state.layer(job, layer_idx)?;
        state.sync(job)?;
        job.work.write(&record, &damage).map_err(|error| job.io_error(&record, error))?;
        damages.push(damage);
        let n_curve = state.windows.curve.len();
        let layer = source.config().layers[layer_idx];
        job.count("measure", sweep_flops(job, &layer, state.n_copies + n_curve, n_curve));
        source.give_back_layer(layer_idx);
        release_free_heap();
    }
    state.layer_idx = n_layers;
    let kl = state.divergences(job)?;
    for (damage, pair) in damages.iter_mut().zip(kl.chunks_exact(2)) {
        damage.removed = pair[0].max(0.0);
        damage.narrowed = pair[1].max(0.0);
    }
    job.clock("measure", from);
    Ok(damages)
}

/// Files of the sweep, by parity of the layer that reads them: as with the streams, a layer reads one and writes the
/// other, so that a kill inside a layer leaves its input whole.
const SPILL_NAMES: [&str; 2] = ["spill-probe-0", "spill-probe-1"];

/// A sweep at work. Slots of its spill files, one window each: the curve windows, the untouched damage window,
/// then two copies for each layer passed.
struct Sweep {
    windows: SweepWindows,
    spills: [Spill; 2],
    /// The layer that is passed; after the last one, their number.
    layer_idx: usize,
    rows: Vec<f32>,
    n_copies: usize,
}

impl Sweep {
    fn untouched_slot(&self) -> usize {
        self.windows.curve.len()
    }

    fn copy_slot(&self, copy: usize) -> usize {
        self.untouched_slot() + 1 + copy
    }

    fn read(&mut self, job: &Job<'_>, slot: usize) -> Result<(), PruneError> {
        let parity = self.layer_idx % 2;
        let read = self.spills[parity].read(slot * WINDOW_LEN, &mut self.rows);
        read.map_err(|error| job.io_error(SPILL_NAMES[parity], error))
    }

    fn write(&self, job: &Job<'_>, slot: usize, rows: &[f32]) -> Result<(), PruneError> {
        let parity = (self.layer_idx + 1) % 2;
        let written = self.spills[parity].write(slot * WINDOW_LEN, rows);
        written.map_err(|error| job.io_error(SPILL_NAMES[parity], error))
    }

    /// Makes what the layer wrote survive a crash.
    fn sync(&self, job: &Job<'_>) -> Result<(), PruneError> {
        let parity = (self.layer_idx + 1) % 2;
        self.spills[parity].sync().map_err(|error| job.io_error(SPILL_NAMES[parity], error))
    }

    fn start(&mut self, job: &Job<'_>) -> Result<(), PruneError> {
        let windows: Vec<usize> = self.windows.curve.iter().copied().chain([self.windows.damage]).collect();
        for (slot, window_idx) in windows.into_iter().enumerate() {
            job.streams.read(Side::Teacher, 0, window_idx, &mut self.rows)?;
            let written = self.spills[0].write(slot * WINDOW_LEN, &self.rows);
            written.map_err(|error| job.io_error(SPILL_NAMES[0], error))?;
        }
        Ok(())
    }

    fn layer(&mut self, job: &Job<'_>, layer_idx: usize) -> Result<LayerDamage, PruneError> {
        let source = job.request.source.clone();
        let mut runner = LayerRunner::new(source.as_ref(), layer_idx, job.pool.clone())?;
        for copy in 0..self.n_copies {
            job.check_cancel()?;
            let slot = self.copy_slot(copy);
            self.read(job, slot)?;
            advance_layer(job, &runner, &mut self.rows)?;
            self.write(job, slot, &self.rows)?;
        }
        let (importance, mut stats) = self.curve_windows(job, layer_idx, &runner)?;
        let mut damage =
            LayerDamage { importance, errors: vec![0.0], reference: 0, narrowed: 0.0, removed: 0.0 };
        // The copy without this layer is the window as it comes in.
        self.read(job, self.untouched_slot())?;
        self.write(job, self.copy_slot(self.n_copies), &self.rows)?;
        advance(job, &runner, Sublayer::Attn, &mut self.rows)?;
        let mut narrowed = self.rows.clone();
        if source.config().layers[layer_idx].intermediate_size != 0 {
            // Neither the layer's buffers nor its pages are needed while its systems are solved.
            drop(runner);
            source.give_back_layer(layer_idx);
            let cut = cut_for_curve(job, layer_idx, &mut stats)?;
            drop(stats);
            runner = LayerRunner::new(source.as_ref(), layer_idx, job.pool.clone())?;
            let portion = job.rung.mlp_rows * source.config().hidden_size;
            for (mid, narrowed) in self.rows.chunks(portion).zip(narrowed.chunks_mut(portion)) {
                if let Some(inner) = runner.run_mlp_inner(mid)? {
                    add_product(job, inner.inner(), &cut, narrowed);
                }
            }
            damage.errors = cut.errors;
            damage.reference = cut.reference;
        }
        self.write(job, self.copy_slot(self.n_copies + 1), &narrowed)?;
        advance(job, &runner, Sublayer::Mlp, &mut self.rows)?;
        self.write(job, self.untouched_slot(), &self.rows)?;
        self.n_copies += 2;
        Ok(damage)
    }

    /// Moves the curve windows through the layer; returns its importance and the statistics of its MLP.
    fn curve_windows(
        &mut self,
        job: &Job<'_>,
        layer_idx: usize,
        runner: &LayerRunner,
    ) -> Result<(f64, LayerStats), PruneError> {
        let config = job.request.source.config();
        let width = config.layers[layer_idx].intermediate_size;
        let mut stats = LayerStats::new(width, config.hidden_size);
        stats.gram = Some(vec![0.0; width * width]);
        let mut importance = LayerImportance::default();
        for slot in 0..self.windows.curve.len() {
            job.check_cancel()?;
            self.read(job, slot)?;
            let before = self.rows.clone();
            advance(job, runner, Sublayer::Attn, &mut self.rows)?;
            collect(job, layer_idx, runner, &self.rows, None, &mut stats)?;
            advance(job, runner, Sublayer::Mlp, &mut self.rows)?;
            importance
                .add_window(&before, &self.rows, config.hidden_size)
                .map_err(|error| numeric(layer_idx, &error))?;
            self.write(job, slot, &self.rows)?;
        }
        settle_sums(job, &mut stats)?;
        Ok((importance.aggregated(), stats))
    }

    /// Divergence of every copy from the untouched window.
    fn divergences(&mut self, job: &Job<'_>) -> Result<Vec<f64>, PruneError> {
        /// Copies whose logits are taken together: the untouched ones are computed once for all of them.
        const TOGETHER: usize = 4;
        let head = Head::new(job.request.source.as_ref())?.giving_back(job.request.source.clone());
        let hidden_size = job.request.source.config().hidden_size;
        let tail = (WINDOW_LEN - DAMAGE_POSITIONS) * hidden_size;
        self.read(job, self.untouched_slot())?;
        let untouched = self.rows[tail..].to_vec();
        let mut kl = Vec::with_capacity(self.n_copies);
        let mut copy = 0;
        while copy < self.n_copies {
            job.check_cancel()?;
            let mut group = Vec::new();
            for at in copy..self.n_copies.min(copy + TOGETHER) {
                self.read(job, self.copy_slot(at))?;
                group.push(self.rows[tail..].to_vec());
            }
            let students: Vec<&[f32]> = group.iter().map(Vec::as_slice).collect();
            kl.extend(head.mean_kl(&job.pool, &untouched, &students)?);
            copy += group.len();
        }
        Ok(kl)
    }
}

/// A down projection cut to half its width, and the error of every narrower one.
struct CurveCut {
    errors: Vec<f64>,
    reference: usize,
    /// Neurons before.
    width: usize,
    kept: Vec<usize>,
    /// `[d, kept]`.
    weight: Vec<f32>,
}

fn cut_for_curve(job: &Job<'_>, layer_idx: usize, stats: &mut LayerStats) -> Result<CurveCut, PruneError> {
    let fail = |error| numeric(layer_idx, &error as &dyn std::error::Error);
    let down = down_rows(job, layer_idx)?;
    stats.set_own_target(down.view()).map_err(fail)?;
    let problem = fit_problem(stats, down.view()).map_err(fail)?;
    let keep = WidthGrid::NEURONS.floor.min(stats.n_in);
    let options = RemovalOptions { unit_len: 1, keep, step: NEURON_STEP };
    let quadratic = Quadratic::of_weights(&problem).map_err(fail)?;
    let mut go_on = |_: &crate::select::Round<'_>| job.flow();
    let Removal { kept, order, errors, .. } = remove_units(quadratic, &options, &mut go_on).map_err(fail)?;
    job.check_cancel()?;
    let reference = (stats.n_in / 2).min(order.len());
    let removal = Removal { kept, order, errors: Vec::new(), coefficients: Vec::new() };
    let kept = removal.kept_after(reference);
    let weight = refit(&problem, &kept).map_err(fail)?;
    Ok(CurveCut { errors, reference, width: stats.n_in, kept, weight })
}

/// `rows += inner[:, kept] weight'`.
fn add_product(job: &Job<'_>, inner: &[f32], cut: &CurveCut, rows: &mut [f32]) {
    let width = cut.width;
    let n = inner.len() / width;
    let n_kept = cut.kept.len();
    let mut columns = Vec::with_capacity(n * n_kept);
    for row in inner.chunks_exact(width) {
        columns.extend(cut.kept.iter().map(|&at| row[at]));
    }
    let n_out = rows.len() / n;
    gemm(
        &job.pool,
        GemmArgs {
            alpha: 1.0,
            a: MatRef::row_major(&columns, n, n_kept),
            b: MatRef::row_major(&cut.weight, n_out, n_kept).transposed(),
            beta: 1.0,
            c: MatMut::row_major(rows, n, n_out),
        },
    );
}
