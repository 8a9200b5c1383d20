//! Writes a model as GGUF (or, in [`write_checkpoint`], as a folder with safetensors) so that the file is either whole or not there.
//!
//! The file is written beside its target under a temporary name, tensor by tensor and block of rows by block of
//! rows, then synced, read back, renamed, and the folder is synced. Memory: the metadata keys and two blocks of
//! rows ([`BLOCK_VALUES`] values), whatever the size of the model.
//!
//! Uniform models become `llama` (or `qwen2`); models whose layers differ become `deci`, which stock runtimes
//! read with a width and head counts for each layer. What such a runtime would load and compute wrongly is
//! either rewritten to what it computes rightly or refused:
//! - a layer without attention and MLP is dropped;
//! - a layer without MLP gets an MLP of zeros, because `deci` drops the attention of such a layer too;
//! - a first layer without attention gets an attention of zeros, because `deci` takes the head size from it.

mod checkpoint;
mod file;
mod keys;
mod plan;
mod retabled;
mod stream;

pub use checkpoint::{WrittenCheckpoint, write_checkpoint};
pub use plan::stored_dtype;
pub use retabled::{RetabledSource, RoundHead};
pub use stream::BLOCK_VALUES;

use crate::gguf::value::Value;
use crate::{Metadata, WriteError};
use plan::Plan;
use secateur_model::{WeightId, WeightSource};
use secateur_tensor::DType;
use std::path::Path;

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Storage type of the matrices; `None` keeps each one as the source has it. See [`stored_dtype`].
    pub dtype: Option<DType>,
    /// Metadata to add or replace, after everything else.
    pub extra: Vec<(String, Value)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file in hexadecimal.
    pub digest: String,
    /// Architecture in the file: `llama`, `qwen2` or `deci`.
    pub architecture: &'static str,
    /// Layers in the file; layers without any part were dropped.
    pub n_layers: usize,
    /// Weights whose rows do not divide into blocks of the dtype asked for, and which are F16 instead.
    pub stored_as_f16: Vec<WeightId>,
    /// What a stock runtime is known or likely to refuse in this file, in words; usually empty.
    pub notes: Vec<String>,
}

/// Writes the model `source` to `path`. `base` is the metadata of the model it was made from: tokenizer, chat
/// template and general keys are kept, everything about the shape is set from `source`.
///
/// Weights that have their dtype already are copied byte by byte.
/// # Errors
/// [`WriteError`]; `path` is as it was before then, and nothing is left beside it.
pub fn write_gguf(
    path: &Path,
    base: &Metadata,
    source: &dyn WeightSource,
    options: &WriteOptions,
) -> Result<Written, WriteError> {
    let plan = Plan::new(source, options.dtype)?;
    let metadata = keys::export_metadata(base, source.config(), &plan, options)?;
    let layout = file::Layout::new(&metadata, &plan)?;
    let mut target = file::Target::create(path, layout.file_bytes)?;
    layout.write_header(&mut target, &metadata, &plan)?;
    for tensor in &plan.tensors {
        target.pad_to(layout.alignment)?;
        stream::write_tensor(&mut target, source, tensor)?;
    }
    target.pad_to(layout.alignment)?;
    let (bytes, digest) = target.commit(&plan.layers)?;
    Ok(Written {
        bytes,
        digest,
        architecture: plan.architecture,
        n_layers: plan.layers.len(),
        stored_as_f16: plan.stored_as_f16,
        notes: plan.notes,
    })
}
