//! Names of tensors in a GGUF file and the weights they stand for.

use secateur_model::{LayerIdx, WeightId, WeightRole};

/// What a tensor of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// A weight.
    Weight(WeightId),
    /// Divisors of the rotary frequencies: part of the configuration.
    RopeFactors,
}

/// Name of the tensor with the rotary factors.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

const GLOBAL: [(WeightRole, &str); 3] = [
    (WeightRole::EmbedTokens, "token_embd.weight"),
    (WeightRole::FinalNorm, "output_norm.weight"),
    (WeightRole::LmHead, "output.weight"),
];

/// Roles inside a layer in the order in which they are written.
pub(crate) const LAYER: [(WeightRole, &str); 16] = [
    (WeightRole::AttnNorm, "attn_norm.weight"),
    (WeightRole::QProj, "attn_q.weight"),
    (WeightRole::QBias, "attn_q.bias"),
    (WeightRole::KProj, "attn_k.weight"),
    (WeightRole::KBias, "attn_k.bias"),
    (WeightRole::VProj, "attn_v.weight"),
    (WeightRole::VBias, "attn_v.bias"),
    (WeightRole::OProj, "attn_output.weight"),
    (WeightRole::OBias, "attn_output.bias"),
    (WeightRole::MlpNorm, "ffn_norm.weight"),
    (WeightRole::GateProj, "ffn_gate.weight"),
    (WeightRole::GateBias, "ffn_gate.bias"),
    (WeightRole::UpProj, "ffn_up.weight"),
    (WeightRole::UpBias, "ffn_up.bias"),
    (WeightRole::DownProj, "ffn_down.weight"),
    (WeightRole::DownBias, "ffn_down.bias"),
];

/// The name of `id` in a GGUF file.
pub(crate) fn tensor_name(id: WeightId) -> String {
    let part = GLOBAL.iter().chain(&LAYER).find(|(role, _)| *role == id.role).map(|(_, part)| *part);
    let part = part.expect("every role has a name");
    match id.layer_idx {
        Some(layer_idx) => format!("blk.{layer_idx}.{part}"),
        None => part.to_owned(),
    }
}

/// What the tensor `name` stands for; `None` when no decoder we know has it.
pub(crate) fn parse_name(name: &str) -> Option<Known> {
    if name == ROPE_FACTORS {
        return Some(Known::RopeFactors);
    }
    if let Some((role, _)) = GLOBAL.iter().find(|(_, known)| *known == name) {
        return Some(Known::Weight(WeightId::global(*role)));
    }
    let (number, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let (role, _) = LAYER.iter().find(|(_, known)| *known == part)?;
    let layer_idx: LayerIdx = number.parse().ok()?;
    let id = WeightId::layer(layer_idx, *role);
    // One weight has one name: `blk.01.` and `blk.+1.` are not ours.
    (tensor_name(id) == name).then_some(Known::Weight(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let globals = GLOBAL.iter().map(|(role, _)| WeightId::global(*role));
        let layers = LAYER.iter().map(|(role, _)| WeightId::layer(17, *role));
        for id in globals.chain(layers) {
            assert_eq!(parse_name(&tensor_name(id)), Some(Known::Weight(id)), "{id}");
        }
        assert_eq!(parse_name(ROPE_FACTORS), Some(Known::RopeFactors));
    }

    #[test]
    fn other_names_are_unknown() {
        for name in [
            "",
            "blk.",
            "blk.0",
            "blk.0.",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.99999999999999999999999.attn_q.weight",
            "blk.0.attn_q",
            "blk.0.attn_norm.bias",
            "attn_q.weight",
            "blk.0.output.weight",
            "token_embd.bias",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
