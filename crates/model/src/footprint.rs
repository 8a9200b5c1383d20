//! Arithmetic of memory: how many bytes a model of a given shape needs while it serves.

use crate::{LayerConfig, ModelConfig};
use secateur_tensor::DType;

/// How keys and values are kept between tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvDType {
    /// 4 bytes each: exact.
    F32,
    /// 2 bytes each: the default for serving.
    #[default]
    F16,
}

impl KvDType {
    /// Bytes of one value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// Name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16].into_iter().find(|kv| kv.name().eq_ignore_ascii_case(name))
    }
}

/// What a serving process needs, in bytes of resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Mapped weights: file-backed, clean.
    pub weights_bytes: u64,
    /// Keys and values at the full context length.
    pub kv_cache_bytes: u64,
    /// Buffers of a forward pass.
    pub activations_bytes: u64,
    /// The program itself: code, tokenizer, server.
    pub runtime_bytes: u64,
}

impl Footprint {
    /// Sum of the parts.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.runtime_bytes
    }
}

/// Bytes of a layer's matrices with every matrix in `dtype`; a row that does not divide into blocks
/// counts as F16, which is what the writer stores then.
#[must_use]
pub fn layer_bytes(config: &ModelConfig, layer: &LayerConfig, dtype: DType) -> u64 {
    let hidden = config.hidden_size;
    let q_width = layer.num_attention_heads * config.head_dim;
    let kv_width = layer.num_key_value_heads * config.head_dim;
    let matrix = |n_rows: usize, n_cols: usize| {
        let row = dtype.row_bytes(n_cols).unwrap_or(2 * n_cols);
        (n_rows * row) as u64
    };
    matrix(q_width, hidden)
        + 2 * matrix(kv_width, hidden)
        + matrix(hidden, q_width)
        + 2 * matrix(layer.intermediate_size, hidden)
        + matrix(hidden, layer.intermediate_size)
}

/// Bytes of keys and values for `context_len` tokens over `layers`.
#[must_use]
pub fn kv_cache_bytes(config: &ModelConfig, layers: &[LayerConfig], context_len: usize, kv: KvDType) -> u64 {
    let kv_heads: usize = layers.iter().map(|layer| layer.num_key_value_heads).sum();
    2 * (kv_heads * config.head_dim * kv.bytes()) as u64 * context_len as u64
}
