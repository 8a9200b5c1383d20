//! `config.json` of a Hugging Face checkpoint. Its defaults are those of the model classes, not ours.

use super::ImportError;
use crate::ModelFileError;
use secateur_model::{Architecture, LayerConfig, ModelConfig, RopeLayout, RopeScaling, WeightRole, limits};
use serde::Deserialize;

/// Window of a Mistral whose config.json names none.
const MISTRAL_WINDOW: u64 = 4096;

/// What config.json says, as far as it matters. Unknown keys are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConfig {
    _name_or_path: Option<String>,
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    /// Absent is not null: the class has a window of its own.
    #[serde(deserialize_with = "present")]
    sliding_window: Option<Option<u64>>,
    use_sliding_window: Option<bool>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde::de::IgnoredAny>,
}

/// Tells `null` from a key that is not there.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    partial_rotary_factor: Option<f64>,
}

/// Which linears of a layer have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Biases {
    pub(super) qkv: bool,
    pub(super) o: bool,
    pub(super) mlp: bool,
}

impl Biases {
    /// Whether there must be the bias `role`; `None` when it is no bias.
    pub(super) fn wants(self, role: WeightRole) -> Option<bool> {
        match role {
            WeightRole::QBias | WeightRole::KBias | WeightRole::VBias => Some(self.qkv),
            WeightRole::OBias => Some(self.o),
            WeightRole::GateBias | WeightRole::UpBias | WeightRole::DownBias => Some(self.mlp),
            _ => None,
        }
    }
}

/// The configuration of a checkpoint, checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) model: ModelConfig,
    pub(super) biases: Biases,
}

/// Reads config.json.
pub(super) fn read(json: &[u8]) -> Result<Checked, ModelFileError> {
    let raw: RawConfig =
        serde_json::from_slice(json).map_err(|error| ImportError::Json(error.to_string()))?;
    let class = class_of(&raw)?;
    refuse_unsupported(&raw, class)?;
    let layer = read_layer(&raw, class)?;
    let hidden_size = size(raw.hidden_size, "hidden_size")?;
    let head_dim = match raw.head_dim {
        Some(_) => size(raw.head_dim, "head_dim")?,
        None => hidden_size.checked_div(layer.num_attention_heads).unwrap_or(0),
    };
    let n_layers = size(raw.num_hidden_layers, "num_hidden_layers")?;
    if limits::MAX_LAYERS < n_layers {
        let (value, limit) = (n_layers as u64, limits::MAX_LAYERS as u64);
        return Err(ModelFileError::TooLarge { what: "the number of layers", value, limit });
    }
    let rope = raw.rope_parameters.clone().or_else(|| raw.rope_scaling.clone()).unwrap_or_default();
    let attention = raw.attention_bias.unwrap_or(false);
    let model = ModelConfig {
        architecture: if class == Class::Qwen2 { Architecture::Qwen2 } else { Architecture::Llama },
        name: hub_name(raw._name_or_path.as_deref().unwrap_or_default()),
        hidden_size,
        vocab_size: size(raw.vocab_size, "vocab_size")?,
        head_dim,
        max_position_embeddings: size(raw.max_position_embeddings, "max_position_embeddings")?,
        // What the classes take when the file says nothing.
        rms_norm_eps: float(raw.rms_norm_eps.or(Some(1e-6)), "rms_norm_eps")?,
        rope_theta: float(rope.rope_theta.or(raw.rope_theta).or(Some(10_000.0)), "rope_theta")?,
        rope_layout: RopeLayout::Halves,
        rope_scaling: read_scaling(&rope)?,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        layers: vec![layer; n_layers],
    };
    model.validate()?;
    let biases = Biases {
        qkv: class == Class::Qwen2 || attention,
        o: class != Class::Qwen2 && attention,
        mlp: raw.mlp_bias.unwrap_or(false),
    };
    Ok(Checked { model, biases })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Llama,
    Mistral,
    Qwen2,
}

fn class_of(raw: &RawConfig) -> Result<Class, ImportError> {
    let named = raw.architectures.as_ref().and_then(|names| names.first()).map(String::as_str);
    match (named, raw.model_type.as_deref()) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Ok(Class::Llama),
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => Ok(Class::Mistral),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Ok(Class::Qwen2),
        (Some(other), _) | (None, Some(other)) => Err(ImportError::Class(other.chars().take(80).collect())),
        (None, None) => Err(key("architectures", "the name of a model class")),
    }
}

fn refuse_unsupported(raw: &RawConfig, class: Class) -> Result<(), ModelFileError> {
    let refuse = |what: String| Err(ModelFileError::Unsupported(what));
    if raw.quantization_config.is_some() {
        return refuse("quantised tensors (`quantization_config`)".to_owned());
    }
    if let Some(act) = raw.hidden_act.as_deref().filter(|&act| act != "silu" && act != "swish") {
        return refuse(format!("the activation `{}`", act.chars().take(40).collect::<String>()));
    }
    let context = raw.max_position_embeddings.unwrap_or(u64::MAX);
    let slides = match class {
        Class::Llama => false,
        Class::Mistral => {
            raw.sliding_window.unwrap_or(Some(MISTRAL_WINDOW)).is_some_and(|window| window < context)
        }
        Class::Qwen2 => raw.use_sliding_window == Some(true),
    };
    if slides {
        return refuse("a sliding window".to_owned());
    }
    let rope = raw.rope_parameters.as_ref().and_then(|rope| rope.partial_rotary_factor);
    if [raw.partial_rotary_factor, rope].into_iter().flatten().any(|share| share != 1.0) {
        return refuse("rotary embedding of a part of each head".to_owned());
    }
    Ok(())
}

fn read_layer(raw: &RawConfig, class: Class) -> Result<LayerConfig, ImportError> {
    let num_attention_heads = size(raw.num_attention_heads, "num_attention_heads")?;
    let num_key_value_heads = match raw.num_key_value_heads {
        Some(_) => size(raw.num_key_value_heads, "num_key_value_heads")?,
        None if class == Class::Llama => num_attention_heads,
        None => return Err(key("num_key_value_heads", "a whole number")),
    };
    let intermediate_size = size(raw.intermediate_size, "intermediate_size")?;
    Ok(LayerConfig { num_attention_heads, num_key_value_heads, intermediate_size })
}

fn read_scaling(rope: &RawRope) -> Result<RopeScaling, ModelFileError> {
    let factor = || float(rope.factor, "rope_scaling.factor");
    match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
        None if rope.factor.is_some() => Err(key("rope_scaling.rope_type", "named beside a factor").into()),
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => match factor()? {
            1.0 => Ok(RopeScaling::None),
            factor => Ok(RopeScaling::Linear { factor }),
        },
        Some("llama3") => {
            let low_freq_factor = float(rope.low_freq_factor, "rope_scaling.low_freq_factor")?;
            let high_freq_factor = float(rope.high_freq_factor, "rope_scaling.high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(key("rope_scaling.high_freq_factor", "above low_freq_factor").into());
            }
            let name = "rope_scaling.original_max_position_embeddings";
            let context = rope.original_max_position_embeddings.and_then(|length| u32::try_from(length).ok());
            let context = context.filter(|&length| 0 < length);
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context.ok_or_else(|| key(name, "a context length"))?,
            })
        }
        Some(other) => {
            let name: String = other.chars().take(40).collect();
            Err(ModelFileError::Unsupported(format!("rotary scaling `{name}`")))
        }
    }
}

/// The last part of a name such as `owner/model`; paths of somebody's disk say nothing.
fn hub_name(name: &str) -> String {
    let fits = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        !part.is_empty() && part.len() <= 96 && part.chars().all(plain) && !part.starts_with('.')
    };
    match name.split_once('/') {
        Some((owner, model)) if fits(owner) && fits(model) => model.to_owned(),
        _ => String::new(),
    }
}

fn key(key: &str, want: &'static str) -> ImportError {
    ImportError::Key { key: key.to_owned(), want }
}

/// A size; those beyond every limit become one that validation refuses.
fn size(value: Option<u64>, name: &str) -> Result<usize, ImportError> {
    let value = value.ok_or_else(|| key(name, "a whole number"))?;
    Ok(usize::try_from(value.min(u64::from(u32::MAX))).unwrap_or(usize::MAX))
}

fn float(value: Option<f64>, name: &str) -> Result<f32, ImportError> {
    let value = value.map(|value| value as f32).filter(|value| value.is_finite() && 0.0 < *value);
    value.ok_or_else(|| key(name, "positive and finite"))
}
