//! A model whose token table and output head are stored anew in fewer bits, each in a mapped file of its own, so
//! that nothing but its pages is in memory.

use crate::{Access, Mapped, WriteError};
use bytes::Bytes;
use secateur_model::{ModelConfig, WeightError, WeightId, WeightRole, WeightSource};
use secateur_tensor::blocks::quantize;
use secateur_tensor::{DType, WeightMatrix};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TABLES: [(WeightRole, &str); 2] =
    [(WeightRole::EmbedTokens, "table-embed_tokens.bin"), (WeightRole::LmHead, "table-lm_head.bin")];

/// Weights of a base with other tables. See the module.
pub struct RetabledSource {
    base: Arc<dyn WeightSource>,
    tables: Vec<(WeightRole, Mapped, WeightMatrix)>,
}

impl RetabledSource {
    /// Stores the tables of `base` that become smaller as `dtype` in files of `dir`; a file that is there already,
    /// of the right size, is taken as it is: files appear whole.
    /// # Errors
    /// [`WriteError::Io`], [`WriteError::Dtype`] for a dtype that cannot be written, [`WriteError::Weight`].
    pub fn create(base: Arc<dyn WeightSource>, dir: &Path, dtype: DType) -> Result<Self, WriteError> {
        let mut tables = Vec::new();
        for (role, name) in TABLES {
            let id = WeightId::global(role);
            let Some(matrix) = base.weight(id)? else { continue };
            let Some(row_bytes) =
                dtype.row_bytes(matrix.n_cols()).filter(|&bytes| bytes < matrix.row_bytes())
            else {
                continue;
            };
            let path = dir.join(name);
            let io = |source| WriteError::Io { action: "map", path: path.clone(), source };
            let len = (row_bytes * matrix.n_rows()) as u64;
            let is_there = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == len);
            if !is_there {
                store(&path, &matrix, dtype)?;
                base.give_back(id);
            }
            let mapped = Mapped::open(&path).map_err(|error| io(std::io::Error::other(error)))?;
            mapped.advise(0..mapped.bytes().len(), Access::Normal);
            let bytes: Bytes = mapped.bytes().clone();
            let stored = WeightMatrix::new(dtype, matrix.n_rows(), matrix.n_cols(), bytes)
                .map_err(|error| io(std::io::Error::other(error)))?;
            tables.push((role, mapped, stored));
        }
        Ok(Self { base, tables })
    }

    fn table(&self, id: WeightId) -> Option<&(WeightRole, Mapped, WeightMatrix)> {
        self.tables.iter().find(|(role, ..)| id == WeightId::global(*role))
    }
}

/// Writes `matrix` as `dtype` under a temporary name, syncs and renames.
fn store(path: &Path, matrix: &WeightMatrix, dtype: DType) -> Result<(), WriteError> {
    let io = |source| WriteError::Io { action: "write", path: path.to_owned(), source };
    let row_bytes = dtype.row_bytes(matrix.n_cols()).ok_or(WriteError::Dtype(dtype))?;
    let staged: PathBuf = path.with_extension("part");
    let mut file = BufWriter::new(File::create(&staged).map_err(io)?);
    let (mut values, mut bytes) = (vec![0.0; matrix.n_cols()], vec![0; row_bytes]);
    for row in 0..matrix.n_rows() {
        matrix.dequantize_row(row, &mut values);
        quantize(dtype, &values, &mut bytes).map_err(|_| WriteError::Dtype(dtype))?;
        file.write_all(&bytes).map_err(io)?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&staged, path).map_err(io)
}

impl WeightSource for RetabledSource {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn weight(&self, id: WeightId) -> Result<Option<WeightMatrix>, WeightError> {
        match self.table(id) {
            Some((_, _, matrix)) => Ok(Some(matrix.clone())),
            None => self.base.weight(id),
        }
    }

    fn give_back(&self, id: WeightId) {
        match self.table(id) {
            Some((_, mapped, _)) => mapped.give_back(0..mapped.bytes().len()),
            None => self.base.give_back(id),
        }
    }
}
