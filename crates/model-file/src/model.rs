//! An opened model: mapped, checked, ready to hand out weights.

use crate::config::{TensorFacts, read_config};
use crate::gguf::{Header, read_header};
use crate::layout::{check_vector_type, check_weights};
use crate::mapped::Mapped;
use crate::names::{Known, parse_name, tensor_name};
use crate::{Metadata, ModelFileError, TensorInfo, Vocab, import};
use bytes::Bytes;
use secateur_model::{ModelConfig, WeightError, WeightId, WeightRole, WeightSource};
use secateur_tensor::{DType, WeightMatrix, blocks};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at once when the content is digested.
const DIGEST_CHUNK_BYTES: usize = 1 << 18;

/// A model file. Cloning shares the mapping.
///
/// Everything that is used is checked when the file is opened: the configuration against its limits, every
/// weight's presence and shape against the configuration. Memory: names and keys, a few tens of KiB; weights
/// and vocabulary stay in the mapping.
#[derive(Clone)]
pub struct ModelFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    parts: Parts,
}

impl std::fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ModelFile").field(&self.0.path).finish()
    }
}

/// What an opened model is made of.
pub(crate) struct Parts {
    pub(crate) form: ModelForm,
    /// Mapped files, in the order of [`TensorInfo::shard`].
    pub(crate) shards: Vec<Mapped>,
    pub(crate) metadata: Metadata,
    pub(crate) config: ModelConfig,
    pub(crate) weights: BTreeMap<WeightId, TensorInfo>,
    /// The weights as they follow each other.
    pub(crate) order: Vec<WeightId>,
    pub(crate) content: Content,
}

/// What a model was opened from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelForm {
    /// A GGUF file.
    Gguf,
    /// Safetensors files with config.json and tokenizer.json.
    Safetensors,
    /// An ONNX graph with config.json and tokenizer.json.
    Onnx,
}

impl ModelForm {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Onnx => "onnx",
        }
    }
}

/// What the digest of a model covers.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// One file: the digest is the file's.
    File,
    /// The first `n_shards` of the mapped files, and small files that were digested when they were read.
    Files {
        /// One line for each small file, see [`Content::line`].
        lines: Vec<String>,
        n_shards: usize,
    },
}

impl Content {
    /// The content of a checkpoint whose small files are `files`, by name.
    pub(crate) fn of_files<'a>(files: impl Iterator<Item = (String, &'a [u8])>, n_shards: usize) -> Self {
        let line =
            |(name, bytes): (String, &[u8])| Self::line(&name, bytes.len() as u64, &blake3::hash(bytes));
        Self::Files { lines: files.map(line).collect(), n_shards }
    }

    fn line(name: &str, bytes: u64, digest: &blake3::Hash) -> String {
        format!("{name} {bytes} {}\n", digest.to_hex())
    }
}

impl ModelFile {
    /// Maps and checks the model at `path`: a GGUF file, or a folder with `config.json`, `tokenizer.json` and
    /// weights as safetensors or ONNX, or such a file of weights with the others beside it.
    /// # Errors
    /// [`ModelFileError`]: what is wrong with the file, and with which part of it.
    pub fn open(path: &Path) -> Result<Self, ModelFileError> {
        let parts = if import::is_checkpoint(path) { import::open(path)? } else { open_gguf(path)? };
        Ok(Self(Arc::new(Inner { path: path.to_owned(), parts })))
    }

    /// Where the model is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What it was opened from.
    #[must_use]
    pub fn form(&self) -> ModelForm {
        self.0.parts.form
    }

    /// Metadata in the order of the file.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.0.parts.metadata
    }

    /// The vocabulary as plain data.
    /// # Errors
    /// [`ModelFileError`] when the file has none or a wrong one.
    pub fn vocab(&self) -> Result<Vocab, ModelFileError> {
        Vocab::from_metadata(&self.0.parts.metadata)
    }

    /// Size of the weights' files on disk.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.source_shards().iter().map(|shard| shard.bytes().len() as u64).sum()
    }

    /// The files that were given, without what was stored anew.
    fn source_shards(&self) -> &[Mapped] {
        match self.0.parts.content {
            Content::File => &self.0.parts.shards,
            Content::Files { n_shards, .. } => &self.0.parts.shards[..n_shards],
        }
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> + '_ {
        self.0.parts.order.iter().filter_map(|id| self.0.parts.weights.get(id))
    }

    /// Storage type of a weight; `None` when the model does not have it.
    #[must_use]
    pub fn dtype_of(&self, id: WeightId) -> Option<DType> {
        self.0.parts.weights.get(&id).map(TensorInfo::dtype)
    }

    /// BLAKE3 of the content in hexadecimal: of a GGUF file, or of a list with name, length and BLAKE3 of every file
    /// of a checkpoint, one a line, sorted. Reads the weights through a small buffer and not through the mapping, so
    /// that no page becomes resident.
    /// # Errors
    /// [`ModelFileError::Io`], or [`ModelFileError::Changed`] when a file has another length than at opening.
    pub fn digest(&self) -> Result<String, ModelFileError> {
        let Content::Files { lines, .. } = &self.0.parts.content else {
            return Ok(digest_file(&self.0.parts.shards[0])?.to_hex().to_string());
        };
        let mut lines = lines.clone();
        for shard in self.source_shards() {
            let name = shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            lines.push(Content::line(&name, shard.bytes().len() as u64, &digest_file(shard)?));
        }
        lines.sort();
        Ok(blake3::hash(lines.concat().as_bytes()).to_hex().to_string())
    }

    /// Lets every page of the model leave memory, those of the vocabulary too.
    pub fn give_back_all(&self) {
        for shard in &self.0.parts.shards {
            shard.give_back(0..shard.bytes().len());
        }
    }
}

impl WeightSource for ModelFile {
    fn config(&self) -> &ModelConfig {
        &self.0.parts.config
    }

    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
        let Some(tensor) = self.0.parts.weights.get(&id) else { return Ok(None) };
        let unreadable =
            |source: Box<dyn std::error::Error + Send + Sync>| WeightError::Unreadable { id, source };
        let shard = &self.0.parts.shards[tensor.shard];
        shard.check_unchanged().map_err(|error| unreadable(Box::new(error)))?;
        let n_cols = tensor.dims[0];
        let n_rows = tensor.dims[1..].iter().product();
        let data = shard.bytes().slice(tensor.range.clone());
        let (dtype, data) = if id.role.is_vector() && tensor.dtype != DType::F32 {
            (DType::F32, widened(tensor.dtype, &data))
        } else {
            (tensor.dtype, data)
        };
        WeightMatrix::new(dtype, n_rows, n_cols, data).map(Some).map_err(|error| unreadable(Box::new(error)))
    }

    fn give_back_rows(&self, id: WeightId, n_rows: usize) {
        if let Some(tensor) = self.0.parts.weights.get(&id)
            && let Some(row_bytes) = tensor.dtype.row_bytes(tensor.dims[0])
        {
            let end =
                tensor.range.end.min(tensor.range.start.saturating_add(n_rows.saturating_mul(row_bytes)));
            self.0.parts.shards[tensor.shard].give_back(tensor.range.start..end);
        }
    }
}

fn open_gguf(path: &Path) -> Result<Parts, ModelFileError> {
    let mapped = Mapped::open(path)?;
    let header = read_header(mapped.bytes())?;
    let header_bytes = header.data_start;
    let parts = parts_of_gguf(mapped, header)?;
    parts.shards[0].give_back(0..header_bytes);
    Ok(parts)
}

fn parts_of_gguf(mapped: Mapped, header: Header) -> Result<Parts, ModelFileError> {
    let Header { metadata, tensors, .. } = header;
    let mut weights = BTreeMap::new();
    let mut order = Vec::with_capacity(tensors.len());
    let mut rope_factors = None;
    for tensor in tensors {
        match parse_name(&tensor.name) {
            Some(Known::Weight(id)) => {
                order.push(id);
                weights.insert(id, tensor);
            }
            Some(Known::RopeFactors) => rope_factors = Some(read_vector(&mapped, &tensor)?),
            None => return Err(ModelFileError::UnexpectedTensor(tensor.name)),
        }
    }
    let table = weights.get(&WeightId::global(WeightRole::EmbedTokens));
    let vocab_size = table.map_or(0, |table| table.shape()[0]);
    let has_head = weights.contains_key(&WeightId::global(WeightRole::LmHead));
    if table.is_none() {
        return Err(ModelFileError::MissingTensor("token_embd.weight".to_owned()));
    }
    let config = read_config(&metadata, TensorFacts { vocab_size, has_head, rope_factors })?;
    check_weights(&config, &weights, tensor_name)?;
    check_vocab_size(&metadata, vocab_size)?;
    Ok(Parts {
        form: ModelForm::Gguf,
        shards: vec![mapped],
        metadata,
        config,
        weights,
        order,
        content: Content::File,
    })
}

/// Digests a file through a small buffer.
fn digest_file(file: &Mapped) -> Result<blake3::Hash, ModelFileError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; DIGEST_CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let len = file.read_at(&mut buffer, offset)?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
        offset += len as u64;
    }
    file.check_unchanged()?;
    Ok(hasher.finalize())
}

/// The values of a short vector in a 16-bit type as F32 bytes.
fn widened(dtype: DType, data: &[u8]) -> Bytes {
    let mut values = vec![0.0; data.len() / dtype.block_bytes()];
    blocks::dequantize(dtype, data, &mut values);
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// The values of a vector that is part of the configuration.
fn read_vector(mapped: &Mapped, tensor: &TensorInfo) -> Result<Vec<f32>, ModelFileError> {
    check_vector_type(true, tensor)?;
    let limit = secateur_model::limits::MAX_HEAD_DIM as u64;
    if tensor.dims.len() != 1 || limit < tensor.n_values() {
        let (what, value) = ("the number of rotary factors", tensor.n_values());
        return Err(ModelFileError::TooLarge { what, value, limit });
    }
    let mut values = vec![0.0; tensor.dims[0]];
    blocks::dequantize(tensor.dtype, &mapped.bytes()[tensor.range.clone()], &mut values);
    Ok(values)
}

/// A vocabulary of another size than the token table would give ids without a row, or rows without a token.
fn check_vocab_size(metadata: &Metadata, rows: usize) -> Result<(), ModelFileError> {
    match metadata.strings("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens.len() != rows => Err(ModelFileError::VocabSize { tokens: tokens.len(), rows }),
        _ => Ok(()),
    }
}
