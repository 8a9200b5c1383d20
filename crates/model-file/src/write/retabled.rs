//! A model whose token table and output head are stored anew in fewer bits, each in a mapped file of its own, so
//! that nothing but its pages is in memory.

use super::file::Target;
use crate::{Mapped, WriteError};
use secateur_model::{ModelConfig, WeightError, WeightId, WeightRole, WeightSource};
use secateur_tensor::blocks::quantize;
use secateur_tensor::{DType, WeightMatrix};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Rows that are rounded at once.
const ROWS_AT_ONCE: usize = 512;
/// How the names of table files begin.
const PREFIX: &str = "table-";

/// Rounds rows `[n, n_cols]` of the output head (or of the table that is both) to a dtype.
pub type RoundHead<'a> =
    dyn FnMut(Vec<f32>, DType) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> + 'a;

const TABLES: [(WeightRole, &str); 2] =
    [(WeightRole::EmbedTokens, "embed_tokens"), (WeightRole::LmHead, "lm_head")];

/// Weights of a base with other tables. See the module.
pub struct RetabledSource {
    base: Arc<dyn WeightSource>,
    tables: Vec<(WeightRole, Mapped, WeightMatrix)>,
}

impl RetabledSource {
    /// Stores the tables of `base` that become smaller as `dtype` in files of `dir`.
    ///
    /// `key` names what the tables depend on (base, dtype, whatever `round_head` knows): a file of the same key is
    /// taken as it is, since files appear whole. `round_head` is only called when one is made.
    /// # Errors
    /// [`WriteError::Io`], also with what `round_head` failed with, [`WriteError::DiskFull`], [`WriteError::Dtype`]
    /// for a dtype that cannot be written, [`WriteError::Weight`].
    pub fn create(
        base: Arc<dyn WeightSource>,
        dir: &Path,
        key: &str,
        dtype: DType,
        round_head: &mut RoundHead<'_>,
    ) -> Result<Self, WriteError> {
        let mut tables = Vec::new();
        let is_tied = base.weight(WeightId::global(WeightRole::LmHead))?.is_none();
        for (role, name) in TABLES {
            let id = WeightId::global(role);
            let Some(matrix) = base.weight(id)? else { continue };
            let smaller = |&bytes: &usize| bytes < matrix.row_bytes();
            let Some(row_bytes) = dtype.row_bytes(matrix.n_cols()).filter(smaller) else { continue };
            let path = dir.join(format!("{PREFIX}{name}-{key}.bin"));
            let broken = |source: io::Error| WriteError::Io { action: "map", path: path.clone(), source };
            let len = (row_bytes * matrix.n_rows()) as u64;
            if !std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == len) {
                let is_head = role == WeightRole::LmHead || is_tied;
                store(&path, (base.as_ref(), id), dtype, is_head.then_some(&mut *round_head))?;
            }
            let mapped = Mapped::open(&path).map_err(|error| broken(io::Error::other(error)))?;
            let stored = WeightMatrix::new(dtype, matrix.n_rows(), matrix.n_cols(), mapped.bytes().clone())
                .map_err(|error| broken(io::Error::other(error)))?;
            tables.push((role, mapped, stored));
        }
        Ok(Self { base, tables })
    }

    /// Removes the table files of `dir`, those a killed process left half-written among them. Mapped ones stay
    /// readable.
    /// # Errors
    /// What the file system says.
    pub fn remove_files(dir: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().trim_start_matches('.').starts_with(PREFIX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn table(&self, id: WeightId) -> Option<&(WeightRole, Mapped, WeightMatrix)> {
        self.tables.iter().find(|(role, ..)| id == WeightId::global(*role))
    }
}

/// Writes a table of `base` as `dtype`, giving its rows back as it goes.
fn store(
    path: &Path,
    (base, id): (&dyn WeightSource, WeightId),
    dtype: DType,
    mut round: Option<&mut RoundHead<'_>>,
) -> Result<(), WriteError> {
    let matrix = base.require(id)?;
    let n_cols = matrix.n_cols();
    let row_bytes = dtype.row_bytes(n_cols).ok_or(WriteError::Dtype(dtype))?;
    let mut target = Target::create(path, (row_bytes * matrix.n_rows()) as u64)?;
    for first in (0..matrix.n_rows()).step_by(ROWS_AT_ONCE) {
        let n_rows = ROWS_AT_ONCE.min(matrix.n_rows() - first);
        let mut values = vec![0.0; n_rows * n_cols];
        for (at, row) in values.chunks_exact_mut(n_cols).enumerate() {
            matrix.dequantize_row(first + at, row);
        }
        base.give_back_rows(id, first + n_rows);
        let bytes = match &mut round {
            Some(round) => {
                round(values, dtype).map_err(|error| target.io("round", io::Error::other(error)))?
            }
            None => {
                let mut bytes = vec![0; n_rows * row_bytes];
                for (row, out) in values.chunks_exact(n_cols).zip(bytes.chunks_exact_mut(row_bytes)) {
                    quantize(dtype, row, out).map_err(|_| WriteError::Dtype(dtype))?;
                }
                bytes
            }
        };
        target.put(&bytes)?;
    }
    target.commit_checked(|_| Ok(())).map(drop)
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

    fn give_back_rows(&self, id: WeightId, n_rows: usize) {
        match self.table(id) {
            Some((_, mapped, matrix)) => {
                mapped.give_back(0..n_rows.min(matrix.n_rows()) * matrix.row_bytes());
            }
            None => self.base.give_back_rows(id, n_rows),
        }
    }
}
