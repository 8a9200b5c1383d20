//! Names of weights and the trait of whoever holds them.

use crate::ModelConfig;
use secateur_tensor::WeightMatrix;
use std::fmt;

/// Position of a decoder layer, from 0.
pub type LayerIdx = usize;

/// What a weight does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are Hugging Face's own names")]
pub enum WeightRole {
    EmbedTokens,
    FinalNorm,
    LmHead,
    AttnNorm,
    QProj,
    KProj,
    VProj,
    OProj,
    QBias,
    KBias,
    VBias,
    OBias,
    MlpNorm,
    GateProj,
    UpProj,
    DownProj,
    GateBias,
    UpBias,
    DownBias,
}

impl WeightRole {
    /// The matrices of a layer, attention first.
    pub const LAYER_MATRICES: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// True for norms and biases: vectors, stored as one row of f32.
    #[must_use]
    pub fn is_vector(self) -> bool {
        !Self::LAYER_MATRICES.contains(&self) && !matches!(self, Self::EmbedTokens | Self::LmHead)
    }
}

/// One weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId {
    /// Layer; `None` for the embedding, the final norm and the head.
    pub layer_idx: Option<LayerIdx>,
    /// What it does.
    pub role: WeightRole,
}

impl WeightId {
    /// A weight outside the layers.
    #[must_use]
    pub fn global(role: WeightRole) -> Self {
        Self { layer_idx: None, role }
    }

    /// A weight of a layer.
    #[must_use]
    pub fn layer(layer_idx: LayerIdx, role: WeightRole) -> Self {
        Self { layer_idx: Some(layer_idx), role }
    }
}

impl fmt::Display for WeightId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer_idx {
            Some(layer_idx) => write!(f, "layer {layer_idx} {:?}", self.role),
            None => write!(f, "{:?}", self.role),
        }
    }
}

/// Why a weight could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The model has no such weight, though the graph needs it.
    #[error("the model has no weight `{0}`")]
    Missing(WeightId),
    /// The file changed or could not be read.
    #[error("weight `{id}` could not be read")]
    Unreadable {
        /// Which weight.
        id: WeightId,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whoever holds the weights of a model: a mapped file, or a file with some layers replaced.
pub trait WeightSource: Send + Sync {
    /// Shape of the model these weights belong to; already validated against the weights.
    fn config(&self) -> &ModelConfig;

    /// The weight `id`: matrices as `[out, in]`, vectors as `[1, n]`. Cheap: shares the bytes.
    ///
    /// `Ok(None)` when the model does not have this optional weight (a bias, a separate head).
    /// # Errors
    /// [`WeightError::Unreadable`] when the bytes cannot be had.
    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError>;

    /// Tells the source that the pages of this weight are not needed for now; they may leave memory.
    fn give_back(&self, id: WeightId) {
        self.give_back_rows(id, usize::MAX);
    }

    /// As [`Self::give_back`] for the rows `..n_rows`, or all there are.
    fn give_back_rows(&self, id: WeightId, n_rows: usize);

    /// As [`Self::weight`], for a weight that must be there.
    /// # Errors
    /// [`WeightError::Missing`] when it is not.
    fn require(&self, id: WeightId) -> Result<WeightMatrix, WeightError> {
        self.weight(id)?.ok_or(WeightError::Missing(id))
    }

    /// Gives back every weight of a layer.
    fn give_back_layer(&self, layer_idx: LayerIdx) {
        for role in WeightRole::LAYER_MATRICES {
            self.give_back(WeightId::layer(layer_idx, role));
        }
    }
}
