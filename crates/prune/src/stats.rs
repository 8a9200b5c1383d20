//! What the maths knows about one output projection: sums over calibration tokens, nothing else.
//!
//! Let `z` be the input of the projection (`down_proj`: gated activations; `o_proj`: concatenated heads) and
//! `t` what its output should be. The caller streams tokens and adds them up; no token is kept.
//! Memory for `n_in` = k, `n_out` = d: moments `16 k`, Gram `4 k^2`, cross `4 k d` bytes.

use crate::matrix::{MatrixView, PANEL, RowStore, panels, panels_of, unreadable};
use crate::numeric::{NumericError, check_len};
use secateur_tensor::linalg::{Operand, Product, multiply};
use std::sync::Arc;

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
    /// Gram matrix and cross products when they do not lie in memory; [`Self::gram`] and [`TargetStats::cross`]
    /// are then empty.
    pub stored: Option<StoredSums>,
}

/// The two large sums of a projection, outside of memory.
#[derive(Clone, Debug)]
pub struct StoredSums {
    /// `Z'Z`, `[k, k]`, both triangles.
    pub gram: Arc<dyn RowStore>,
    /// `Z'T`, `[k, d]`.
    pub cross: Arc<dyn RowStore>,
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

    /// The Gram matrix, wherever it lies.
    /// # Errors
    /// [`NumericError::Missing`] when it was not collected.
    pub fn gram_view(&self) -> Result<MatrixView<'_>, NumericError> {
        match &self.stored {
            Some(stored) => Ok(MatrixView::Stored(stored.gram.as_ref())),
            None => self.gram().map(MatrixView::Memory),
        }
    }

    /// The cross products with the target, wherever they lie.
    /// # Errors
    /// [`NumericError::Missing`] when there is no target.
    pub fn cross_view(&self) -> Result<MatrixView<'_>, NumericError> {
        match &self.stored {
            Some(stored) if self.target.is_some() => Ok(MatrixView::Stored(stored.cross.as_ref())),
            _ => self.target().map(|target| MatrixView::Memory(&target.cross)),
        }
    }

    /// Makes the layer's own output `T = Z W0'` the target. `weight`: W0, `[d, k]`.
    /// # Errors
    /// [`NumericError::Missing`] without Gram, [`NumericError::Shape`].
    pub fn set_own_target<'w>(&mut self, weight: impl Into<MatrixView<'w>>) -> Result<(), NumericError> {
        let Some(stored) = self.stored.clone() else {
            self.target = Some(self.own_target(weight)?);
            return Ok(());
        };
        let mut rows = Vec::new();
        let own = self.own_products(weight.into(), &mut |first, product, _| {
            rows.clear();
            rows.extend(product.iter().map(|&value| value as f32));
            stored.cross.write_rows(first, &rows).map_err(|error| unreadable(&error))
        })?;
        self.target = Some(TargetStats { cross: Vec::new(), sum: own.sum, energy: own.energy });
        Ok(())
    }

    /// Turns a target r into the blend `T = (1 - share) Z W0' + share R`: the recipe fits mostly the layer's
    /// own output and a little (`share` = 0.2) of what the dense model's residual stream would need. The cross
    /// products are changed where they lie.
    /// # Errors
    /// [`NumericError::Missing`] without Gram or target, [`NumericError::Shape`].
    pub fn blend_own_target<'w>(
        &mut self,
        weight: impl Into<MatrixView<'w>>,
        share: f64,
    ) -> Result<(), NumericError> {
        let (k, d) = (self.n_in, self.n_out);
        let mut target = self.target.take().ok_or(NumericError::Missing { what: "target" })?;
        if self.stored.is_none() {
            check_len("cross products", target.cross.len(), k, d)?;
        }
        let keep = 1.0 - share;
        // |T|^2 needs <Z W0', R> = sum of W0' o (Z'R).
        let mut mixed = 0.0;
        let mut blend = |first: usize, product: &[f64], wide: &[f64], cross: &mut [f32]| {
            for (at, (own, cross)) in product.iter().zip(cross).enumerate() {
                mixed += wide[at % d * k + first + at / d] * f64::from(*cross);
                *cross = (share * f64::from(*cross) + keep * f64::from(*own as f32)) as f32;
            }
        };
        let stored = self.stored.clone();
        let mut buffer = Vec::new();
        let own = self.own_products(weight.into(), &mut |first, product, wide| {
            match &stored {
                None => blend(first, product, wide, &mut target.cross[first * d..][..product.len()]),
                Some(stored) => {
                    buffer.resize(product.len(), 0.0);
                    stored.cross.read_rows(first, &mut buffer).map_err(|error| unreadable(&error))?;
                    blend(first, product, wide, &mut buffer);
                    stored.cross.write_rows(first, &buffer).map_err(|error| unreadable(&error))?;
                }
            }
            Ok(())
        })?;
        target.energy = keep * keep * own.energy + 2.0 * keep * share * mixed + share * share * target.energy;
        for (to, from) in target.sum.iter_mut().zip(&own.sum) {
            *to = share * *to + keep * from;
        }
        self.target = Some(target);
        Ok(())
    }

    /// Sums of the own output `Z W0'`: cross `G W0'`, sum `W0 sum(z)`, energy `tr(W0 G W0')`. Takes `8 k d`
    /// bytes besides the result.
    /// # Errors
    /// [`NumericError::Missing`] without Gram, [`NumericError::Shape`].
    pub fn own_target<'w>(&self, weight: impl Into<MatrixView<'w>>) -> Result<TargetStats, NumericError> {
        let mut cross = Vec::with_capacity(self.n_in * self.n_out);
        let own = self.own_products(weight.into(), &mut |_, product, _| {
            cross.extend(product.iter().map(|&value| value as f32));
            Ok(())
        })?;
        Ok(TargetStats { cross, sum: own.sum, energy: own.energy })
    }

    /// Calls `visit(first row, rows of G W0' [rows, d], W0 [d, k])` for panel after panel.
    fn own_products(
        &self,
        weight: MatrixView<'_>,
        visit: &mut VisitPanel<'_>,
    ) -> Result<OwnSums, NumericError> {
        let (k, d) = (self.n_in, self.n_out);
        let gram = self.gram_view()?;
        weight.check("weight", d, k)?;
        // In f64: with massive activations a few terms of each sum are thousands of times the others, and the
        // ridge of a small column is not far above the rounding of an f32 sum.
        let mut wide: Vec<f64> = Vec::with_capacity(d * k);
        let mut buffer = Vec::new();
        for panel in panels(d) {
            wide.extend(weight.rows(panel, k, &mut buffer)?.iter().copied().map(f64::from));
        }
        let weight_t = Operand::new(&wide, d, k).t();
        let mut energy = 0.0;
        let (mut rows, mut product) = (Vec::new(), Vec::new());
        for (first, n_rows) in panels_of(own_panel(d), k) {
            rows.clear();
            rows.extend(gram.rows((first, n_rows), k, &mut buffer)?.iter().copied().map(f64::from));
            product.resize(n_rows * d, 0.0f64);
            multiply(Operand::new(&rows, n_rows, k), weight_t, Product::Replace(1.0), &mut product)?;
            for (at, value) in product.iter().enumerate() {
                energy += value * wide[at % d * k + first + at / d];
            }
            visit(first, &product, &wide)?;
        }
        let dot = |row: &[f64]| row.iter().zip(&self.sum).map(|(w, v)| w * v).sum();
        Ok(OwnSums { sum: wide.chunks_exact(k.max(1)).map(dot).collect(), energy })
    }
}

/// Rows of `G W0'` that are made at once for `d` outputs: each panel packs W0 anew, so more of them where W0 is large: a
/// sixteenth of its rows.
pub(crate) fn own_panel(d: usize) -> usize {
    PANEL.max(d / 16)
}

/// Takes `(first row, rows of G W0' [rows, d], W0 [d, k])`.
type VisitPanel<'a> = dyn FnMut(usize, &[f64], &[f64]) -> Result<(), NumericError> + 'a;

/// The small sums of a layer's own output.
struct OwnSums {
    sum: Vec<f64>,
    energy: f64,
}

/// `weight * vector`; `weight`: `[d, k]`, `vector`: `[k]`.
pub(crate) fn apply(weight: &[f32], vector: &[f64]) -> Vec<f64> {
    let row = |row: &[f32]| row.iter().zip(vector).map(|(&w, v)| f64::from(w) * v).sum();
    weight.chunks_exact(vector.len().max(1)).map(row).collect()
}
