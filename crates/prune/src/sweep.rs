//! Measures on the base model what each cut would do to its predictions, in one sweep over the layers.
//!
//! At each layer the second-order removal gives the error curve of its MLP; then perturbed copies of a short token window
//! are started: one without the layer, one with its MLP cut to half. All copies move on together with the sweep, so that
//! each layer is in memory once. At the end the divergence of every copy from the untouched one is the measured damage of
//! that cut.
//!
//! Attention is not offered: what a head that looks far back is worth does not show on a window of this length. Two KV
//! groups of the reference model that looked cheap raised its perplexity at 2048 tokens by a fourth.
//!
//! A deep model is measured at [`MEASURED_LAYERS`] of its layers and what lies between is interpolated, so that time
//! grows with the number of layers and not with its square.

use crate::calibration::WINDOW_LEN;
use crate::comp::LayerImportance;
use crate::error::PruneError;
use crate::job::{Job, Shared, Stage};
use crate::layer_pass::{advance, advance_layer, collect};
use crate::methods::NEURON_STEP;
use crate::projection::{Projection, fit_problem, numeric, settle_sums};
use crate::refit::{Damping, refit};
use crate::select::{Quadratic, Removal, RemovalOptions, Round, remove_units};
use crate::speed::{divergence_flops, sweep_flops};
use crate::spill::Spill;
use crate::stats::LayerStats;
use crate::streams::Side;
use crate::widths::WidthGrid;
use secateur_engine::{Head, LayerRunner, Sublayer};
use secateur_tensor::kernels::{GemmArgs, MatMut, MatRef, gemm};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Windows whose tokens make the error curves.
const CURVE_WINDOWS: usize = 8;
/// Positions at the end of the damage window whose predictions are compared.
pub(crate) const DAMAGE_POSITIONS: usize = 256;
/// Layers, evenly spread, that are measured when there are more.
const MEASURED_LAYERS: usize = 32;
/// Copies whose logits are taken together: the untouched ones are computed once for all of them.
pub(crate) const TOGETHER: usize = 4;

/// Measured damage of narrowing one MLP.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CutDamage {
    /// `errors[i]`: squared output error when the i least useful neurons are gone and the others refitted.
    pub(crate) errors: Vec<f64>,
    /// Neurons removed when `measured` was measured.
    pub(crate) reference: usize,
    /// Divergence (nats per token) of the model with this MLP cut by `reference` neurons.
    pub(crate) measured: f64,
}

/// Measured damage of cutting one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerDamage {
    /// COMP's layer importance.
    pub(crate) importance: f64,
    pub(crate) mlp: CutDamage,
    /// Divergence of the model without this layer.
    pub(crate) removed: f64,
}

impl LayerDamage {
    /// What the copies of a layer stand for, in the order of their slots.
    fn values(&mut self) -> [&mut f64; COPIES] {
        [&mut self.removed, &mut self.mlp.measured]
    }
}

/// Copies that a measured layer starts: without it, and with its MLP narrowed.
const COPIES: usize = 2;

/// Copies that a layer starts.
pub(crate) fn n_copies_of(layer_idx: usize, n_layers: usize) -> usize {
    if is_measured(layer_idx, n_layers) { COPIES } else { 0 }
}

fn is_measured(layer_idx: usize, n_layers: usize) -> bool {
    let nth = |layer_idx: usize| layer_idx * (MEASURED_LAYERS - 1) / (n_layers - 1).max(1);
    n_layers <= MEASURED_LAYERS || layer_idx == 0 || nth(layer_idx - 1) != nth(layer_idx)
}

/// Geometric interpolation of `values` where `known` is false, between the nearest known neighbours.
fn interpolate(values: &mut [f64], known: &[bool]) {
    let points: Vec<usize> = (0..values.len()).filter(|&at| known[at]).collect();
    for pair in points.windows(2) {
        let (from, to) = (values[pair[0]].max(f64::MIN_POSITIVE), values[pair[1]].max(f64::MIN_POSITIVE));
        let n_steps = (pair[1] - pair[0]) as f64;
        for (nth, value) in values[pair[0] + 1..pair[1]].iter_mut().enumerate() {
            let share = (nth + 1) as f64 / n_steps;
            *value = (from.ln() * (1.0 - share) + to.ln() * share).exp();
        }
    }
}

/// The windows of the sweep: those that make the curves, and the one whose predictions are compared.
pub(crate) struct SweepWindows {
    curve: Vec<usize>,
    damage: usize,
}

impl SweepWindows {
    pub(crate) fn new(n_fit: usize) -> Self {
        let n_curve = CURVE_WINDOWS.min(n_fit.saturating_sub(1)).max(1);
        // Evenly over the set, so that the text of every part is heard.
        let curve = (0..n_curve).map(|at| at * n_fit / n_curve).collect();
        Self { curve, damage: n_fit - 1 }
    }

    pub(crate) fn n_curve(&self) -> usize {
        self.curve.len()
    }
}

/// Measures every layer, or takes up what an earlier run measured. `damping`: of the refits behind the curves.
pub(crate) fn sweep(job: &mut Job<'_>, damping: Damping) -> Result<Vec<LayerDamage>, PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let (n_layers, hidden_size) = (source.config().n_layers(), source.config().hidden_size);
    let windows = SweepWindows::new(job.set.n_fit());
    let open = |name: &str| {
        Spill::open(&job.work.file(name), hidden_size).map_err(|error| job.io_error(name, error))
    };
    let spills = [open(SPILL_NAMES[0])?, open(SPILL_NAMES[1])?];
    let rows = vec![0.0; WINDOW_LEN * hidden_size];
    let mut state = Sweep { windows, damping, spills, layer_idx: 0, rows, n_copies: 0 };
    let mut damages: Vec<LayerDamage> = Vec::with_capacity(n_layers);
    let mut fresh = false;
    for layer_idx in 0..n_layers {
        let record = format!("probe-{layer_idx:03}.done");
        state.layer_idx = layer_idx;
        if !fresh {
            if let Some(known) = job.work.read(&record).map_err(|error| job.io_error(&record, error))? {
                damages.push(known);
                state.n_copies += n_copies_of(layer_idx, n_layers);
                continue;
            }
            fresh = true;
            if layer_idx == 0 {
                state.start(job)?;
            }
        }
        job.report(Stage::Measure, Some(layer_idx), job.course.swept(layer_idx), None);
        let damage = state.layer(job, layer_idx)?;
        state.sync(job)?;
        job.work.write(&record, &damage).map_err(|error| job.io_error(&record, error))?;
        damages.push(damage);
        let layer = source.config().layers[layer_idx];
        job.count("measure", sweep_flops(job, &layer, state.n_copies, state.windows.n_curve()));
        source.give_back_layer(layer_idx);
        job.release_buffers();
    }
    state.layer_idx = n_layers;
    let kl = state.divergences(job)?;
    job.count("measure", divergence_flops(job, state.n_copies));
    let known: Vec<bool> = (0..n_layers).map(|layer_idx| is_measured(layer_idx, n_layers)).collect();
    let measured = damages.iter_mut().zip(&known).filter(|(_, known)| **known).map(|(damage, _)| damage);
    for (damage, measured) in measured.zip(kl.chunks_exact(COPIES)) {
        damage.values().into_iter().zip(measured).for_each(|(value, kl)| *value = kl.max(0.0));
    }
    for copy in 0..COPIES {
        let mut values: Vec<f64> = damages.iter_mut().map(|damage| *damage.values()[copy]).collect();
        interpolate(&mut values, &known);
        damages.iter_mut().zip(values).for_each(|(damage, value)| *damage.values()[copy] = value);
    }
    job.clock("measure", from);
    Ok(damages)
}

/// Files of the sweep, by parity of the layer that reads them: as with the streams, a layer reads one and writes the
/// other, so that a kill inside a layer leaves its input whole.
const SPILL_NAMES: [&str; 2] = ["spill-probe-0", "spill-probe-1"];

/// A sweep at work. Slots of its spill files, one window each: the curve windows, the untouched damage window,
/// then [`COPIES`] for each measured layer passed.
struct Sweep {
    windows: SweepWindows,
    damping: Damping,
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

    /// Slots of the copies that the layer that is passed starts: without it, narrowed.
    fn new_slots(&self) -> [usize; COPIES] {
        [0, 1].map(|nth| self.copy_slot(self.n_copies + nth))
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
        let runner = job.runner(source.as_ref(), layer_idx)?;
        for copy in 0..self.n_copies {
            job.check_cancel()?;
            let slot = self.copy_slot(copy);
            self.read(job, slot)?;
            advance_layer(job, &runner, &mut self.rows)?;
            self.write(job, slot, &self.rows)?;
        }
        let (importance, sums) = self.curve_windows(job, layer_idx, &runner)?;
        // Neither the layer's buffers nor its pages are needed while its systems are solved.
        drop(runner);
        job.release_buffers();
        source.give_back_layer(layer_idx);
        let config = source.config();
        let cut = cut_for_curve(job, Projection::of_mlp(config, layer_idx), sums, self.damping)?;
        let runner = job.runner(source.as_ref(), layer_idx)?;
        self.read(job, self.untouched_slot())?;
        let [removed, narrowed] = self.new_slots();
        let n_started = n_copies_of(layer_idx, config.n_layers());
        if n_started != 0 {
            // The copy without this layer is the window as it comes in.
            self.write(job, removed, &self.rows)?;
        }
        advance(job, &runner, Sublayer::Attn, &mut self.rows)?;
        if n_started != 0 {
            self.write(job, narrowed, &self.narrowed(job, &runner, &cut)?)?;
        }
        advance(job, &runner, Sublayer::Mlp, &mut self.rows)?;
        self.write(job, self.untouched_slot(), &self.rows)?;
        self.n_copies += n_started;
        Ok(LayerDamage { importance: importance.aggregated(), mlp: cut.damage, removed: 0.0 })
    }

    /// What the window, after the layer's attention, is after its narrowed MLP.
    fn narrowed(&self, job: &Job<'_>, runner: &LayerRunner, cut: &CurveCut) -> Result<Vec<f32>, PruneError> {
        let mut rows = self.rows.clone();
        let portion = job.rung.mlp_rows * job.request.source.config().hidden_size;
        for (mid, rows) in self.rows.chunks(portion).zip(rows.chunks_mut(portion)) {
            if let Some(inner) = runner.run_mlp_inner(mid)? {
                add_product(job, inner.inner(), cut, rows);
            }
        }
        Ok(rows)
    }

    /// Moves the curve windows through the layer; returns its importance and the sums of its MLP.
    fn curve_windows(
        &mut self,
        job: &Job<'_>,
        layer_idx: usize,
        runner: &LayerRunner,
    ) -> Result<(LayerImportance, LayerStats), PruneError> {
        let config = job.request.source.config();
        let projection = Projection::of_mlp(config, layer_idx);
        let mut importance = LayerImportance::default();
        let mut sums = LayerStats {
            gram: Some(vec![0.0; projection.n_in * projection.n_in]),
            ..LayerStats::new(projection.n_in, projection.n_out)
        };
        for slot in 0..self.windows.curve.len() {
            job.check_cancel()?;
            self.read(job, slot)?;
            let before = self.rows.clone();
            advance(job, runner, Sublayer::Attn, &mut self.rows)?;
            collect(job, layer_idx, runner, &self.rows, None, &mut sums)?;
            advance(job, runner, Sublayer::Mlp, &mut self.rows)?;
            importance
                .add_window(&before, &self.rows, config.hidden_size)
                .map_err(|error| numeric(layer_idx, &error))?;
            self.write(job, slot, &self.rows)?;
        }
        Ok((importance, sums))
    }

    /// Divergence of every copy from the untouched window.
    fn divergences(&mut self, job: &Job<'_>) -> Result<Vec<f64>, PruneError> {
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
            let students: Vec<(&Head, &[f32])> = group.iter().map(|rows| (&head, rows.as_slice())).collect();
            kl.extend(head.mean_kl(&job.pool, &untouched, &students)?);
            copy += group.len();
        }
        Ok(kl)
    }
}

/// An MLP cut to half of its neurons, and the error of every narrower one.
#[derive(Default)]
struct CurveCut {
    damage: CutDamage,
    /// Neurons that stay.
    kept: Vec<usize>,
    /// Neurons before.
    n_in: usize,
    /// `[d, kept]`.
    weight: Vec<f32>,
}

/// Removes neurons down to the narrowest width, with the others refitted to the layer's own output.
fn cut_for_curve(
    job: &Job<'_>,
    projection: Projection,
    mut stats: LayerStats,
    damping: Damping,
) -> Result<CurveCut, PruneError> {
    if projection.n_in == 0 {
        return Ok(CurveCut {
            damage: CutDamage { errors: vec![0.0], ..CutDamage::default() },
            ..CurveCut::default()
        });
    }
    settle_sums(job, &mut stats)?;
    let shared = job.shared();
    shared.solve(projection.n_in, || cut_settled(shared, projection, &mut stats, damping))
}

/// As [`cut_for_curve`], with sums that are settled.
fn cut_settled(
    job: Shared<'_>,
    projection: Projection,
    stats: &mut LayerStats,
    damping: Damping,
) -> Result<CurveCut, PruneError> {
    let fail = |error| numeric(projection.layer_idx, &error as &dyn std::error::Error);
    let rows = projection.rows(job)?;
    stats.set_own_target(rows.view()).map_err(fail)?;
    let problem = fit_problem(stats, rows.view(), damping).map_err(fail)?;
    let n_neurons = projection.n_in;
    let options =
        RemovalOptions { unit_len: 1, keep: WidthGrid::NEURONS.floor.min(n_neurons), step: NEURON_STEP };
    let quadratic = Quadratic::of_weights(&problem).map_err(fail)?;
    let mut go_on = |_: &Round<'_>| job.flow();
    let Removal { kept, order, errors, .. } = remove_units(quadratic, &options, &mut go_on).map_err(fail)?;
    job.check_cancel()?;
    let reference = (n_neurons / 2).min(order.len());
    let removal = Removal { kept, order, errors: Vec::new(), coefficients: Vec::new() };
    let kept = removal.kept_after(reference);
    let weight = refit(&problem, &kept).map_err(fail)?;
    Ok(CurveCut {
        damage: CutDamage { errors, reference, measured: 0.0 },
        kept,
        n_in: projection.n_in,
        weight,
    })
}

/// `rows += inner[:, kept] weight'`.
fn add_product(job: &Job<'_>, inner: &[f32], cut: &CurveCut, rows: &mut [f32]) {
    let width = cut.n_in;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_models_are_measured_at_a_bounded_number_of_layers_with_both_ends() {
        for n_layers in [1, 2, 30, 32, 33, 60, 64, 126, 512] {
            let known: Vec<bool> = (0..n_layers).map(|layer_idx| is_measured(layer_idx, n_layers)).collect();
            let n_known = known.iter().filter(|known| **known).count();
            assert_eq!(n_known, n_layers.min(MEASURED_LAYERS), "{n_layers} layers");
            assert!(known[0] && known[n_layers - 1], "{n_layers} layers");
        }
    }

    #[test]
    fn what_lies_between_is_interpolated_geometrically() {
        let mut values = [1.0, 0.0, 4.0, 0.0, 0.0, 0.5];
        interpolate(&mut values, &[true, false, true, false, false, true]);
        let want = [1.0, 2.0, 4.0, 2.0, 1.0, 0.5];
        assert!(values.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{values:?}");
    }
}
