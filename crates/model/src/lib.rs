//! Pure description of a decoder model: configuration, weight roles, where weights come from, plans.
//!
//! No I/O: [`WeightSource`] is implemented by the `model-file` crate.
#![forbid(unsafe_code)]

mod config;
mod footprint;
mod plan;
mod weights;

pub use config::{Architecture, ConfigError, LayerConfig, ModelConfig, RopeLayout, RopeScaling, limits};
pub use footprint::{
    Footprint, KvDType, LayerDTypes, activations_bytes, kv_cache_bytes, layer_bytes, mixed_layer_bytes,
    writable_dtype,
};
pub use plan::{MaskError, NeuronMask, PlanAction, PlanPolicy, PrunePlan, PruneRatio, RatioError};
pub use secateur_tensor::DType;
pub use weights::{LayerIdx, WeightError, WeightId, WeightRole, WeightSource};
