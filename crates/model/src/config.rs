//! Model configuration with Hugging Face keys, per layer where layers may differ.

/// Families of decoders that share the Llama graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `llama` in GGUF; also what a model with uneven layers is read as (`deci`).
    Llama,
    /// `qwen2`: biases on q, k and v, rotary halves instead of pairs.
    Qwen2,
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Neighbours `(2i, 2i+1)`: GGUF `llama`, whose q and k rows are permuted for it.
    Interleaved,
    /// Halves `(i, i + head_dim/2)`: Hugging Face checkpoints and GGUF `qwen2`.
    Halves,
}

/// Stretching of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Positions divided by this factor.
    Linear {
        /// Divisor of the position.
        factor: f32,
    },
    /// Llama-3 rule: long wavelengths are divided by `factor`, middle ones blended.
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f32,
        /// Wavelength bound (low).
        low_freq_factor: f32,
        /// Wavelength bound (high).
        high_freq_factor: f32,
        /// Context the model was trained with.
        original_max_position_embeddings: u32,
    },
    /// Divisors given one for each rotary pair (`rope_freqs.weight` in GGUF): `[head_dim / 2]`.
    Factors(Vec<f32>),
}

/// What one layer looks like. Both parts may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerConfig {
    /// Query heads; 0 = the layer has no attention.
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// MLP width; 0 = the layer has no MLP.
    pub intermediate_size: usize,
}

impl LayerConfig {
    /// Query heads that share one key/value head; 0 without attention.
    #[must_use]
    pub fn heads_per_kv_group(&self) -> usize {
        self.num_attention_heads.checked_div(self.num_key_value_heads).unwrap_or(0)
    }
}

/// Configuration of a whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Human name, may be empty.
    pub name: String,
    /// Residual width.
    pub hidden_size: usize,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest context the model was trained for.
    pub max_position_embeddings: usize,
    /// Added under the root in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Which elements rotate together.
    pub rope_layout: RopeLayout,
    /// Frequency stretching.
    pub rope_scaling: RopeScaling,
    /// The output head is the token table.
    pub tie_word_embeddings: bool,
    /// Layers in order.
    pub layers: Vec<LayerConfig>,
}

/// Why a configuration is not a model we can run.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// A value is missing, zero or too large.
    #[error("`{key}` is {value}, allowed is {allowed}")]
    Range {
        /// Configuration key.
        key: &'static str,
        /// What was found.
        value: u64,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// Query heads are no multiple of key/value heads.
    #[error("layer {layer_idx}: {heads} query heads do not divide into {kv_heads} key/value heads")]
    Heads {
        /// Layer.
        layer_idx: usize,
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// A float that must be positive and finite is not.
    #[error("`{key}` must be positive and finite")]
    NotFinite {
        /// Configuration key.
        key: &'static str,
    },
}

/// Limits on untrusted configurations; generous, but nothing beyond them is ever allocated.
pub mod limits {
    /// Layers.
    pub const MAX_LAYERS: usize = 512;
    /// Residual width, head width times heads, MLP width.
    pub const MAX_WIDTH: usize = 1 << 18;
    /// Vocabulary.
    pub const MAX_VOCAB: usize = 1 << 20;
    /// Heads in a layer.
    pub const MAX_HEADS: usize = 1024;
    /// Width of a head.
    pub const MAX_HEAD_DIM: usize = 1024;
    /// Context length.
    pub const MAX_CONTEXT: usize = 1 << 24;
}

impl ModelConfig {
    /// Checks every field against [`limits`] and against each other.
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |key, value: usize, max: usize, allowed| {
            let ok = 1 <= value && value <= max;
            if ok { Ok(()) } else { Err(ConfigError::Range { key, value: value as u64, allowed }) }
        };
        range("hidden_size", self.hidden_size, limits::MAX_WIDTH, "1 to 262144")?;
        range("vocab_size", self.vocab_size, limits::MAX_VOCAB, "1 to 1048576")?;
        range("head_dim", self.head_dim, limits::MAX_HEAD_DIM, "1 to 1024")?;
        range("max_position_embeddings", self.max_position_embeddings, limits::MAX_CONTEXT, "1 to 16777216")?;
        range("num_hidden_layers", self.layers.len(), limits::MAX_LAYERS, "1 to 512")?;
        if !self.head_dim.is_multiple_of(2) {
            let value = self.head_dim as u64;
            return Err(ConfigError::Range { key: "head_dim", value, allowed: "even numbers" });
        }
        let positive = |key, value: f32| {
            if value.is_finite() && 0.0 < value { Ok(()) } else { Err(ConfigError::NotFinite { key }) }
        };
        positive("rms_norm_eps", self.rms_norm_eps)?;
        positive("rope_theta", self.rope_theta)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let heads = layer.num_attention_heads;
            let kv_heads = layer.num_key_value_heads;
            if limits::MAX_HEADS < heads {
                let value = heads as u64;
                return Err(ConfigError::Range { key: "num_attention_heads", value, allowed: "0 to 1024" });
            }
            if limits::MAX_WIDTH < layer.intermediate_size {
                let value = layer.intermediate_size as u64;
                return Err(ConfigError::Range { key: "intermediate_size", value, allowed: "0 to 262144" });
            }
            let paired = (heads == 0) == (kv_heads == 0);
            if !paired || (kv_heads != 0 && !heads.is_multiple_of(kv_heads)) {
                return Err(ConfigError::Heads { layer_idx, heads, kv_heads });
            }
        }
        Ok(())
    }

    /// Number of layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// True when all layers look alike, so that any stock runtime can load the model.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        self.layers.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Matrix parameters of one layer with this shape (norms and biases not counted).
    #[must_use]
    pub fn layer_params(&self, layer: &LayerConfig) -> u64 {
        let hidden = self.hidden_size as u64;
        let q_width = (layer.num_attention_heads * self.head_dim) as u64;
        let kv_width = (layer.num_key_value_heads * self.head_dim) as u64;
        2 * hidden * q_width + 2 * hidden * kv_width + 3 * hidden * layer.intermediate_size as u64
    }

    /// Matrix parameters of all layers: the base of every [`crate::PruneRatio`].
    #[must_use]
    pub fn all_layer_params(&self) -> u64 {
        self.layers.iter().map(|layer| self.layer_params(layer)).sum()
    }

    /// KV heads over all layers: the KV cache is proportional to it.
    #[must_use]
    pub fn total_kv_heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.num_key_value_heads).sum()
    }
}
