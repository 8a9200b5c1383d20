//! Decides what each layer loses: evenly, or from what each cut does to the base model's predictions
//! ([`crate::sweep`]).

use crate::depth_pass::decide_depth;
use crate::error::PruneError;
use crate::job::{Job, PruneRequest};
use crate::layer_pass::LayerDecision;
use crate::pooled_pass::decide_pooled;
use crate::refit::Damping;
use crate::registry::{Method, Spread};
use crate::sweep::{CutDamage, LayerDamage, sweep};
use crate::widths::{DamageCurve, Stack, WidthGrid, allocate, uniform};
use secateur_model::{LayerConfig, ModelConfig, PlanPolicy, PruneRatio};

const RECORD: &str = "probe.json";

/// What was decided.
pub(crate) struct Decisions {
    pub(crate) layers: Vec<LayerDecision>,
    pub(crate) importance: Vec<f64>,
}

/// Decides layer by layer.
pub(crate) fn decide(job: &mut Job<'_>, method: &Method) -> Result<Decisions, PruneError> {
    if job.request.ratio == PruneRatio::ZERO {
        let layers = job.request.source.config().layers.iter().map(LayerDecision::whole).collect();
        return Ok(Decisions { layers, importance: Vec::new() });
    }
    let gamma = match method.spread {
        Spread::Uniform => return Ok(Decisions { layers: even(job.request)?, importance: Vec::new() }),
        Spread::Depth(depth) => return decide_depth(job, depth),
        Spread::Pooled if job.request.policy == PlanPolicy::Compatible => {
            return Ok(Decisions { layers: even(job.request)?, importance: Vec::new() });
        }
        Spread::Pooled => return decide_pooled(job, method),
        Spread::Measured { gamma } => gamma,
    };
    let damping = method.width.damping_by_rows().unwrap_or(Damping::DEFAULT);
    let damages = job.remembered(RECORD, |job| sweep(job, damping))?;
    let layers = match job.request.policy {
        PlanPolicy::Compatible => even(job.request)?,
        PlanPolicy::Quality => spread(job, &damages, gamma)?,
    };
    Ok(Decisions { layers, importance: damages.iter().map(|damage| damage.importance).collect() })
}

pub(crate) fn to_remove(request: &PruneRequest) -> u64 {
    let config = request.source.config();
    (request.ratio.get() * config.all_layer_params() as f64).round() as u64
}

/// Parameters of one neuron.
pub(crate) fn neuron_params(config: &ModelConfig) -> u64 {
    3 * config.hidden_size as u64
}

pub(crate) fn ratio_error(request: &PruneRequest, error: &dyn std::error::Error) -> PruneError {
    PruneError::Ratio { asked: request.ratio, reason: error.to_string() }
}

/// The same width everywhere; with [`PlanPolicy::Quality`] some layers, evenly spread, keep one step more so
/// that the share removed is met as closely as steps allow.
pub(crate) fn even(request: &PruneRequest) -> Result<Vec<LayerDecision>, PruneError> {
    let config = request.source.config();
    let widest = config.layers.iter().map(|layer| layer.intermediate_size).max().unwrap_or(0);
    let n_layers = config.n_layers();
    let (grid, remove) = (WidthGrid::NEURONS, to_remove(request));
    let width = match request.policy {
        PlanPolicy::Compatible => {
            let widths = uniform(widest, neuron_params(config), n_layers, grid, remove);
            widths.map_err(|error| ratio_error(request, &error))?.keep
        }
        PlanPolicy::Quality => {
            let per_step = grid.snap as u64 * neuron_params(config);
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
        return Err(PruneError::Ratio { asked: request.ratio, reason });
    }
    let kept = |(&width, layer): (&usize, &LayerConfig)| LayerDecision::Keep {
        width: width.min(layer.intermediate_size),
        kv_groups: layer.num_key_value_heads,
    };
    Ok(width.iter().zip(&config.layers).map(kept).collect())
}

/// Layers and widths by measured damage.
///
/// COMP's order: the least important layers are tried first, and each leaves only when that is cheaper than narrowing MLPs
/// for the same number of parameters. The amplitudes of what leaves whole add up (it all disturbs the same residual
/// stream), so the divergences add as `(sum of square roots)^2`.
fn spread(job: &mut Job<'_>, damages: &[LayerDamage], gamma: f64) -> Result<Vec<LayerDecision>, PruneError> {
    let config = job.request.source.config().clone();
    let importance = |layer_idx: usize| damages[layer_idx].importance;
    let mut order: Vec<usize> = (0..damages.len()).collect();
    order.sort_by(|&a, &b| importance(a).total_cmp(&importance(b)).then(a.cmp(&b)));
    let mut leaving = Vec::new();
    let mut best = without(job, &config, (damages, gamma), &leaving)?;
    for candidate in order {
        let mut tried = leaving.clone();
        tried.push(candidate);
        match without(job, &config, (damages, gamma), &tried) {
            Ok(next) if next.damage < best.damage => (leaving, best) = (tried, next),
            // Not cheaper, or more than was to be removed: later candidates matter more.
            _ => break,
        }
    }
    if !leaving.is_empty() {
        leaving.sort_unstable();
        job.notes.push(format!("layers {leaving:?} leave whole: cheaper than narrowing the others"));
    }
    Ok(best.layers)
}

/// Parameters of one KV group of a layer.
pub(crate) fn group_params(config: &ModelConfig, layer: &LayerConfig) -> u64 {
    let attention = config.layer_params(&LayerConfig { intermediate_size: 0, ..*layer });
    attention.checked_div(layer.num_key_value_heads as u64).unwrap_or(0)
}

/// A way to spread the cut, and what it is predicted to cost.
struct Spreading {
    layers: Vec<LayerDecision>,
    damage: f64,
}

/// The cheapest widths when the layers `leaving` leave.
fn without(
    job: &Job<'_>,
    config: &ModelConfig,
    (damages, gamma): (&[LayerDamage], f64),
    leaving: &[usize],
) -> Result<Spreading, PruneError> {
    let beyond = |error: &dyn std::error::Error| ratio_error(job.request, error);
    let (mut freed, mut amplitude) = (0, 0.0);
    let mut kept = Vec::new();
    let mut stacks = Vec::new();
    for (layer_idx, (layer, damage)) in config.layers.iter().zip(damages).enumerate() {
        if leaving.contains(&layer_idx) {
            freed += config.layer_params(layer);
            amplitude += damage.removed.sqrt();
            continue;
        }
        let CutDamage { errors, reference, measured } = &damage.mlp;
        let curve = DamageCurve { errors, reference: *reference, measured: *measured, gamma };
        let stack = Stack::new(layer.intermediate_size, neuron_params(config), WidthGrid::NEURONS, &curve);
        stacks.push(stack.map_err(|error| beyond(&error))?);
        kept.push(layer_idx);
    }
    let remove = to_remove(job.request).checked_sub(freed).ok_or_else(|| PruneError::Ratio {
        asked: job.request.ratio,
        reason: "what leaves whole is more than was to be removed".to_owned(),
    })?;
    let widths = allocate(&stacks, remove, config.all_layer_params()).map_err(|error| beyond(&error))?;
    let mut layers = vec![LayerDecision::Remove; damages.len()];
    for (&layer_idx, &width) in kept.iter().zip(&widths.keep) {
        let kv_groups = config.layers[layer_idx].num_key_value_heads;
        layers[layer_idx] = LayerDecision::Keep { width, kv_groups };
    }
    Ok(Spreading { layers, damage: widths.damage + amplitude * amplitude })
}
