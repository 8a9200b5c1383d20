//! Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), both layouts and Llama-3 scaling.

use secateur_model::{ModelConfig, RopeLayout, RopeScaling};
use secateur_tensor::kernels::{RotaryPairs, RotaryTable};
use std::f64::consts::PI;

/// Frequencies of a model.
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

    /// Which values of a head are turned together.
    pub(crate) fn pairs(&self) -> RotaryPairs {
        match self.layout {
            RopeLayout::Interleaved => RotaryPairs::Neighbours,
            RopeLayout::Halves => RotaryPairs::Halves,
        }
    }

    /// Writes the angles of `position` to `table`: `[2, head_dim]`, as [`RotaryTable`] tells.
    fn fill(&self, position: usize, table: &mut [f32]) {
        let (cos, sin) = table.split_at_mut(self.head_dim);
        for (pair, freq) in self.inv_freq.iter().enumerate() {
            let angle = position as f64 * freq;
            let (first, second) = match self.layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::Halves => (pair, pair + self.head_dim / 2),
            };
            (cos[first], cos[second]) = (angle.cos() as f32, angle.cos() as f32);
            (sin[first], sin[second]) = (-angle.sin() as f32, angle.sin() as f32);
        }
    }
}

/// The angles of the tokens of a step, computed once for all layers.
#[derive(Debug, Default)]
pub(crate) struct RopeAngles {
    first: usize,
    n_tokens: usize,
    values: Vec<f32>,
}

impl RopeAngles {
    /// The angles of positions `first..first + n_tokens`. All callers of one value share one [`Rope`].
    pub(crate) fn at(&mut self, rope: &Rope, first: usize, n_tokens: usize) -> RotaryTable<'_> {
        let (head_dim, len) = (rope.head_dim, n_tokens * 2 * rope.head_dim);
        if (self.first, self.n_tokens) != (first, n_tokens) {
            if self.values.len() < len {
                self.values.resize(len, 0.0);
            }
            for (nth, table) in self.values[..len].chunks_exact_mut(2 * head_dim).enumerate() {
                rope.fill(first + nth, table);
            }
            (self.first, self.n_tokens) = (first, n_tokens);
        }
        RotaryTable { pairs: rope.pairs(), head_dim, values: &self.values[..len] }
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
