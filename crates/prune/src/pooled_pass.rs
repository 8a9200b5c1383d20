//! One threshold over the scores of all neurons and KV groups, on statistics of the dense model: what FLAP asks for.

use crate::calibration::WINDOW_LEN;
use crate::error::PruneError;
use crate::job::{Job, Stage};
use crate::layer_pass::{LayerDecision, advance, collect};
use crate::measure::{Decisions, group_params, neuron_params, ratio_error, to_remove};
use crate::methods::{Linear, PooledLayer, pool_units};
use crate::projection::{Projection, accumulate, numeric};
use crate::registry::Method;
use crate::stats::LayerStats;
use crate::streams::Side;
use crate::widths::WidthGrid;
use secateur_engine::Sublayer;
use std::time::Instant;

const RECORD: &str = "probe-pooled.json";

/// Scores of one layer's units.
type LayerScores = [Vec<f64>; 2];

/// Decides how many neurons and KV groups each layer keeps. Widths are rounded to what storage formats like.
pub(crate) fn decide_pooled(job: &mut Job<'_>, method: &Method) -> Result<Decisions, PruneError> {
    let scores = job.remembered(RECORD, |job| scores(job, method))?;
    let config = job.request.source.config();
    let mut pool = Vec::new();
    for (layer, [groups, neurons]) in config.layers.iter().zip(scores) {
        pool.push(PooledLayer { scores: groups, unit_params: group_params(config, layer), floor: 1 });
        let floor = WidthGrid::NEURONS.floor;
        pool.push(PooledLayer { scores: neurons, unit_params: neuron_params(config), floor });
    }
    let kept =
        pool_units(&pool, to_remove(job.request)).map_err(|error| ratio_error(job.request, &error))?.kept;
    let snap = WidthGrid::NEURONS.snap;
    let keep = |(kept, layer): (&[Vec<usize>], &secateur_model::LayerConfig)| LayerDecision::Keep {
        kv_groups: kept[0].len(),
        width: ((kept[1].len() + snap / 2) / snap * snap).min(layer.intermediate_size),
    };
    let layers = kept.chunks_exact(2).zip(&config.layers).map(keep).collect();
    Ok(Decisions { layers, importance: Vec::new() })
}

/// Scores of all units of the base model. Window after window through all layers: nothing but one window and the sums
/// of squares of every projection are held, and mapped layers are read again.
fn scores(job: &mut Job<'_>, method: &Method) -> Result<Vec<LayerScores>, PruneError> {
    let from = Instant::now();
    let source = job.request.source.clone();
    let config = source.config();
    let projections =
        |layer_idx| [Projection::of_attention(config, layer_idx), Projection::of_mlp(config, layer_idx)];
    let mut sums: Vec<[LayerStats; 2]> =
        (0..config.n_layers()).map(|layer_idx| projections(layer_idx).map(|it| it.stats(method))).collect();
    let mut rows = vec![0.0; WINDOW_LEN * config.hidden_size];
    let n_windows = job.set.n_fit();
    for window_idx in 0..n_windows {
        job.report(Stage::Measure, None, job.course.measured(window_idx as f64 / n_windows as f64), None);
        job.streams.read(Side::Teacher, 0, window_idx, &mut rows)?;
        for (layer_idx, [attention, mlp]) in sums.iter_mut().enumerate() {
            job.check_cancel()?;
            let runner = job.runner(source.as_ref(), layer_idx)?;
            if let Some(run) = runner.run(Sublayer::Attn, &rows)? {
                accumulate(job, layer_idx, run.inner(), None, attention)?;
                rows.copy_from_slice(run.output());
            }
            collect(job, layer_idx, &runner, &rows, None, mlp)?;
            advance(job, &runner, Sublayer::Mlp, &mut rows)?;
            source.give_back_layer(layer_idx);
        }
    }
    let mut scores = Vec::with_capacity(sums.len());
    for (layer_idx, stats) in sums.iter().enumerate() {
        let mut layer = LayerScores::default();
        for ((projection, stats), scores) in projections(layer_idx).into_iter().zip(stats).zip(&mut layer) {
            if projection.n_in == 0 {
                continue;
            }
            let weight = source.require(projection.id())?.to_f32();
            let linear = Linear::new(&weight, projection.n_out, projection.n_in, projection.unit_len);
            let found = linear.and_then(|linear| method.width.scores(&linear, stats));
            *scores = found.map_err(|error| numeric(layer_idx, &error))?;
        }
        source.give_back_layer(layer_idx);
        scores.push(layer);
    }
    job.clock("measure", from);
    Ok(scores)
}
