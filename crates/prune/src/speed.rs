//! How much arithmetic each stage does, so that a report can say how fast the machine was.
//!
//! Counted are multiplications and additions of the large products and factorisations, by their textbook numbers.

use crate::calibration::WINDOW_LEN;
use crate::job::{Job, LayerReport};
use crate::methods::{NEURON_STEP, Needs};
use crate::registry::Method;
use crate::stats::LayerStats;
use crate::sweep::TOGETHER;
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
    let (k, d, s) = (stats.n_in as f64, stats.n_out as f64, kept as f64);
    let mut flops = 2.0 * k * k * d + k * k * k + 2.0 * k * k * d + s * s * s / 3.0 + 2.0 * s * s * d;
    flops += removal_flops(k, d, s);
    Work { tokens: 0.0, flops }
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
pub(crate) fn divergence_flops(job: &Job<'_>, n_copies: usize, positions: usize) -> Work {
    let config = job.request.source.config();
    let n_runs = (n_copies + n_copies.div_ceil(TOGETHER)) * positions;
    Work { tokens: 0.0, flops: 2.0 * n_runs as f64 * (config.hidden_size * config.vocab_size) as f64 }
}

/// One layer of the damage sweep: `n_windows` windows pass, `n_curve` of them are added up.
pub(crate) fn sweep_flops(job: &Job<'_>, layer: &LayerConfig, n_windows: usize, n_curve: usize) -> Work {
    let (d, k) = (job.request.source.config().hidden_size as f64, layer.intermediate_size as f64);
    let tokens = (n_windows * WINDOW_LEN) as f64;
    let forward = tokens * (attn_flops(job, layer) + mlp_flops(job, layer.intermediate_size));
    let collected = (n_curve * WINDOW_LEN) as f64 * (k * (k + 1.0) + 4.0 * d * k);
    let half = k / 2.0;
    let solved = 4.0 * k * k * d + k * k * k + half * half * (half / 3.0 + 2.0 * d);
    Work { tokens, flops: forward + collected + solved + removal_flops(k, d, 64.0) }
}
