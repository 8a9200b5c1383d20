//! Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), both layouts and Llama-3 scaling.

use secateur_model::{ModelConfig, RopeLayout, RopeScaling};
use std::f64::consts::PI;

/// Frequencies of a model; turns queries and keys in place.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    layout: RopeLayout,
    head_dim: usize,
    /// Angle per position of each pair: `[head_dim / 2]`.
    inv_freq: Vec<f64>,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let theta = f64::from(config.rope_theta);
        let mut inv_freq: Vec<f64> =
            (0..half).map(|pair| theta.powf(-2.0 * pair as f64 / config.head_dim as f64)).collect();
        match &config.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                inv_freq.iter_mut().for_each(|freq| *freq /= f64::from(*factor));
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let bounds = Llama3Bounds {
                    factor: f64::from(*factor),
                    low: f64::from(*low_freq_factor),
                    high: f64::from(*high_freq_factor),
                    original_len: f64::from(*original_max_position_embeddings),
                };
                inv_freq.iter_mut().for_each(|freq| *freq = bounds.scale(*freq));
            }
            RopeScaling::Factors(factors) => {
                for (freq, factor) in inv_freq.iter_mut().zip(factors) {
                    *freq /= f64::from(*factor);
                }
            }
        }
        Self { layout: config.rope_layout, head_dim: config.head_dim, inv_freq }
    }

    /// Writes cosines and sines of `position` to `table`: `[head_dim]`, cosines first.
    fn fill(&self, position: usize, table: &mut [f32]) {
        let (cos, sin) = table.split_at_mut(self.head_dim / 2);
        for ((cos, sin), freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let angle = position as f64 * freq;
            *cos = angle.cos() as f32;
            *sin = angle.sin() as f32;
        }
    }

    /// Turns `queries` `[n, q_width]` and `keys` `[n, kv_width]` for positions `first..first + n`.
    /// `table` is a buffer of `head_dim` values.
    pub(crate) fn apply(
        &self,
        first: usize,
        n: usize,
        queries: &mut [f32],
        keys: &mut [f32],
        table: &mut [f32],
    ) {
        let (q_width, kv_width) = (queries.len() / n, keys.len() / n);
        for row in 0..n {
            self.fill(first + row, table);
            let (cos, sin) = table.split_at(self.head_dim / 2);
            let q_row = &mut queries[row * q_width..(row + 1) * q_width];
            let k_row = &mut keys[row * kv_width..(row + 1) * kv_width];
            for head in q_row.chunks_exact_mut(self.head_dim).chain(k_row.chunks_exact_mut(self.head_dim)) {
                match self.layout {
                    RopeLayout::Interleaved => turn_pairs(head, cos, sin),
                    RopeLayout::Halves => turn_halves(head, cos, sin),
                }
            }
        }
    }
}

fn turn_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * cos - b * sin;
        pair[1] = a * sin + b * cos;
    }
}

fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (old_a, old_b) = (*a, *b);
        *a = old_a * cos - old_b * sin;
        *b = old_a * sin + old_b * cos;
    }
}

struct Llama3Bounds {
    factor: f64,
    low: f64,
    high: f64,
    original_len: f64,
}

impl Llama3Bounds {
    /// The rule of Llama 3.1: long waves are stretched, short ones kept, those between blended.
    fn scale(&self, freq: f64) -> f64 {
        let wavelength = 2.0 * PI / freq;
        if wavelength < self.original_len / self.high {
            return freq;
        }
        if self.original_len / self.low < wavelength {
            return freq / self.factor;
        }
        let smooth = (self.original_len / wavelength - self.low) / (self.high - self.low);
        (1.0 - smooth) * freq / self.factor + smooth * freq
    }
}
