//! What the maths knows about one output projection: sums over calibration tokens, nothing else.
//!
//! Let `z` be the input of the projection (`down_proj`: gated activations; `o_proj`: concatenated heads) and
//! `t` what its output should be. The caller streams tokens and adds them up; no token is kept.
//! Memory for `n_in` = k, `n_out` = d: moments `16 k`, Gram `4 k^2`, cross `4 k d` bytes.

use crate::numeric::{NumericError, check_len};
use secateur_tensor::linalg::{Operand, Product, multiply};

/// Rows of the Gram matrix that are widened to f64 at once.
const PANEL: usize = 64;

/// Sums over tokens for one projection.
#[derive(Clone, Debug, Default)]
pub struct LayerStats {
    /// Tokens added up.
    pub n_tokens: usize,
    /// Input width k.
    pub n_in: usize,
    /// Output width d.
    pub n_out: usize,
    /// Sum of z, `[k]`.
    pub sum: Vec<f64>,
    /// Sum of z squared, `[k]`.
    pub sum_sq: Vec<f64>,
    /// `Z'Z`, `[k, k]`, both triangles; absent for methods that do not ask for it.
    pub gram: Option<Vec<f32>>,
    /// What the output is fitted to; absent means the layer's own output `Z W0'`.
    pub target: Option<TargetStats>,
}

/// Sums over tokens that involve the target `t`.
#[derive(Clone, Debug, Default)]
pub struct TargetStats {
    /// `Z'T`, `[k, d]`.
    pub cross: Vec<f32>,
    /// Sum of t, `[d]`.
    pub sum: Vec<f64>,
    /// Sum of the squared length of t.
    pub energy: f64,
}

impl LayerStats {
    /// Empty moments for a projection `[n_out, n_in]`, without Gram and target.
    #[must_use]
    pub fn new(n_in: usize, n_out: usize) -> Self {
        Self { n_in, n_out, sum: vec![0.0; n_in], sum_sq: vec![0.0; n_in], ..Self::default() }
    }

    /// Adds the moments of a window of inputs `[n, n_in]` and counts its tokens. Gram and cross products are
    /// accumulated by the kernels, straight into [`Self::gram`] and [`TargetStats::cross`].
    /// # Errors
    /// [`NumericError::Shape`] when `inputs` is not whole rows.
    pub fn add_moments(&mut self, inputs: &[f32]) -> Result<(), NumericError> {
        let n = inputs.len().checked_div(self.n_in).unwrap_or(0);
        check_len("inputs", inputs.len(), n, self.n_in)?;
        for row in inputs.chunks_exact(self.n_in.max(1)) {
            for ((&value, sum), sum_sq) in row.iter().zip(&mut self.sum).zip(&mut self.sum_sq) {
                let value = f64::from(value);
                *sum += value;
                *sum_sq += value * value;
            }
        }
        self.n_tokens += n;
        Ok(())
    }

    /// The Gram matrix.
    /// # Errors
    /// [`NumericError::Missing`] when it was not collected.
    pub fn gram(&self) -> Result<&[f32], NumericError> {
        let gram = self.gram.as_deref().ok_or(NumericError::Missing { what: "Gram matrix" })?;
        check_len("Gram matrix", gram.len(), self.n_in, self.n_in)?;
        Ok(gram)
    }

    /// The target's sums.
    /// # Errors
    /// [`NumericError::Missing`] when there are none: see [`Self::set_own_target`].
    pub fn target(&self) -> Result<&TargetStats, NumericError> {
        let target = self.target.as_ref().ok_or(NumericError::Missing { what: "target" })?;
        check_len("cross products", target.cross.len(), self.n_in, self.n_out)?;
        check_len("target sums", target.sum.len(), self.n_out, 1)?;
        Ok(target)
    }

    /// Mean of each input, `[k]`.
    #[must_use]
    pub fn mean(&self) -> Vec<f64> {
        let n = self.n_tokens.max(1) as f64;
        self.sum.iter().map(|sum| sum / n).collect()
    }

    /// Sample variance of each input (divisor n - 1), `[k]`.
    #[must_use]
    pub fn variance(&self) -> Vec<f64> {
        let n = self.n_tokens as f64;
        let variance = |(sum, sum_sq): (&f64, &f64)| ((sum_sq - sum * sum / n) / (n - 1.0)).max(0.0);
        if self.n_tokens < 2 {
            return vec![0.0; self.n_in];
        }
        self.sum.iter().zip(&self.sum_sq).map(variance).collect()
    }

    /// Makes the layer's own output `T = Z W0'` the target. `weight`: W0, `[d, k]`.
    /// # Errors
    /// [`NumericError::Missing`] without Gram, [`NumericError::Shape`].
    pub fn set_own_target(&mut self, weight: &[f32]) -> Result<(), NumericError> {
        self.target = Some(self.own_target(weight)?);
        Ok(())
    }

    /// Turns a target r into the blend `T = (1 - share) Z W0' + share R`: the recipe fits mostly the layer's
    /// own output and a little (`share` = 0.2) of what the dense model's residual stream would need.
    /// # Errors
    /// [`NumericError::Missing`] without Gram or target, [`NumericError::Shape`].
    pub fn blend_own_target(&mut self, weight: &[f32], share: f64) -> Result<(), NumericError> {
        let own = self.own_target(weight)?;
        let mut blend = self.target.take().ok_or(NumericError::Missing { what: "target" })?;
        check_len("cross products", blend.cross.len(), self.n_in, self.n_out)?;
        let keep = 1.0 - share;
        // |T|^2 needs <Z W0', R> = sum of W0' o (Z'R).
        let mixed = inner_transposed(weight, &blend.cross, self.n_in);
        blend.energy = keep * keep * own.energy + 2.0 * keep * share * mixed + share * share * blend.energy;
        for (to, from) in blend.cross.iter_mut().zip(&own.cross) {
            *to = (share * f64::from(*to) + keep * f64::from(*from)) as f32;
        }
        for (to, from) in blend.sum.iter_mut().zip(&own.sum) {
            *to = share * *to + keep * from;
        }
        self.target = Some(blend);
        Ok(())
    }

    /// Sums of the own output `Z W0'`: cross `G W0'`, sum `W0 sum(z)`, energy `tr(W0 G W0')`. Takes `8 k d`
    /// bytes besides the result.
    /// # Errors
    /// [`NumericError::Missing`] without Gram, [`NumericError::Shape`].
    pub fn own_target(&self, weight: &[f32]) -> Result<TargetStats, NumericError> {
        let (k, d) = (self.n_in, self.n_out);
        let gram = self.gram()?;
        check_len("weight", weight.len(), d, k)?;
        // In f64: with massive activations a few terms of each sum are thousands of times the others, and the
        // ridge of a small column is not far above the rounding of an f32 sum.
        let wide: Vec<f64> = weight.iter().copied().map(f64::from).collect();
        let weight_t = Operand::new(&wide, d, k).t();
        let mut cross = Vec::with_capacity(k * d);
        let mut energy = 0.0;
        for (panel_idx, rows) in gram.chunks(PANEL * k.max(1)).enumerate() {
            let rows: Vec<f64> = rows.iter().copied().map(f64::from).collect();
            let n_rows = rows.len() / k.max(1);
            let mut product = vec![0.0f64; n_rows * d];
            multiply(Operand::new(&rows, n_rows, k), weight_t, Product::Replace(1.0), &mut product)?;
            for (at, value) in product.iter().enumerate() {
                energy += value * wide[at % d * k + panel_idx * PANEL + at / d];
            }
            cross.extend(product.iter().map(|&value| value as f32));
        }
        Ok(TargetStats { cross, sum: apply(weight, &self.sum), energy })
    }
}

/// `sum over o, j of weight[o, j] * cross[j, o]`; `weight`: `[d, k]`, `cross`: `[k, d]`.
pub(crate) fn inner_transposed(weight: &[f32], cross: &[f32], n_in: usize) -> f64 {
    let n_out = cross.len().checked_div(n_in).unwrap_or(0);
    let row = |(o, row): (usize, &[f32])| -> f64 {
        row.iter().enumerate().map(|(j, &w)| f64::from(w) * f64::from(cross[j * n_out + o])).sum()
    };
    weight.chunks_exact(n_in.max(1)).enumerate().map(row).sum()
}

/// `weight * vector`; `weight`: `[d, k]`, `vector`: `[k]`.
pub(crate) fn apply(weight: &[f32], vector: &[f64]) -> Vec<f64> {
    let row = |row: &[f32]| row.iter().zip(vector).map(|(&w, v)| f64::from(w) * v).sum();
    weight.chunks_exact(vector.len().max(1)).map(row).collect()
}
