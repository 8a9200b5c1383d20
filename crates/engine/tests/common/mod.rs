//! A tiny model in memory with fixed pseudo-random weights.

#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use secateur_model::{
    Architecture, LayerConfig, ModelConfig, RopeLayout, RopeScaling, WeightError, WeightId, WeightRole,
    WeightSource,
};
use secateur_tensor::{DType, WeightMatrix};
use std::collections::BTreeMap;

pub(crate) struct MemorySource {
    pub(crate) config: ModelConfig,
    pub(crate) weights: BTreeMap<WeightId, WeightMatrix>,
}

impl WeightSource for MemorySource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
        Ok(self.weights.get(&id).cloned())
    }

    fn give_back_rows(&self, _id: WeightId, _n_rows: usize) {}
}

pub(crate) fn config(layers: Vec<LayerConfig>) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        name: "tiny".into(),
        hidden_size: 32,
        vocab_size: 50,
        head_dim: 8,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::Interleaved,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        layers,
    }
}

pub(crate) fn matrix(n_rows: usize, n_cols: usize, values: &[f32]) -> WeightMatrix {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    WeightMatrix::new(DType::F32, n_rows, n_cols, Bytes::from(bytes)).unwrap()
}

fn random(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.6
}

pub(crate) fn source(config: ModelConfig) -> MemorySource {
    let mut state = 7;
    let mut weights = BTreeMap::new();
    let hidden = config.hidden_size;
    let mut put = |id: WeightId, n_rows: usize, n_cols: usize| {
        let values: Vec<f32> = (0..n_rows * n_cols).map(|_| random(&mut state)).collect();
        weights.insert(id, matrix(n_rows, n_cols, &values));
    };
    put(WeightId::global(WeightRole::EmbedTokens), config.vocab_size, hidden);
    put(WeightId::global(WeightRole::FinalNorm), 1, hidden);
    for (layer_idx, layer) in config.layers.iter().enumerate() {
        let q_width = layer.num_attention_heads * config.head_dim;
        let kv_width = layer.num_key_value_heads * config.head_dim;
        let width = layer.intermediate_size;
        let mut layer_put = |role, n_rows, n_cols| put(WeightId::layer(layer_idx, role), n_rows, n_cols);
        if q_width != 0 {
            layer_put(WeightRole::AttnNorm, 1, hidden);
            layer_put(WeightRole::QProj, q_width, hidden);
            layer_put(WeightRole::KProj, kv_width, hidden);
            layer_put(WeightRole::VProj, kv_width, hidden);
            layer_put(WeightRole::OProj, hidden, q_width);
        }
        if width != 0 {
            layer_put(WeightRole::MlpNorm, 1, hidden);
            layer_put(WeightRole::GateProj, width, hidden);
            layer_put(WeightRole::UpProj, width, hidden);
            layer_put(WeightRole::DownProj, hidden, width);
        }
    }
    MemorySource { config, weights }
}

pub(crate) const FULL: LayerConfig =
    LayerConfig { num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 48 };

/// Stores the matrices of `source` in `dtype` where their rows divide into its blocks.
pub(crate) fn stored_in(mut source: MemorySource, dtype: DType) -> MemorySource {
    for weight in source.weights.values_mut() {
        let (n_rows, n_cols) = (weight.n_rows(), weight.n_cols());
        let Some(row_bytes) = dtype.row_bytes(n_cols).filter(|_| 1 < n_rows) else { continue };
        let mut bytes = vec![0; n_rows * row_bytes];
        secateur_tensor::blocks::quantize(dtype, &weight.to_f32(), &mut bytes).unwrap();
        *weight = WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(bytes)).unwrap();
    }
    source
}
