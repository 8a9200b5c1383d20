//! Hugging Face's names of tensors and the weights they stand for.

use secateur_model::{LayerIdx, WeightId, WeightRole};

const GLOBAL: [(WeightRole, &str); 3] = [
    (WeightRole::EmbedTokens, "model.embed_tokens.weight"),
    (WeightRole::FinalNorm, "model.norm.weight"),
    (WeightRole::LmHead, "lm_head.weight"),
];

const LAYER: [(WeightRole, &str); 16] = [
    (WeightRole::AttnNorm, "input_layernorm.weight"),
    (WeightRole::QProj, "self_attn.q_proj.weight"),
    (WeightRole::QBias, "self_attn.q_proj.bias"),
    (WeightRole::KProj, "self_attn.k_proj.weight"),
    (WeightRole::KBias, "self_attn.k_proj.bias"),
    (WeightRole::VProj, "self_attn.v_proj.weight"),
    (WeightRole::VBias, "self_attn.v_proj.bias"),
    (WeightRole::OProj, "self_attn.o_proj.weight"),
    (WeightRole::OBias, "self_attn.o_proj.bias"),
    (WeightRole::MlpNorm, "post_attention_layernorm.weight"),
    (WeightRole::GateProj, "mlp.gate_proj.weight"),
    (WeightRole::GateBias, "mlp.gate_proj.bias"),
    (WeightRole::UpProj, "mlp.up_proj.weight"),
    (WeightRole::UpBias, "mlp.up_proj.bias"),
    (WeightRole::DownProj, "mlp.down_proj.weight"),
    (WeightRole::DownBias, "mlp.down_proj.bias"),
];

/// The name of `id` in a checkpoint.
pub(crate) fn tensor_name(id: WeightId) -> String {
    let part = GLOBAL.iter().chain(&LAYER).find(|(role, _)| *role == id.role).map(|(_, part)| *part);
    let part = part.expect("every role has a name");
    match id.layer_idx {
        Some(layer_idx) => format!("model.layers.{layer_idx}.{part}"),
        None => part.to_owned(),
    }
}

/// The weight called `name`; `None` when no decoder we know has it.
pub(super) fn parse(name: &str) -> Option<WeightId> {
    if let Some((role, _)) = GLOBAL.iter().find(|(_, known)| *known == name) {
        return Some(WeightId::global(*role));
    }
    let (layer_idx, part) = split_layer(name)?;
    let (role, _) = LAYER.iter().find(|(_, known)| *known == part)?;
    Some(WeightId::layer(layer_idx, *role))
}

/// The layer and the rest of a name below `model.layers.`; one layer has one spelling.
pub(super) fn split_layer(name: &str) -> Option<(LayerIdx, &str)> {
    let (number, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer_idx: LayerIdx = number.parse().ok()?;
    (layer_idx.to_string() == number).then_some((layer_idx, part))
}

/// Constants that older checkpoints carry and that follow from the configuration.
pub(super) fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let globals = GLOBAL.iter().map(|(role, _)| WeightId::global(*role));
        let layers = LAYER.iter().map(|(role, _)| WeightId::layer(17, *role));
        for id in globals.chain(layers) {
            assert_eq!(parse(&tensor_name(id)), Some(id), "{id}");
        }
        for name in [
            "",
            "model.layers.0",
            "model.layers.00.mlp.up_proj.weight",
            "model.layers.+1.x",
            "model.norm.bias",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
