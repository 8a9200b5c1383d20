//! Metadata of the written file: the base's, with everything about the shape set anew.

use super::WriteOptions;
use super::plan::Plan;
use crate::gguf::value::{NumberArray, Value};
use crate::{Metadata, ModelFileError, WriteError};
use secateur_model::{LayerConfig, ModelConfig, RopeScaling};
use secateur_tensor::DType;

/// Version of the block formats.
const QUANTIZATION_VERSION: u32 = 2;

/// A size of a layer.
type Field = fn(&LayerConfig) -> usize;

/// Returns the metadata to be written.
pub(super) fn export_metadata(
    base: &Metadata,
    config: &ModelConfig,
    plan: &Plan,
    options: &WriteOptions,
) -> Result<Metadata, WriteError> {
    let mut metadata = base.clone();
    let unusable = |error: ModelFileError| WriteError::NotExportable(format!("base metadata: {error}"));
    let old = base.text("general.architecture").map_err(unusable)?.map(str::to_owned);
    rename_architecture(&mut metadata, old.as_deref(), plan.architecture);
    set_shape(&mut metadata, config, plan)?;
    set_rope(&mut metadata, config, plan.architecture);
    if let Some(file_type) = options.dtype.map(file_type) {
        metadata.set("general.file_type", file_type);
    }
    if plan.tensors.iter().any(|tensor| 1 < tensor.dtype.block_len()) {
        metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    }
    for (key, value) in &options.extra {
        metadata.set(key, value.clone());
    }
    Ok(metadata)
}

/// Puts the architecture first-hand into the keys, and drops keys that describe another file.
fn rename_architecture(metadata: &mut Metadata, old: Option<&str>, new: &str) {
    let prefix = format!("{new}.");
    if let Some(old) = old.filter(|&old| old != new) {
        // Keys of the new architecture in a file of the old one mean nothing, and would clash.
        metadata.retain(|key| !key.starts_with(&prefix));
        metadata.rename_prefix(&format!("{old}."), &prefix);
    }
    metadata.retain(|key| !key.starts_with("split."));
    metadata.set("general.architecture", new);
}

fn set_shape(metadata: &mut Metadata, config: &ModelConfig, plan: &Plan) -> Result<(), WriteError> {
    let arch = plan.architecture;
    let number = |value: usize| {
        u32::try_from(value).map_err(|_| WriteError::NotExportable(format!("a size of {value} is too large")))
    };
    let mut set = |key: &str, value: Value| metadata.set(&format!("{arch}.{key}"), value);
    set("block_count", number(plan.layers.len())?.into());
    set("context_length", number(config.max_position_embeddings)?.into());
    set("embedding_length", number(config.hidden_size)?.into());
    set("vocab_size", number(config.vocab_size)?.into());
    let fields: [(&str, Field); 3] = [
        ("feed_forward_length", |layer| layer.intermediate_size),
        ("attention.head_count", |layer| layer.num_attention_heads),
        ("attention.head_count_kv", |layer| layer.num_key_value_heads),
    ];
    for (key, field) in fields {
        let values = plan.layers.iter().map(|layer| number(field(layer))).collect::<Result<Vec<_>, _>>()?;
        let value = match (arch, values.first()) {
            ("llama" | "qwen2", Some(&value)) => value.into(),
            _ => Value::Numbers(NumberArray::from_u32s(&values)),
        };
        set(key, value);
    }
    let head_dim = number(config.head_dim)?;
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        set(key, head_dim.into());
    }
    set("attention.layer_norm_rms_epsilon", config.rms_norm_eps.into());
    // Without it a stock runtime takes 10000 and says nothing.
    set("rope.freq_base", config.rope_theta.into());
    Ok(())
}

fn set_rope(metadata: &mut Metadata, config: &ModelConfig, arch: &str) {
    let prefix = format!("{arch}.rope.scal");
    metadata.retain(|key| !key.starts_with(&prefix));
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        metadata.set(&format!("{arch}.rope.scaling.type"), "linear");
        metadata.set(&format!("{arch}.rope.scaling.factor"), factor);
    }
}

/// `general.file_type` of llama.cpp for a file mostly in `dtype`.
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2_K => 10,
        DType::Q3_K => 12,
        DType::Q4_K => 15,
        DType::Q5_K => 17,
        DType::Q6_K => 18,
        DType::BF16 => 32,
    }
}
