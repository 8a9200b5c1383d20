//! Arithmetic of memory: how many bytes a model of a given shape needs while it serves.

use crate::{LayerConfig, ModelConfig, WeightRole};
use secateur_tensor::DType;

/// How keys and values are kept between tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvDType {
    /// 4 bytes each: exact.
    F32,
    /// 2 bytes each: the default for serving.
    #[default]
    F16,
    /// 34 bytes for 32, as ggml stores `q8_0`: for heads of whole groups of 32.
    Q8_0,
}

impl KvDType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// Bytes of the keys or the values of one token in one head, or `None` when heads of this width cannot be kept so.
    #[must_use]
    pub const fn row_bytes(self, head_dim: usize) -> Option<usize> {
        let dtype = match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Q8_0 => DType::Q8_0,
        };
        dtype.row_bytes(head_dim)
    }

    /// Name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kv| kv.name().eq_ignore_ascii_case(name))
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
        let parts = [self.kv_cache_bytes, self.activations_bytes, self.runtime_bytes];
        parts.into_iter().fold(self.weights_bytes, u64::saturating_add)
    }
}

/// Storage dtypes of one layer's matrices, in the order of [`WeightRole::LAYER_MATRICES`].
///
/// Files may mix dtypes, even within a layer; the entries of absent matrices do not matter.
pub type LayerDTypes = [DType; WeightRole::LAYER_MATRICES.len()];

/// Bytes of a layer's matrices with every matrix in `dtype`; a row that does not divide into blocks
/// counts as F16, which is what the writer stores then.
#[must_use]
pub fn layer_bytes(config: &ModelConfig, layer: &LayerConfig, dtype: DType) -> u64 {
    mixed_layer_bytes(config, layer, &[dtype; WeightRole::LAYER_MATRICES.len()])
}

/// As [`layer_bytes`], with a dtype for each matrix.
#[must_use]
pub fn mixed_layer_bytes(config: &ModelConfig, layer: &LayerConfig, dtypes: &LayerDTypes) -> u64 {
    let hidden = config.hidden_size;
    let q_width = layer.num_attention_heads * config.head_dim;
    let kv_width = layer.num_key_value_heads * config.head_dim;
    let width = layer.intermediate_size;
    let shapes = [
        (q_width, hidden),
        (kv_width, hidden),
        (kv_width, hidden),
        (hidden, q_width),
        (width, hidden),
        (width, hidden),
        (hidden, width),
    ];
    let bytes = |((n_rows, n_cols), dtype): ((usize, usize), &DType)| {
        let row = dtype.row_bytes(n_cols).unwrap_or(2 * n_cols);
        n_rows as u64 * row as u64
    };
    shapes.into_iter().zip(dtypes).map(bytes).sum()
}

/// The dtype in which a changed matrix of `dtype` is stored when the source's dtype is to be kept.
///
/// Float types and Q8_0, Q4_0 and Q4_1 stay; what can be read but not written becomes Q8_0, so that a
/// fitted matrix does not lose what was gained by fitting it.
#[must_use]
pub const fn writable_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => dtype,
        DType::Q5_0 | DType::Q5_1 | DType::Q2_K | DType::Q3_K | DType::Q4_K | DType::Q5_K | DType::Q6_K => {
            DType::Q8_0
        }
    }
}

/// Bytes of keys and values for `context_len` tokens over `layers`; those of f16 where heads of this width cannot be kept
/// as asked (which planner and engine refuse).
#[must_use]
pub fn kv_cache_bytes(config: &ModelConfig, layers: &[LayerConfig], context_len: usize, kv: KvDType) -> u64 {
    let kv_heads: usize = layers.iter().map(|layer| layer.num_key_value_heads).sum();
    let row_bytes = kv.row_bytes(config.head_dim).unwrap_or(2 * config.head_dim);
    2 * (kv_heads * row_bytes) as u64 * context_len as u64
}

/// Bytes of a forward pass over `n_tokens` tokens at once, all f32: one layer's buffers and the logits.
///
/// Live together are three copies of the hidden states (input, normed, sum), and the wider of the two
/// sub-layers: queries, keys, values and mixed heads, or the two halves of the gated MLP. The logits
/// stand twice, since a sampler works on a copy.
#[must_use]
pub fn activations_bytes(config: &ModelConfig, layers: &[LayerConfig], n_tokens: usize) -> u64 {
    let widest = |layer: &LayerConfig| {
        let attn = 2 * (layer.num_attention_heads + layer.num_key_value_heads) * config.head_dim;
        attn.max(2 * layer.intermediate_size)
    };
    let sub_layer = layers.iter().map(widest).max().unwrap_or(0);
    let per_token = 3 * config.hidden_size + sub_layer;
    4 * (n_tokens as u64 * per_token as u64 + 2 * config.vocab_size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, RopeLayout, RopeScaling};

    fn config() -> ModelConfig {
        let layer = LayerConfig { num_attention_heads: 9, num_key_value_heads: 3, intermediate_size: 1536 };
        ModelConfig {
            architecture: Architecture::Llama,
            name: String::new(),
            hidden_size: 576,
            vocab_size: 49152,
            head_dim: 64,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-5,
            rope_theta: 1e5,
            rope_layout: RopeLayout::Interleaved,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: true,
            layers: vec![layer; 30],
        }
    }

    #[test]
    fn bytes_of_a_layer_follow_its_dtypes() {
        let config = config();
        let layer = &config.layers[0];
        let params = config.layer_params(layer);
        assert_eq!(layer_bytes(&config, layer, DType::F32), 4 * params);
        assert_eq!(layer_bytes(&config, layer, DType::Q4_1), params / 32 * 20);
        let mut dtypes = [DType::Q4_0; 7];
        dtypes[6] = DType::Q6_K;
        let down = 576 * 1536;
        let want = (params - down) / 32 * 18 + down / 256 * 210;
        assert_eq!(mixed_layer_bytes(&config, layer, &dtypes), want);
        // 576 columns are no whole number of 256-blocks: such rows are stored as F16.
        let q6 = layer_bytes(&config, layer, DType::Q6_K);
        assert_eq!(q6, (params - down) * 2 + down / 256 * 210);
    }

    #[test]
    fn a_written_dtype_is_its_own_replacement_and_never_less_precise() {
        for dtype in DType::ALL {
            let written = writable_dtype(dtype);
            assert_eq!(writable_dtype(written), written);
            let rate = |dtype: DType| dtype.block_bytes() as f64 / dtype.block_len() as f64;
            assert!(rate(dtype) <= rate(written), "{dtype} -> {written}");
        }
    }

    #[test]
    fn cache_and_activations_of_the_reference_shape() {
        let config = config();
        assert_eq!(kv_cache_bytes(&config, &config.layers, 2048, KvDType::F16), 2 * 30 * 192 * 2 * 2048);
        assert_eq!(kv_cache_bytes(&config, &config.layers, 2048, KvDType::Q8_0), 2 * 30 * 3 * 68 * 2048);
        assert_eq!(KvDType::Q8_0.row_bytes(80), None);
        let want = 4 * (256 * (3 * 576 + 2 * 1536) + 2 * 49152);
        assert_eq!(activations_bytes(&config, &config.layers, 256), want);
        assert_eq!(activations_bytes(&config, &[], 1), 4 * (3 * 576 + 2 * 49152));
    }
}
