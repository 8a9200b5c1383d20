//! Model configuration from GGUF metadata: architectures `llama`, `qwen2` and `deci`.

use crate::{Metadata, ModelFileError};
use secateur_model::{Architecture, LayerConfig, ModelConfig, RopeLayout, RopeScaling, limits};

/// Base of the rotary frequencies where the file names none.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;

/// What the tensors of the file say about the configuration.
#[derive(Clone, Debug)]
pub(crate) struct TensorFacts {
    /// Rows of the token table.
    pub(crate) vocab_size: usize,
    /// The file has an output head of its own.
    pub(crate) has_head: bool,
    /// Rotary factors.
    pub(crate) rope_factors: Option<Vec<f32>>,
}

/// Reads and validates the configuration.
pub(crate) fn read_config(metadata: &Metadata, facts: TensorFacts) -> Result<ModelConfig, ModelFileError> {
    let key = "general.architecture";
    let name = Metadata::require(key, metadata.text(key)?)?;
    let (architecture, rope_layout) = match name {
        "llama" | "deci" => (Architecture::Llama, RopeLayout::Interleaved),
        "qwen2" => (Architecture::Qwen2, RopeLayout::Halves),
        other => return Err(ModelFileError::Architecture(other.to_owned())),
    };
    let keys = Keys { metadata, arch: name };
    if keys.optional_size("expert_count")?.is_some_and(|count| count != 0) {
        return Err(ModelFileError::Unsupported("a mixture of experts".to_owned()));
    }
    let hidden_size = keys.size("embedding_length")?;
    let layers = read_layers(&keys)?;
    let head_dim = read_head_dim(&keys, hidden_size, &layers)?;
    let config = ModelConfig {
        architecture,
        name: metadata.text("general.name")?.unwrap_or_default().to_owned(),
        hidden_size,
        vocab_size: facts.vocab_size,
        head_dim,
        max_position_embeddings: keys.size("context_length")?,
        rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
        rope_theta: keys.optional_float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
        rope_layout,
        rope_scaling: read_rope_scaling(&keys, facts.rope_factors, head_dim)?,
        tie_word_embeddings: !facts.has_head,
        layers,
    };
    config.validate()?;
    Ok(config)
}

/// Metadata below the prefix of an architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelFileError> {
        Ok(self.metadata.uint(&self.full(key))?.map(clamp))
    }

    fn size(&self, key: &str) -> Result<usize, ModelFileError> {
        Metadata::require(&self.full(key), self.optional_size(key)?)
    }

    fn optional_float(&self, key: &str) -> Result<Option<f32>, ModelFileError> {
        Ok(self.metadata.float(&self.full(key))?.map(|value| value as f32))
    }

    fn float(&self, key: &str) -> Result<f32, ModelFileError> {
        Metadata::require(&self.full(key), self.optional_float(key)?)
    }

    fn optional_per_layer(&self, key: &str, n_layers: usize) -> Result<Option<Vec<usize>>, ModelFileError> {
        let values = self.metadata.uint_for_each(&self.full(key), n_layers)?;
        Ok(values.map(|values| values.into_iter().map(clamp).collect()))
    }

    fn per_layer(&self, key: &str, n_layers: usize) -> Result<Vec<usize>, ModelFileError> {
        Metadata::require(&self.full(key), self.optional_per_layer(key, n_layers)?)
    }
}

/// Sizes beyond every limit become a size that validation refuses.
fn clamp(value: u64) -> usize {
    usize::try_from(value.min(u64::from(u32::MAX))).unwrap_or(usize::MAX)
}

fn read_layers(keys: &Keys<'_>) -> Result<Vec<LayerConfig>, ModelFileError> {
    let n_layers = keys.size("block_count")?;
    if limits::MAX_LAYERS < n_layers {
        let (value, limit) = (n_layers as u64, limits::MAX_LAYERS as u64);
        return Err(ModelFileError::TooLarge { what: "the number of layers", value, limit });
    }
    let widths = keys.per_layer("feed_forward_length", n_layers)?;
    let heads = keys.per_layer("attention.head_count", n_layers)?;
    let kv_heads = keys.optional_per_layer("attention.head_count_kv", n_layers)?;
    let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
    let layers = widths.into_iter().zip(heads).zip(kv_heads);
    Ok(layers
        .map(|((intermediate_size, num_attention_heads), num_key_value_heads)| LayerConfig {
            num_attention_heads,
            num_key_value_heads,
            intermediate_size,
        })
        .collect())
}

/// Width of a head: `key_length`, or the residual width shared among the heads of the first layer.
fn read_head_dim(
    keys: &Keys<'_>,
    hidden_size: usize,
    layers: &[LayerConfig],
) -> Result<usize, ModelFileError> {
    let key_length = keys.optional_size("attention.key_length")?;
    let first_heads = layers.first().map_or(0, |layer| layer.num_attention_heads);
    let default = hidden_size.checked_div(first_heads);
    let head_dim = Metadata::require(&keys.full("attention.key_length"), key_length.or(default))?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.optional_size(key)?.is_some_and(|length| length != head_dim) {
            let what = format!("a {} other than the width of a head ({head_dim})", keys.full(key));
            return Err(ModelFileError::Unsupported(what));
        }
    }
    Ok(head_dim)
}

fn read_rope_scaling(
    keys: &Keys<'_>,
    factors: Option<Vec<f32>>,
    head_dim: usize,
) -> Result<RopeScaling, ModelFileError> {
    let kind = keys.metadata.text(&keys.full("rope.scaling.type"))?;
    let scale = keys.optional_float("rope.scaling.factor")?;
    // Zero means that there is no scaling, as in llama.cpp.
    let scale = scale.or(keys.optional_float("rope.scale_linear")?).filter(|&factor| factor != 0.0);
    let linear = match kind {
        Some("none") => None,
        None | Some("linear") => scale.filter(|&factor| factor != 1.0),
        Some(other) => return Err(ModelFileError::Unsupported(format!("rotary scaling `{other}`"))),
    };
    if linear.is_some_and(|factor| !factor.is_finite() || factor <= 0.0) {
        let key = keys.full("rope.scaling.factor");
        return Err(ModelFileError::KeyType { key, want: "positive and finite" });
    }
    match (linear, factors) {
        (None, None) => Ok(RopeScaling::None),
        (Some(factor), None) => Ok(RopeScaling::Linear { factor }),
        (None, Some(factors)) => {
            let name = crate::names::ROPE_FACTORS.to_owned();
            if factors.len() != head_dim / 2 {
                let (want, got) = (vec![head_dim / 2], vec![factors.len()]);
                return Err(ModelFileError::TensorShape { name, want, got });
            }
            if factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
                return Err(ModelFileError::RopeFactors(name));
            }
            Ok(RopeScaling::Factors(factors))
        }
        (Some(_), Some(_)) => {
            Err(ModelFileError::Unsupported("linear rotary scaling together with factors".to_owned()))
        }
    }
}
