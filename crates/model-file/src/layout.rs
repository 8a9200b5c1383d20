//! Which weights a model of a given configuration has, and their shapes.

use crate::{ModelFileError, TensorInfo};
use secateur_model::{LayerConfig, ModelConfig, WeightId, WeightRole};
use secateur_tensor::DType;
use std::collections::BTreeMap;

/// Whether a model may do without a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
}

/// The shape `[out, in]` of a weight, `[1, n]` for vectors, and whether it must be there. `None` when a model
/// of this configuration has no place for it.
pub(crate) fn expected(config: &ModelConfig, id: WeightId) -> Option<([usize; 2], Presence)> {
    use Presence::{Optional, Required};
    let hidden = config.hidden_size;
    let Some(layer_idx) = id.layer_idx else {
        return match id.role {
            WeightRole::EmbedTokens => Some(([config.vocab_size, hidden], Required)),
            WeightRole::FinalNorm => Some(([1, hidden], Required)),
            WeightRole::LmHead => Some(([config.vocab_size, hidden], Optional)),
            _ => None,
        };
    };
    expected_in_layer(config, config.layers.get(layer_idx)?, id.role)
}

/// As [`expected`], for a weight of a layer of the shape `layer`.
pub(crate) fn expected_in_layer(
    config: &ModelConfig,
    layer: &LayerConfig,
    role: WeightRole,
) -> Option<([usize; 2], Presence)> {
    use Presence::{Optional, Required};
    let hidden = config.hidden_size;
    let q_width = layer.num_attention_heads * config.head_dim;
    let kv_width = layer.num_key_value_heads * config.head_dim;
    let width = layer.intermediate_size;
    let (shape, presence, part) = match role {
        WeightRole::AttnNorm => ([1, hidden], Required, q_width),
        WeightRole::QProj => ([q_width, hidden], Required, q_width),
        WeightRole::KProj | WeightRole::VProj => ([kv_width, hidden], Required, q_width),
        WeightRole::OProj => ([hidden, q_width], Required, q_width),
        WeightRole::QBias => ([1, q_width], Optional, q_width),
        WeightRole::KBias | WeightRole::VBias => ([1, kv_width], Optional, q_width),
        WeightRole::OBias => ([1, hidden], Optional, q_width),
        WeightRole::MlpNorm => ([1, hidden], Required, width),
        WeightRole::GateProj | WeightRole::UpProj => ([width, hidden], Required, width),
        WeightRole::DownProj => ([hidden, width], Required, width),
        WeightRole::GateBias | WeightRole::UpBias => ([1, width], Optional, width),
        WeightRole::DownBias => ([1, hidden], Optional, width),
        WeightRole::EmbedTokens | WeightRole::FinalNorm | WeightRole::LmHead => return None,
    };
    (part != 0).then_some((shape, presence))
}

/// Checks that `weights` are exactly what `config` asks for: nothing missing, nothing more, every shape right,
/// vectors in a float type. `name_of` is how the file would call a weight that is missing.
pub(crate) fn check_weights(
    config: &ModelConfig,
    weights: &BTreeMap<WeightId, TensorInfo>,
    name_of: fn(WeightId) -> String,
) -> Result<(), ModelFileError> {
    for (&id, tensor) in weights {
        let Some((want, _)) = expected(config, id) else {
            return Err(ModelFileError::UnexpectedTensor(tensor.name.clone()));
        };
        check_shape(id, want, tensor)?;
    }
    let globals = [WeightRole::EmbedTokens, WeightRole::FinalNorm].map(WeightId::global);
    let layers = (0..config.layers.len()).flat_map(|layer_idx| {
        crate::names::LAYER.iter().map(move |(role, _)| WeightId::layer(layer_idx, *role))
    });
    for id in globals.into_iter().chain(layers) {
        let required = expected(config, id).is_some_and(|(_, presence)| presence == Presence::Required);
        if required && !weights.contains_key(&id) {
            return Err(ModelFileError::MissingTensor(name_of(id)));
        }
    }
    Ok(())
}

fn check_shape(id: WeightId, want: [usize; 2], tensor: &TensorInfo) -> Result<(), ModelFileError> {
    let is_vector = id.role.is_vector();
    let dim = |idx: usize| tensor.dims.get(idx).copied().unwrap_or(1);
    let same = dim(0) == want[1] && dim(1) == want[0] && dim(2) == 1 && dim(3) == 1;
    if !same {
        let want = if is_vector { vec![want[1]] } else { want.to_vec() };
        return Err(ModelFileError::TensorShape { name: tensor.name.clone(), want, got: tensor.shape() });
    }
    check_vector_type(is_vector, tensor)
}

/// Vectors must be in a float type: nothing else is ever written for them.
pub(crate) fn check_vector_type(is_vector: bool, tensor: &TensorInfo) -> Result<(), ModelFileError> {
    let is_float = matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16);
    if is_vector && !is_float {
        return Err(ModelFileError::VectorType { name: tensor.name.clone(), dtype: tensor.dtype });
    }
    Ok(())
}
