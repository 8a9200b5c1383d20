//! `config.json` and `generation_config.json`.

use super::{Planned, not_exportable};
use crate::import::tensor_name;
use crate::{Vocab, WriteError};
use secateur_model::{Architecture, ModelConfig, RopeScaling, WeightId, WeightRole};
use secateur_tensor::DType;
use serde_json::{Value, json};

/// The files as text.
pub(super) struct Described {
    pub(super) config: String,
    pub(super) generation: String,
    pub(super) class: &'static str,
}

/// Describes a model with these tensors.
pub(super) fn describe(
    config: &ModelConfig,
    tensors: &[Planned],
    vocab: &Vocab,
) -> Result<Described, WriteError> {
    let layer = &config.layers[0];
    let biases = Biases::of(config, tensors)?;
    let is_qwen2 = biases == Biases { qkv: true, o: false, mlp: false };
    let (class, kind) = match (is_qwen2, config.architecture) {
        (true, _) => ("Qwen2ForCausalLM", "qwen2"),
        (false, Architecture::Llama | Architecture::Qwen2) => ("LlamaForCausalLM", "llama"),
    };
    if biases.qkv != biases.o && !is_qwen2 {
        return Err(not_exportable("no model class has these biases"));
    }
    let mut text = json!({
        "architectures": [class],
        "model_type": kind,
        "hidden_size": config.hidden_size,
        "intermediate_size": layer.intermediate_size,
        "num_hidden_layers": config.n_layers(),
        "num_attention_heads": layer.num_attention_heads,
        "num_key_value_heads": layer.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": shortest(config.rope_theta),
        "rope_scaling": scaling(config)?,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": torch_dtype(tensors),
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        "pad_token_id": vocab.padding_id,
    });
    if !is_qwen2 {
        text["attention_bias"] = biases.qkv.into();
        text["mlp_bias"] = biases.mlp.into();
    }
    let generation = json!({
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
        "pad_token_id": vocab.padding_id,
    });
    let pretty = |value: &Value| format!("{value:#}\n");
    Ok(Described { config: pretty(&text), generation: pretty(&generation), class })
}

/// A number with as few digits as tell it from its neighbours, as people write it.
fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn scaling(config: &ModelConfig) -> Result<Value, WriteError> {
    match &config.rope_scaling {
        RopeScaling::None => Ok(Value::Null),
        RopeScaling::Linear { factor } => Ok(json!({"rope_type": "linear", "factor": shortest(*factor)})),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => Ok(json!({
            "rope_type": "llama3",
            "factor": shortest(*factor),
            "low_freq_factor": shortest(*low_freq_factor),
            "high_freq_factor": shortest(*high_freq_factor),
            "original_max_position_embeddings": original_max_position_embeddings,
        })),
        RopeScaling::Factors(_) => Err(not_exportable(
            "GGUF has its rotary scaling as a table, and config.json has no place for one",
        )),
    }
}

/// Which biases all layers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Biases {
    qkv: bool,
    o: bool,
    mlp: bool,
}

impl Biases {
    fn of(config: &ModelConfig, tensors: &[Planned]) -> Result<Self, WriteError> {
        use WeightRole::{DownBias, GateBias, KBias, OBias, QBias, UpBias, VBias};
        let has = |layer_idx, role| {
            let name = tensor_name(WeightId::layer(layer_idx, role));
            tensors.iter().any(|tensor| tensor.name == name)
        };
        let all_or_none = |roles: &[WeightRole]| {
            let first = has(0, roles[0]);
            let mut all =
                (0..config.n_layers()).flat_map(|layer_idx| roles.iter().map(move |role| (layer_idx, *role)));
            match all.all(|(layer_idx, role)| has(layer_idx, role) == first) {
                true => Ok(first),
                false => Err(not_exportable("only some of its linears have biases")),
            }
        };
        Ok(Self {
            qkv: all_or_none(&[QBias, KBias, VBias])?,
            o: all_or_none(&[OBias])?,
            mlp: all_or_none(&[GateBias, UpBias, DownBias])?,
        })
    }
}

fn torch_dtype(tensors: &[Planned]) -> &'static str {
    match tensors.iter().find(|tensor| !tensor.is_vector).map(|tensor| tensor.dtype) {
        Some(DType::F16) => "float16",
        Some(DType::BF16) => "bfloat16",
        _ => "float32",
    }
}
