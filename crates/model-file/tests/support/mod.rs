//! A model in memory whose layers can be changed at will.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several test files")]

use secateur_model::{LayerConfig, ModelConfig, WeightError, WeightId, WeightRole, WeightSource};
use secateur_tensor::{DType, WeightMatrix, blocks};
use std::collections::BTreeMap;

pub(crate) struct MemoryModel {
    pub(crate) config: ModelConfig,
    pub(crate) weights: BTreeMap<WeightId, WeightMatrix>,
    /// This weight cannot be read.
    pub(crate) broken: Option<WeightId>,
}

pub(crate) fn quantized(dtype: DType, n_rows: usize, n_cols: usize, values: &[f32]) -> WeightMatrix {
    let mut bytes = vec![0; n_rows * dtype.row_bytes(n_cols).unwrap()];
    blocks::quantize(dtype, values, &mut bytes).unwrap();
    WeightMatrix::new(dtype, n_rows, n_cols, bytes.into()).unwrap()
}

/// The top left corner of a matrix, in F32.
fn corner(matrix: &WeightMatrix, n_rows: usize, n_cols: usize) -> WeightMatrix {
    let all = matrix.to_f32();
    let rows = (0..n_rows).flat_map(|row| &all[row * matrix.n_cols()..row * matrix.n_cols() + n_cols]);
    quantized(DType::F32, n_rows, n_cols, &rows.copied().collect::<Vec<_>>())
}

impl MemoryModel {
    /// Everything `source` has.
    pub(crate) fn copy_of(source: &dyn WeightSource) -> Self {
        let config = source.config().clone();
        let mut weights = BTreeMap::new();
        let layers = (0..config.layers.len()).map(Some);
        for layer_idx in layers.chain([None]) {
            for role in ALL_ROLES {
                let id = WeightId { layer_idx, role };
                if let Some(matrix) = source.weight(id).unwrap() {
                    weights.insert(id, matrix);
                }
            }
        }
        Self { config, weights, broken: None }
    }

    /// Cuts a layer down to `shape` by leaving rows and columns away at the end.
    pub(crate) fn cut(&mut self, layer_idx: usize, shape: LayerConfig) {
        self.config.layers[layer_idx] = shape;
        let hidden = self.config.hidden_size;
        let q_width = shape.num_attention_heads * self.config.head_dim;
        let kv_width = shape.num_key_value_heads * self.config.head_dim;
        let width = shape.intermediate_size;
        for (role, n_rows, n_cols) in [
            (WeightRole::QProj, q_width, hidden),
            (WeightRole::KProj, kv_width, hidden),
            (WeightRole::VProj, kv_width, hidden),
            (WeightRole::OProj, hidden, q_width),
            (WeightRole::GateProj, width, hidden),
            (WeightRole::UpProj, width, hidden),
            (WeightRole::DownProj, hidden, width),
            (WeightRole::QBias, 1, q_width),
            (WeightRole::KBias, 1, kv_width),
            (WeightRole::VBias, 1, kv_width),
            (WeightRole::GateBias, 1, width),
            (WeightRole::UpBias, 1, width),
        ] {
            let id = WeightId::layer(layer_idx, role);
            let Some(matrix) = self.weights.remove(&id) else { continue };
            if n_rows != 0 && n_cols != 0 {
                self.weights.insert(id, corner(&matrix, n_rows, n_cols));
            }
        }
    }
}

pub(crate) const ALL_ROLES: [WeightRole; 19] = [
    WeightRole::EmbedTokens,
    WeightRole::FinalNorm,
    WeightRole::LmHead,
    WeightRole::AttnNorm,
    WeightRole::QProj,
    WeightRole::KProj,
    WeightRole::VProj,
    WeightRole::OProj,
    WeightRole::QBias,
    WeightRole::KBias,
    WeightRole::VBias,
    WeightRole::OBias,
    WeightRole::MlpNorm,
    WeightRole::GateProj,
    WeightRole::UpProj,
    WeightRole::DownProj,
    WeightRole::GateBias,
    WeightRole::UpBias,
    WeightRole::DownBias,
];

impl WeightSource for MemoryModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
        if self.broken == Some(id) {
            return Err(WeightError::Unreadable { id, source: "broken on purpose".into() });
        }
        Ok(self.weights.get(&id).cloned())
    }

    fn give_back_rows(&self, _id: WeightId, _n_rows: usize) {}
}

/// The most that was resident so far.
pub(crate) fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Sets the peak back to what is resident at present.
pub(crate) fn reset_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak_bytes()
}
