//! What a model file holds.

use crate::ServiceError;
use crate::api::LayerView;
use crate::convert::data_error;
use crate::opened::{OpenModel, model_name};
use secateur_model::{Architecture, WeightId, WeightRole, WeightSource};
use secateur_tensor::WeightMatrix;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How many tensors have a dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DTypeCount {
    /// Tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What a model file holds.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The file.
    pub path: PathBuf,
    /// What it calls itself.
    pub name: String,
    /// `gguf`, `safetensors` or `onnx`.
    pub form: &'static str,
    /// `llama` or `qwen2`.
    pub architecture: &'static str,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 digest of the file.
    pub digest: String,
    /// Layers.
    pub n_layers: usize,
    /// Layers that lack attention, MLP or both.
    pub layers_with_gaps: Vec<usize>,
    /// True when all layers look alike, so that any stock runtime reads the file.
    pub uniform: bool,
    /// Residual width.
    pub hidden_size: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Shape of every layer.
    pub layers: Vec<LayerView>,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest context it was trained for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// The output head is the token table.
    pub tie_word_embeddings: bool,
    /// Matrix parameters of the decoder layers.
    pub layer_params: u64,
    /// Matrix parameters of all.
    pub total_params: u64,
    /// Tensors by dtype.
    pub dtypes: BTreeMap<String, DTypeCount>,
    /// Bytes a token takes in an f16 KV cache.
    pub kv_bytes_per_token: u64,
    /// Tokens that end a reply.
    pub stop_tokens: Vec<u32>,
    /// A BOS token starts every text.
    pub adds_bos: bool,
    /// There is a chat template.
    pub has_chat_template: bool,
}

/// Describes a model file.
/// # Errors
/// [`ServiceError::Io`] and [`ServiceError::Data`].
pub fn inspect(model: &OpenModel) -> Result<InspectReport, ServiceError> {
    let file = model.file();
    let config = file.config();
    let digest = file.digest().map_err(|error| data_error(file.path(), &error))?;
    let mut dtypes: BTreeMap<String, DTypeCount> = BTreeMap::new();
    let mut total_params = 0;
    for tensor in file.tensors() {
        let count = dtypes.entry(tensor.dtype().name().to_owned()).or_default();
        count.tensors += 1;
        count.bytes += tensor.bytes();
        total_params += if 1 < tensor.shape().len() { tensor.n_values() } else { 0 };
    }
    let gaps =
        |layer: &secateur_model::LayerConfig| layer.num_attention_heads == 0 || layer.intermediate_size == 0;
    let layers_with_gaps = config.layers.iter().enumerate().filter(|(_, layer)| gaps(layer));
    let tokenizer = model.tokenizer();
    Ok(InspectReport {
        path: file.path().to_owned(),
        name: model_name(file),
        form: file.form().name(),
        architecture: match config.architecture {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        },
        bytes: file.file_bytes(),
        digest,
        n_layers: config.n_layers(),
        layers_with_gaps: layers_with_gaps.map(|(layer_idx, _)| layer_idx).collect(),
        uniform: config.is_uniform(),
        hidden_size: config.hidden_size,
        head_dim: config.head_dim,
        layers: config.layers.iter().map(LayerView::from).collect(),
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        rope_theta: config.rope_theta,
        tie_word_embeddings: config.tie_word_embeddings,
        layer_params: config.all_layer_params(),
        total_params,
        dtypes,
        kv_bytes_per_token: 2 * (config.total_kv_heads() * config.head_dim * 2) as u64,
        stop_tokens: tokenizer.stop_ids().iter().copied().collect(),
        adds_bos: tokenizer.adds_bos(),
        has_chat_template: tokenizer.chat_template().is_some(),
    })
}

/// The matrices that one decode step reads: those of every layer, and the output head. Norms are left out.
pub(crate) fn weights_of_token(model: &OpenModel) -> Result<Vec<WeightMatrix>, ServiceError> {
    let file = model.file();
    let wrong = |error| data_error(file.path(), &error);
    let mut weights = Vec::new();
    for layer_idx in 0..file.config().n_layers() {
        for role in WeightRole::LAYER_MATRICES {
            weights.extend(file.weight(WeightId::layer(layer_idx, role)).map_err(wrong)?);
        }
    }
    let role = if file.config().tie_word_embeddings { WeightRole::EmbedTokens } else { WeightRole::LmHead };
    weights.push(file.require(WeightId::global(role)).map_err(wrong)?);
    Ok(weights)
}
