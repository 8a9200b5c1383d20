//! How much arithmetic each stage does, so that a report can say how fast the machine was.
//!
//! Counted are multiplications and additions of the large products and factorisations, by their textbook numbers.

use crate::calibration::WINDOW_LEN;
use crate::depth_pass::{INFLUENCE_WINDOWS, LOSS_WINDOWS};
use crate::job::{Job, LayerReport};
use crate::layer_pass::LayerDecision;
use crate::methods::{DepthMethod, NEURON_STEP, Needs};
use crate::registry::{Method, Spread};
use crate::rounding::is_coarse;
use crate::stats::LayerStats;
use crate::sweep::{DAMAGE_POSITIONS, SweepWindows, TOGETHER, n_copies_of};
use secateur_model::LayerConfig;
use serde::{Deserialize, Serialize};

/// Tokens and arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    pub(crate) tokens: f64,
    pub(crate) flops: f64,
}

impl Work {
    pub(crate) fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.flops += other.flops;
    }
}

/// Speed of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRate {
    /// Tokens that passed through a layer, per second; 0 where no tokens do.
    pub tokens_per_s: f64,
    /// Thousand millions of floating point operations per second.
    pub gflop_per_s: f64,
}

impl StageRate {
    pub(crate) fn of(work: Work, seconds: f64) -> Self {
        let seconds = seconds.max(1e-9);
        Self { tokens_per_s: work.tokens / seconds, gflop_per_s: work.flops / seconds / 1e9 }
    }
}

/// Per token: projections, and scores and mixing over half a window on average.
fn attn_flops(job: &Job<'_>, layer: &LayerConfig) -> f64 {
    let config = job.request.source.config();
    let q_width = layer.num_attention_heads * config.head_dim;
    let kv_width = layer.num_key_value_heads * config.head_dim;
    let projections = 2 * config.hidden_size * (2 * q_width + 2 * kv_width);
    (projections + 2 * q_width * WINDOW_LEN) as f64
}

/// Per token.
fn mlp_flops(job: &Job<'_>, width: usize) -> f64 {
    (6 * job.request.source.config().hidden_size * width) as f64
}

/// One window through an attention.
pub(crate) fn attention_flops(job: &Job<'_>, layer: &LayerConfig) -> Work {
    Work { tokens: 0.0, flops: WINDOW_LEN as f64 * attn_flops(job, layer) }
}

/// The teacher's MLP, and the sums of the student's.
pub(crate) fn first_pass_flops(job: &Job<'_>, layer: &LayerConfig, method: Option<&Method>) -> Work {
    let (d, k) = (job.request.source.config().hidden_size as f64, layer.intermediate_size as f64);
    let tokens = (job.set.n_windows() * WINDOW_LEN) as f64;
    let fit_tokens = job.set.fit_tokens() as f64;
    let forward = mlp_flops(job, layer.intermediate_size);
    let collected = method.map_or(0.0, |method| 4.0 * d * k + collected_flops(method, d, k));
    Work { tokens, flops: tokens * forward + fit_tokens * collected }
}

/// An attention whose output projection's inputs are added up, and these sums.
pub(crate) fn attention_pass_flops(job: &Job<'_>, layer: &LayerConfig, method: &Method) -> Work {
    let config = job.request.source.config();
    let (d, k) = (config.hidden_size as f64, (layer.num_attention_heads * config.head_dim) as f64);
    let tokens = job.set.fit_tokens() as f64;
    Work { tokens, flops: tokens * (attn_flops(job, layer) + collected_flops(method, d, k)) }
}

/// The sums of what the matrices read that read normed hidden states.
pub(crate) fn normed_sums_flops(job: &Job<'_>, has_cross: bool) -> Work {
    let (d, tokens) = (job.request.source.config().hidden_size as f64, job.set.fit_tokens() as f64);
    let sums = d * (d + 1.0) + if has_cross { 2.0 * d * d } else { 0.0 };
    Work { tokens, flops: tokens * sums }
}

/// Per token: the sums of a projection `[d, k]`.
fn collected_flops(method: &Method, d: f64, k: f64) -> f64 {
    let gram = if Needs::Gram <= method.width.needs() { k * (k + 1.0) } else { 0.0 };
    let cross = if method.teacher.is_some() { 2.0 * k * d } else { 0.0 };
    gram + cross
}

pub(crate) fn second_pass_flops(job: &Job<'_>, layer: &LayerConfig, report: &LayerReport) -> Work {
    let tokens = (job.set.n_windows() * WINDOW_LEN) as f64;
    let per_token = if report.removed {
        attn_flops(job, layer) + mlp_flops(job, layer.intermediate_size)
    } else {
        mlp_flops(job, report.intermediate_size)
    };
    Work { tokens, flops: tokens * per_token }
}

/// Own output, factor, solve, inverse, removal down to `kept`, refit. Methods without a Gram matrix solve nothing.
pub(crate) fn solve_flops(stats: &LayerStats, kept: usize) -> Work {
    if stats.gram.is_none() && stats.stored.is_none() {
        return Work::default();
    }
    Work { tokens: 0.0, flops: system_flops(stats.n_in as f64, stats.n_out as f64, kept as f64) }
}

/// `s` of `k` inputs stay.
fn system_flops(k: f64, d: f64, s: f64) -> f64 {
    let solved = 2.0 * k * k * d + k * k * k + 2.0 * k * k * d + s * s * s / 3.0 + 2.0 * s * s * d;
    solved + removal_flops(k, d, s)
}

fn removal_flops(k: f64, d: f64, kept: f64) -> f64 {
    let step = NEURON_STEP as f64;
    let (mut left, mut flops) = (k, 0.0);
    while kept < left {
        left -= step;
        flops += 2.0 * step * left.max(0.0) * (left.max(0.0) + d);
    }
    flops
}

/// The logits of all copies, and those of the untouched window for each [`TOGETHER`] of them.
pub(crate) fn divergence_flops(job: &Job<'_>, n_copies: usize) -> Work {
    let config = job.request.source.config();
    let n_runs = (n_copies + n_copies.div_ceil(TOGETHER)) * DAMAGE_POSITIONS;
    Work { tokens: 0.0, flops: 2.0 * n_runs as f64 * (config.hidden_size * config.vocab_size) as f64 }
}

/// One layer of the damage sweep: `n_curve` windows pass and are added up, and `n_copies` copies of another one pass.
pub(crate) fn sweep_flops(job: &Job<'_>, layer: &LayerConfig, n_copies: usize, n_curve: usize) -> Work {
    let (d, k) = (job.request.source.config().hidden_size as f64, layer.intermediate_size as f64);
    let tokens = ((n_copies + n_curve) * WINDOW_LEN) as f64;
    let forward = tokens * forward_flops(job, layer);
    let collected = (n_curve * WINDOW_LEN) as f64 * (k * (k + 1.0) + 4.0 * d * k);
    Work { tokens, flops: forward + collected + sweep_system_flops(k, d) }
}

fn sweep_system_flops(k: f64, d: f64) -> f64 {
    let half = k / 2.0;
    4.0 * k * k * d + k * k * k + half * half * (half / 3.0 + 2.0 * d) + removal_flops(k, d, 64.0)
}

/// Per token: a whole layer.
fn forward_flops(job: &Job<'_>, layer: &LayerConfig) -> f64 {
    attn_flops(job, layer) + mlp_flops(job, layer.intermediate_size)
}

/// An operation of a system that is factored and solved takes about as long as this many of a product.
const SYSTEM_SLOWNESS: f64 = 5.0;
/// Operations that embedding one value is worth: it is decoded, and written to a file.
const EMBED_FLOPS: f64 = 200.0;

/// What embedding is expected to take, in operations at the pace of products; so are the weights below.
pub(crate) fn embed_weight(job: &Job<'_>) -> f64 {
    (job.set.n_windows() * WINDOW_LEN * job.request.source.config().hidden_size) as f64 * EMBED_FLOPS
}

/// What the steps of measuring are expected to take: the layers of a damage sweep, or the whole in one.
pub(crate) fn measure_weights(job: &Job<'_>, method: &Method) -> Vec<f64> {
    let config = job.request.source.config();
    let window: f64 = config.layers.iter().map(|layer| WINDOW_LEN as f64 * forward_flops(job, layer)).sum();
    match method.spread {
        Spread::Measured { .. } => {
            let n_curve = SweepWindows::new(job.set.n_fit()).n_curve();
            let mut n_copies = 0;
            let mut weights: Vec<f64> = Vec::with_capacity(config.layers.len());
            for (layer_idx, layer) in config.layers.iter().enumerate() {
                let systems = sweep_system_flops(layer.intermediate_size as f64, config.hidden_size as f64);
                let all = sweep_flops(job, layer, n_copies, n_curve).flops;
                weights.push(all + (SYSTEM_SLOWNESS - 1.0) * systems);
                n_copies += n_copies_of(layer_idx, config.n_layers());
            }
            if let Some(last) = weights.last_mut() {
                *last += divergence_flops(job, n_copies).flops;
            }
            weights
        }
        Spread::Pooled => vec![job.set.n_fit() as f64 * window],
        Spread::Depth(depth) => {
            let n_removed = job.request.ratio.get() * config.n_layers() as f64;
            // A layer under trial is followed by half of the layers on average.
            let n_trials =
                if depth == DepthMethod::Sleb { n_removed * config.n_layers() as f64 / 2.0 } else { 0.0 };
            vec![(INFLUENCE_WINDOWS as f64 + n_trials * LOSS_WINDOWS as f64) * window]
        }
        Spread::Uniform => Vec::new(),
    }
}

/// What each layer is expected to take when this is decided.
pub(crate) fn layer_weights(job: &Job<'_>, decisions: &[LayerDecision], method: &Method) -> Vec<f64> {
    let layers = &job.request.source.config().layers;
    // The layers before the first that changes are passed through and nothing else.
    let mut changes = job.request.dtype.is_some_and(is_coarse);
    let weight = |(decision, layer): (&LayerDecision, &LayerConfig)| {
        changes |= *decision != LayerDecision::whole(layer);
        layer_weight(job, layer, decision.width(), changes.then_some(method))
    };
    decisions.iter().zip(layers).map(weight).collect()
}

/// Three passes through the attention, one through the MLP as it was and one through the `width` neurons that are left of
/// it, and with a method that fits the sums and the systems; a layer that leaves is passed by the teacher alone.
fn layer_weight(job: &Job<'_>, layer: &LayerConfig, width: Option<usize>, method: Option<&Method>) -> f64 {
    let (d, k) = (job.request.source.config().hidden_size as f64, layer.intermediate_size as f64);
    let tokens = (job.set.n_windows() * WINDOW_LEN) as f64;
    let Some(width) = width else { return tokens * forward_flops(job, layer) };
    let mlp = mlp_flops(job, layer.intermediate_size) + mlp_flops(job, width);
    let mut weight = tokens * (3.0 * attn_flops(job, layer) + mlp);
    let Some(method) = method else { return weight };
    if !matches!(method.spread, Spread::Depth(_)) {
        weight += job.set.fit_tokens() as f64 * collected_flops(method, d, k);
        if Needs::Gram <= method.width.needs() {
            weight += SYSTEM_SLOWNESS * system_flops(k, d, width as f64);
        }
    }
    if method.teacher.is_some() {
        // Before the attention, and before the MLP.
        weight += 2.0 * normed_sums_flops(job, true).flops;
    }
    weight
}
