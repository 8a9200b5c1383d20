//! Layer importance from hidden states before and after a layer.

use crate::numeric::{NumericError, check_len};

/// Sums over tokens for one layer; feed it windows, then ask. 48 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerImportance {
    n_tokens: u64,
    cosines: f64,
    dot: f64,
    input_energy: f64,
    output_energy: f64,
    input_length: f64,
    output_length: f64,
}

impl LayerImportance {
    /// Adds hidden states before and after the layer, both `[n, hidden_size]`.
    /// # Errors
    /// [`NumericError::Shape`] when they are not whole rows of the same number.
    pub fn add_window(
        &mut self,
        input: &[f32],
        output: &[f32],
        hidden_size: usize,
    ) -> Result<(), NumericError> {
        let n = input.len().checked_div(hidden_size).unwrap_or(0);
        check_len("hidden states before", input.len(), n, hidden_size)?;
        check_len("hidden states after", output.len(), n, hidden_size)?;
        for (x, y) in input.chunks_exact(hidden_size.max(1)).zip(output.chunks_exact(hidden_size.max(1))) {
            let (mut dot, mut x_sq, mut y_sq) = (0.0f64, 0.0f64, 0.0f64);
            for (&x, &y) in x.iter().zip(y) {
                let (x, y) = (f64::from(x), f64::from(y));
                dot += x * y;
                x_sq += x * x;
                y_sq += y * y;
            }
            let length = (x_sq * y_sq).sqrt();
            // A token that is zero before and after went through unchanged; zero on one side only is a full turn.
            self.cosines += match (length == 0.0, x_sq == y_sq) {
                (false, _) => dot / length,
                (true, unchanged) => f64::from(u8::from(unchanged)),
            };
            self.dot += dot;
            self.input_energy += x_sq;
            self.output_energy += y_sq;
            self.input_length += x_sq.sqrt();
            self.output_length += y_sq.sqrt();
        }
        self.n_tokens += n as u64;
        Ok(())
    }

    /// Tokens added.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Block influence, `1 - mean cos(x_t, y_t)`; higher means keep (ShortGPT, arXiv 2403.03853, eq. 1).
    #[must_use]
    pub fn block_influence(&self) -> f64 {
        1.0 - self.cosines / self.n_tokens.max(1) as f64
    }

    /// COMP's aggregated form, `1 - |sum of <x_t, y_t>| / (||X||_F ||Y||_F)`; higher means keep. Tokens count
    /// by their energy, so a layer that creates massive activations stands out.
    #[must_use]
    pub fn aggregated(&self) -> f64 {
        let length = (self.input_energy * self.output_energy).sqrt();
        match (length == 0.0, self.input_energy == self.output_energy) {
            (false, _) => 1.0 - self.dot.abs() / length,
            (true, unchanged) => 1.0 - f64::from(u8::from(unchanged)),
        }
    }

    /// Mean length after over mean length before: what Prune&Comp (arXiv 2507.18212) multiplies into the
    /// residual stream when the layer leaves. 1 when nothing came in.
    #[must_use]
    pub fn magnitude_ratio(&self) -> f64 {
        if 0.0 < self.input_length { self.output_length / self.input_length } else { 1.0 }
    }
}
