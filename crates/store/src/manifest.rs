//! What an entry says about itself: `manifest.json`. Mirrors of the core's types, so that those may change.

use crate::StoreError;
use secateur_model::{Footprint, LayerConfig, PlanAction, PrunePlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version that this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Largest manifest that is read; the report of a deep model takes a few hundred KiB.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// Bytes of a serving process, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FootprintRecord {
    /// Mapped weights.
    pub weights_bytes: u64,
    /// Keys and values at the full context.
    pub kv_cache_bytes: u64,
    /// Buffers of a forward pass.
    pub activations_bytes: u64,
    /// The program itself.
    pub runtime_bytes: u64,
    /// Sum.
    pub total_bytes: u64,
}

impl From<&Footprint> for FootprintRecord {
    fn from(footprint: &Footprint) -> Self {
        Self {
            weights_bytes: footprint.weights_bytes,
            kv_cache_bytes: footprint.kv_cache_bytes,
            activations_bytes: footprint.activations_bytes,
            runtime_bytes: footprint.runtime_bytes,
            total_bytes: footprint.total_bytes(),
        }
    }
}

/// Shape of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Query heads; 0 without attention.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// MLP width; 0 without MLP.
    pub intermediate_size: usize,
}

impl From<&LayerConfig> for LayerRecord {
    fn from(layer: &LayerConfig) -> Self {
        Self {
            num_attention_heads: layer.num_attention_heads,
            num_key_value_heads: layer.num_key_value_heads,
            intermediate_size: layer.intermediate_size,
        }
    }
}

fn keep() -> String {
    "keep".to_owned()
}

/// A decision of the planner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// `untouched` or `prune`.
    pub action: String,
    /// `quality` or `compatible`.
    pub policy: String,
    /// Share of decoder-layer parameters to remove.
    pub ratio: f64,
    /// Storage dtype of the result; `keep` for the source's.
    pub dtype: String,
    /// Storage dtype of token table and output head; `keep` when they are stored as `dtype` says.
    #[serde(default = "keep")]
    pub table_dtype: String,
    /// Layers to remove whole.
    pub layers_to_remove: Vec<usize>,
    /// Planned shape of each remaining layer.
    pub layers: Vec<LayerRecord>,
    /// Longest context there is memory for.
    pub context_len: usize,
    /// How keys and values are kept.
    pub kv_dtype: String,
    /// What was allowed; absent when the plan was asked for by ratio.
    pub budget_bytes: Option<u64>,
    /// What the untouched model needs.
    pub base_footprint: FootprintRecord,
    /// What the result will need.
    pub footprint: FootprintRecord,
    /// Expected perplexity divided by that of the base model: a rough guide.
    pub predicted_perplexity_factor: f64,
    /// The reasoning in words.
    pub reason: String,
}

impl PlanRecord {
    /// Mirrors a plan that was made for `budget_bytes`.
    #[must_use]
    pub fn new(plan: &PrunePlan, budget_bytes: Option<u64>) -> Self {
        let action = match plan.action {
            PlanAction::Untouched => "untouched",
            PlanAction::Prune => "prune",
        };
        Self {
            action: action.to_owned(),
            policy: plan.policy.name().to_owned(),
            ratio: plan.ratio.get(),
            dtype: plan.dtype.map_or_else(keep, |dtype| dtype.name().to_owned()),
            table_dtype: plan.table_dtype.map_or_else(keep, |dtype| dtype.name().to_owned()),
            layers_to_remove: plan.layers_to_remove.clone(),
            layers: plan.layers.iter().map(LayerRecord::from).collect(),
            context_len: plan.context_len,
            kv_dtype: plan.kv_dtype.name().to_owned(),
            budget_bytes,
            base_footprint: (&plan.base_footprint).into(),
            footprint: (&plan.footprint).into(),
            predicted_perplexity_factor: plan.predicted_perplexity_factor,
            reason: plan.reason.clone(),
        }
    }
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Digest of its file.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// Size of its file.
    pub bytes: u64,
}

/// The calibration set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// Digest of the text.
    pub digest: String,
    /// Tokens fitted on.
    pub tokens: usize,
}

/// One file of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name inside the entry.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 digest (hex).
    pub blake3: String,
}

/// What the maker of an entry knows before its file exists.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Digest of everything that influences the bytes; see [`crate::Store::find`].
    pub key: String,
    /// Program and version.
    pub generator: String,
    /// Name for people.
    pub name: String,
    /// Unix time of its making, seconds.
    pub created_unix_s: u64,
    /// The base model.
    pub source: SourceRecord,
    /// The plan.
    pub plan: PlanRecord,
    /// Method.
    pub method: String,
    /// Settings of the method.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Seed of whatever is random.
    pub seed: u64,
    /// The calibration set.
    pub calibration: CalibrationRecord,
    /// Report of the pruner.
    pub report: serde_json::Value,
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Keys that lead to these bytes: usually one, ascending.
    pub keys: Vec<String>,
    /// Program and version.
    pub generator: String,
    /// Name for people.
    pub name: String,
    /// Unix time of its making, seconds.
    pub created_unix_s: u64,
    /// The base model.
    pub source: SourceRecord,
    /// The plan.
    pub plan: PlanRecord,
    /// Method.
    pub method: String,
    /// Settings of the method.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Seed of whatever is random.
    pub seed: u64,
    /// The calibration set.
    pub calibration: CalibrationRecord,
    /// Report of the pruner.
    pub report: serde_json::Value,
    /// Every file of the entry but this one.
    pub files: Vec<FileRecord>,
}

impl Manifest {
    pub(crate) fn new(draft: Draft, files: Vec<FileRecord>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            keys: vec![draft.key],
            generator: draft.generator,
            name: draft.name,
            created_unix_s: draft.created_unix_s,
            source: draft.source,
            plan: draft.plan,
            method: draft.method,
            settings: draft.settings,
            seed: draft.seed,
            calibration: draft.calibration,
            report: draft.report,
            files,
        }
    }

    /// Reads a manifest.
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Version`], [`StoreError::Manifest`].
    pub(crate) fn read(path: &Path) -> Result<Self, StoreError> {
        let bad = |message: String| StoreError::Manifest { path: path.to_owned(), message };
        let bytes = std::fs::metadata(path).map_err(|error| StoreError::io(path, error))?.len();
        if MAX_MANIFEST_BYTES < bytes {
            return Err(bad(format!("{bytes} bytes, at most {MAX_MANIFEST_BYTES} are read")));
        }
        let text = std::fs::read(path).map_err(|error| StoreError::io(path, error))?;
        // The version decides how the rest is read, so it is looked at alone first.
        #[derive(Deserialize)]
        struct Head {
            format_version: u32,
        }
        let head: Head = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if FORMAT_VERSION < head.format_version {
            let (got, newest) = (head.format_version, FORMAT_VERSION);
            return Err(StoreError::Version { path: path.to_owned(), got, newest });
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let plain =
            |name: &str| !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
        match manifest.files.iter().find(|file| !plain(&file.name)) {
            None => Ok(manifest),
            Some(file) => Err(bad(format!("`{}` is not a file name", file.name))),
        }
    }
}
