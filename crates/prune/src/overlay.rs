//! A model with some layers replaced: the base's weights, and pruned layers in files of the work folder.
//!
//! A layer file holds one JSON line (shapes and a digest) and then the matrices' bytes. It is written to a
//! temporary name, synced and renamed, so that a file that exists is whole; its digest is checked when it is
//! read. Weights of a replaced layer are read anew each time they are asked for: nothing is kept in memory.

use bytes::Bytes;
use secateur_model::{LayerConfig, LayerIdx, ModelConfig, WeightError, WeightId, WeightRole, WeightSource};
use secateur_tensor::{DType, WeightMatrix};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest header line of a layer file.
const MAX_HEADER_BYTES: u64 = 64 << 10;

/// The weights of one pruned layer, by role.
pub(crate) type LayerWeights = BTreeMap<WeightRole, WeightMatrix>;

#[derive(Serialize, Deserialize, Clone)]
struct TensorHeader {
    role: String,
    dtype: String,
    n_rows: usize,
    n_cols: usize,
}

#[derive(Serialize, Deserialize, Clone)]
struct LayerHeader {
    tensors: Vec<TensorHeader>,
    blake3: String,
}

const FILE_ROLES: [(WeightRole, &str); 14] = [
    (WeightRole::QProj, "q_proj"),
    (WeightRole::KProj, "k_proj"),
    (WeightRole::VProj, "v_proj"),
    (WeightRole::OProj, "o_proj"),
    (WeightRole::GateProj, "gate_proj"),
    (WeightRole::UpProj, "up_proj"),
    (WeightRole::DownProj, "down_proj"),
    (WeightRole::QBias, "q_bias"),
    (WeightRole::KBias, "k_bias"),
    (WeightRole::VBias, "v_bias"),
    (WeightRole::OBias, "o_bias"),
    (WeightRole::GateBias, "gate_bias"),
    (WeightRole::UpBias, "up_bias"),
    (WeightRole::DownBias, "down_bias"),
];

fn role_name(role: WeightRole) -> Option<&'static str> {
    FILE_ROLES.iter().find(|(known, _)| *known == role).map(|(_, name)| *name)
}

fn role_from_name(name: &str) -> Option<WeightRole> {
    FILE_ROLES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role)
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// Writes a layer file so that it is either whole or absent; returns the digest of its matrices.
pub(crate) fn write_layer(path: &Path, weights: &LayerWeights) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut tensors = Vec::new();
    for (&role, matrix) in weights {
        let role = role_name(role).ok_or_else(|| damaged(path, "role is not stored in layer files"))?;
        hasher.update(matrix.data());
        tensors.push(TensorHeader {
            role: role.to_owned(),
            dtype: matrix.dtype().name().to_owned(),
            n_rows: matrix.n_rows(),
            n_cols: matrix.n_cols(),
        });
    }
    let digest = hasher.finalize().to_hex().to_string();
    let header = LayerHeader { tensors, blake3: digest.clone() };
    crate::checkpoint::write_atomic(path, |file| {
        serde_json::to_writer(&mut *file, &header)?;
        file.write_all(b"\n")?;
        weights.values().try_for_each(|matrix| file.write_all(matrix.data()))
    })?;
    Ok(digest)
}

/// Where each matrix of a layer file lies.
#[derive(Debug, Clone)]
struct Slot {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    offset: u64,
    len: usize,
}

/// An opened layer file.
#[derive(Debug, Clone)]
struct LayerFile {
    path: PathBuf,
    slots: BTreeMap<WeightRole, Slot>,
    digest: String,
}

impl LayerFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::new(File::open(path)?.take(MAX_HEADER_BYTES));
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let header: LayerHeader = serde_json::from_str(&line)?;
        let mut offset = line.len() as u64;
        let mut slots = BTreeMap::new();
        for tensor in header.tensors {
            let role = role_from_name(&tensor.role).ok_or_else(|| damaged(path, "unknown role"))?;
            let dtype = DType::from_name(&tensor.dtype).ok_or_else(|| damaged(path, "unknown dtype"))?;
            let row = dtype.row_bytes(tensor.n_cols).ok_or_else(|| damaged(path, "broken rows"))?;
            let len = row.checked_mul(tensor.n_rows).ok_or_else(|| damaged(path, "absurd shape"))?;
            slots.insert(role, Slot { dtype, n_rows: tensor.n_rows, n_cols: tensor.n_cols, offset, len });
            offset = offset.checked_add(len as u64).ok_or_else(|| damaged(path, "absurd shape"))?;
        }
        if std::fs::metadata(path)?.len() != offset {
            return Err(damaged(path, "size does not match its header"));
        }
        Ok(Self { path: path.to_owned(), slots, digest: header.blake3 })
    }

    fn read(&self, role: WeightRole) -> io::Result<Option<WeightMatrix>> {
        let Some(slot) = self.slots.get(&role) else { return Ok(None) };
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(slot.offset))?;
        let mut bytes = vec![0; slot.len];
        file.read_exact(&mut bytes)?;
        let matrix = WeightMatrix::new(slot.dtype, slot.n_rows, slot.n_cols, Bytes::from(bytes));
        matrix.map(Some).map_err(|error| damaged(&self.path, &error.to_string()))
    }
}

/// Returns the digest recorded in a layer file after checking the matrices against it.
pub(crate) fn verify_layer(path: &Path) -> io::Result<String> {
    let layer = LayerFile::open(path)?;
    let mut hasher = blake3::Hasher::new();
    for &role in layer.slots.keys() {
        if let Some(matrix) = layer.read(role)? {
            hasher.update(matrix.data());
        }
    }
    if hasher.finalize().to_hex().as_str() != layer.digest {
        return Err(damaged(path, "content does not match its digest"));
    }
    Ok(layer.digest)
}

/// All matrices of a layer file.
pub(crate) fn read_layer(path: &Path) -> io::Result<LayerWeights> {
    let layer = LayerFile::open(path)?;
    let mut weights = LayerWeights::new();
    for &role in layer.slots.keys() {
        if let Some(matrix) = layer.read(role)? {
            weights.insert(role, matrix);
        }
    }
    Ok(weights)
}

/// Where the weights of a replaced layer are.
#[derive(Clone)]
enum Replacement {
    File(LayerFile),
    Memory(LayerWeights),
}

/// The base model with some layers replaced.
pub struct OverlaySource {
    base: Arc<dyn WeightSource>,
    config: ModelConfig,
    layers: BTreeMap<LayerIdx, Replacement>,
}

impl OverlaySource {
    pub(crate) fn new(base: Arc<dyn WeightSource>) -> Self {
        let config = base.config().clone();
        Self { base, config, layers: BTreeMap::new() }
    }

    /// Replaces a layer by the file at `path`.
    pub(crate) fn put_file(
        &mut self,
        layer_idx: LayerIdx,
        shape: LayerConfig,
        path: &Path,
    ) -> io::Result<()> {
        self.config.layers[layer_idx] = shape;
        self.layers.insert(layer_idx, Replacement::File(LayerFile::open(path)?));
        Ok(())
    }

    /// Replaces a layer by matrices in memory.
    pub(crate) fn put_memory(&mut self, layer_idx: LayerIdx, shape: LayerConfig, weights: LayerWeights) {
        self.config.layers[layer_idx] = shape;
        self.layers.insert(layer_idx, Replacement::Memory(weights));
    }

    /// Removes a layer: neither attention nor MLP is left of it.
    pub(crate) fn remove_layer(&mut self, layer_idx: LayerIdx) {
        self.config.layers[layer_idx] =
            LayerConfig { num_attention_heads: 0, num_key_value_heads: 0, intermediate_size: 0 };
    }

    fn is_removed(&self, id: WeightId) -> bool {
        let Some(layer_idx) = id.layer_idx else { return false };
        let layer = &self.config.layers[layer_idx];
        layer.num_attention_heads == 0 && layer.intermediate_size == 0
    }
}

impl WeightSource for OverlaySource {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
        if self.is_removed(id) {
            return Ok(None);
        }
        let found = match id.layer_idx.and_then(|layer_idx| self.layers.get(&layer_idx)) {
            None => None,
            Some(Replacement::Memory(weights)) => weights.get(&id.role).cloned(),
            Some(Replacement::File(file)) => {
                file.read(id.role).map_err(|error| WeightError::Unreadable { id, source: Box::new(error) })?
            }
        };
        match found {
            Some(matrix) => Ok(Some(matrix)),
            None => self.base.weight(id),
        }
    }

    fn give_back_rows(&self, id: WeightId, n_rows: usize) {
        self.base.give_back_rows(id, n_rows);
    }
}
