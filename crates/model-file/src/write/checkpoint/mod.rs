//! Writes a model as a checkpoint: a folder with `model.safetensors`, `config.json` and the tokenizer's files, which
//! transformers loads.
//!
//! The folder is filled beside its place, synced, opened as a model, and renamed: it is either whole or not there.
//! Memory: names, two blocks of rows, and the header and the vocabulary once as text.
//!
//! Checkpoints have less to say than GGUF: layers are equal, matrices are floats, and only some tokenizers have a
//! form in both. What cannot be said is refused.

mod config;
mod header;
mod tokenizer;

use super::file::Target;
use super::plan::{Origin, Planned};
use super::stream;
use crate::import::tensor_name;
use crate::layout::{Presence, expected};
use crate::names::LAYER;
use crate::{Metadata, ModelFile, Vocab, WriteError};
use secateur_model::{ModelConfig, RopeLayout, WeightId, WeightRole, WeightSource};
use secateur_tensor::DType;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenCheckpoint {
    /// Size of the weights' file.
    pub bytes: u64,
    /// Digest of the folder, as [`ModelFile::digest`] gives it.
    pub digest: String,
    /// Class that config.json names.
    pub class: &'static str,
    /// Matrices that were quantised and are F16 now.
    pub stored_as_f16: Vec<WeightId>,
}

/// Writes the model `source` to the folder `dir`, which must not be there or be empty. `base` is the metadata of the
/// model it was made from. `dtype` is that of all matrices; `None` keeps floats as they are and makes the rest F16.
/// # Errors
/// [`WriteError`]; `dir` is as it was before then, and nothing is left beside it.
pub fn write_checkpoint(
    dir: &Path,
    base: &Metadata,
    source: &dyn WeightSource,
    dtype: Option<DType>,
) -> Result<WrittenCheckpoint, WriteError> {
    if let Some(dtype) = dtype.filter(|dtype| 1 < dtype.block_len()) {
        return Err(not_exportable(format!("matrices of a checkpoint are floats, not {dtype}")));
    }
    let config = source.config();
    config.validate().map_err(|error| not_exportable(error.to_string()))?;
    if !config.is_uniform()
        || config.layers[0].num_attention_heads == 0
        || config.layers[0].intermediate_size == 0
    {
        let why = "its layers differ, or lack a part; `prune --policy compatible` cuts all layers alike";
        return Err(not_exportable(why));
    }
    let vocab =
        Vocab::from_metadata(base).map_err(|error| not_exportable(format!("base metadata: {error}")))?;
    let mut stored_as_f16 = Vec::new();
    let tensors = plan(source, dtype, &mut stored_as_f16)?;
    let described = config::describe(config, &tensors, &vocab)?;
    let tokenizer = tokenizer::tokenizer_json(&vocab)?;
    let settings = tokenizer::tokenizer_config(&vocab);

    let staging = Staging::create(dir)?;
    staging.small("config.json", &described.config)?;
    staging.small("generation_config.json", &described.generation)?;
    staging.small("tokenizer.json", &tokenizer)?;
    staging.small("tokenizer_config.json", &settings)?;
    drop((tokenizer, settings));
    let header = header::header(&tensors);
    let bytes = header.len() as u64 + tensors.iter().map(|tensor| tensor.bytes).sum::<u64>();
    let mut target = Target::create(&staging.path().join("model.safetensors"), bytes)?;
    target.put(&header)?;
    for tensor in &tensors {
        stream::write_tensor(&mut target, source, tensor)?;
    }
    target.commit_checked(|_| Ok(()))?;
    let digest = staging.publish(dir, config)?;
    Ok(WrittenCheckpoint { bytes, digest, class: described.class, stored_as_f16 })
}

fn not_exportable(why: impl Into<String>) -> WriteError {
    WriteError::NotExportable(why.into())
}

/// The tensors in the order of the file, with the names of a checkpoint.
fn plan(
    source: &dyn WeightSource,
    dtype: Option<DType>,
    stored_as_f16: &mut Vec<WeightId>,
) -> Result<Vec<Planned>, WriteError> {
    let config = source.config();
    let mut ids = vec![WeightId::global(WeightRole::EmbedTokens)];
    for layer_idx in 0..config.n_layers() {
        ids.extend(LAYER.iter().map(|(role, _)| WeightId::layer(layer_idx, *role)));
    }
    ids.push(WeightId::global(WeightRole::FinalNorm));
    ids.extend((!config.tie_word_embeddings).then_some(WeightId::global(WeightRole::LmHead)));
    let mut tensors = Vec::with_capacity(ids.len());
    for id in ids {
        let Some((shape, presence)) = expected(config, id) else { continue };
        let matrix = match (source.weight(id)?, presence, id.role) {
            (Some(matrix), ..) => matrix,
            (None, Presence::Optional, role) if role != WeightRole::LmHead => continue,
            (None, ..) => source.require(id)?,
        };
        let got = [matrix.n_rows(), matrix.n_cols()];
        if got != shape {
            return Err(WriteError::Shape { id, want: shape, got });
        }
        let (is_vector, source_dtype) = (id.role.is_vector(), matrix.dtype());
        let stored = match dtype {
            Some(dtype) => dtype,
            None if 1 < source_dtype.block_len() => {
                stored_as_f16.push(id);
                DType::F16
            }
            None => source_dtype,
        };
        let turns =
            matches!(id.role, WeightRole::QProj | WeightRole::KProj | WeightRole::QBias | WeightRole::KBias);
        let in_halves = turns && config.rope_layout == RopeLayout::Interleaved;
        let row_bytes = stored.row_bytes(shape[1]).expect("floats have blocks of one value");
        tensors.push(Planned {
            name: tensor_name(id),
            origin: if in_halves { Origin::SourceInHalves(id) } else { Origin::Source(id) },
            source_dtype,
            dtype: if is_vector { DType::F32 } else { stored },
            shape,
            is_vector,
            head_dim: config.head_dim,
            bytes: if is_vector { 4 * shape[1] as u64 } else { shape[0] as u64 * row_bytes as u64 },
        });
    }
    Ok(tensors)
}

/// The folder while it is filled; removed when it is dropped.
struct Staging {
    dir: tempfile::TempDir,
    parent: PathBuf,
}

impl Staging {
    fn create(dir: &Path) -> Result<Self, WriteError> {
        let io = |action, source| WriteError::Io { action, path: dir.to_owned(), source };
        let name = dir.file_name().ok_or_else(|| io("write", io::Error::other("the path has no name")))?;
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let is_free = match fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !is_free {
            return Err(io("write", io::Error::other("is there already; give the name of a new folder")));
        }
        let staging = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".partial")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .tempdir_in(&parent)
            .map_err(|source| io("create a folder beside it", source))?;
        Ok(Self { dir: staging, parent })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a small file.
    fn small(&self, name: &str, text: &str) -> Result<(), WriteError> {
        let mut target = Target::create(&self.path().join(name), text.len() as u64)?;
        target.put(text.as_bytes())?;
        target.commit_checked(|_| Ok(())).map(drop)
    }

    /// Opens the folder as a model, renames it, and syncs what it is in. Returns its digest.
    fn publish(self, dir: &Path, config: &ModelConfig) -> Result<String, WriteError> {
        let io = |action, source| WriteError::Io { action, path: dir.to_owned(), source };
        let back = ModelFile::open(self.path()).map_err(|error| WriteError::ReadBack(Box::new(error)))?;
        if back.config().layers != config.layers {
            return Err(io("verify", io::Error::other("the layers read back are others")));
        }
        let digest = back.digest().map_err(|error| WriteError::ReadBack(Box::new(error)))?;
        drop(back);
        // An empty folder gives way to the full one in one step.
        fs::rename(self.path(), dir).map_err(|source| io("rename", source))?;
        let _ = self.dir.keep();
        let synced = File::open(&self.parent).and_then(|folder| folder.sync_all());
        synced.map_err(|source| io("sync the folder of", source))?;
        Ok(digest)
    }
}
