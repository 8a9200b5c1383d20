//! Methods that remove whole layers.
//!
//! ShortGPT (Men et al. 2024, arXiv 2403.03853, eq. 1): the layers with the lowest block influence leave at
//! once. SLEB (Song et al. 2024, arXiv 2402.09025, algorithm 1): one layer at a time, each time the one whose
//! absence costs the least negative log likelihood, measured on the model without those that left before.

use crate::numeric::NumericError;

/// Loss of the model in which layer l is present where the flag is set; the second argument is the layer that is absent
/// for the first time.
pub type LossWithout<'a, E> = dyn FnMut(&[bool], usize) -> Result<f64, E> + 'a;

/// A depth method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepthMethod {
    /// One shot by block influence.
    ShortGpt,
    /// Greedy by measured loss; the first and the last layer stay.
    Sleb,
}

impl DepthMethod {
    /// All depth methods.
    pub const ALL: [Self; 2] = [Self::ShortGpt, Self::Sleb];

    /// Name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ShortGpt => "shortgpt",
            Self::Sleb => "sleb",
        }
    }

    /// The method with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Returns the `n_remove` layers that leave, in the order they are chosen.
    ///
    /// `influence`: block influence of each layer on the dense model (its length is the number of layers).
    /// `nll(present, trial)`: loss on the calibration set of the model in which layer l is present where
    /// `present[l]`; `trial` is the layer that is absent for the first time, in rising order, so that what comes
    /// before it may be kept. Only [`Self::Sleb`] calls it, about `n_remove * n_layers` times.
    /// # Errors
    /// [`NumericError::Range`] when there are not so many removable layers or a measure is NaN; what `nll` fails with.
    pub fn select_layers<E: From<NumericError>>(
        self,
        influence: &[f64],
        n_remove: usize,
        nll: &mut LossWithout<'_, E>,
    ) -> Result<Vec<usize>, E> {
        let n_layers = influence.len();
        let removable = match self {
            Self::ShortGpt => n_layers,
            Self::Sleb => n_layers.saturating_sub(2),
        };
        if removable < n_remove {
            let value = n_remove as f64;
            return Err(NumericError::Range {
                what: "removed layers",
                value,
                allowed: "the removable layers",
            }
            .into());
        }
        match self {
            Self::ShortGpt => {
                not_nan("block influence", influence)?;
                let mut order: Vec<usize> = (0..n_layers).collect();
                order.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]).then(a.cmp(&b)));
                order.truncate(n_remove);
                Ok(order)
            }
            Self::Sleb => greedy(n_layers, n_remove, nll),
        }
    }
}

fn not_nan(what: &'static str, values: &[f64]) -> Result<(), NumericError> {
    let nan = values.iter().copied().find(|value| value.is_nan());
    nan.map_or(Ok(()), |value| Err(NumericError::Range { what, value, allowed: "numbers" }))
}

fn greedy<E: From<NumericError>>(
    n_layers: usize,
    n_remove: usize,
    nll: &mut LossWithout<'_, E>,
) -> Result<Vec<usize>, E> {
    let mut present = vec![true; n_layers];
    let mut removed = Vec::with_capacity(n_remove);
    while removed.len() < n_remove {
        let mut best: Option<(f64, usize)> = None;
        for layer_idx in 1..n_layers - 1 {
            if !present[layer_idx] {
                continue;
            }
            present[layer_idx] = false;
            let loss = nll(&present, layer_idx);
            present[layer_idx] = true;
            let loss = loss?;
            not_nan("loss without a layer", &[loss])?;
            if best.is_none_or(|(lowest, _)| loss < lowest) {
                best = Some((loss, layer_idx));
            }
        }
        let Some((_, layer_idx)) = best else { break };
        present[layer_idx] = false;
        removed.push(layer_idx);
    }
    Ok(removed)
}
