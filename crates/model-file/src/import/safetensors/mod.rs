//! Safetensors files: one, or several with an index. Weights are used in place.

mod header;
mod index;

pub(crate) use header::read_header;
pub(super) use index::read_index;

use super::files::{Companion, MAX_INDEX_BYTES, companion, map_regular, name_of};
use super::{Gathered, ImportError, names};
use crate::{Mapped, ModelFileError, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Gathers the weights of the one file at `path`.
pub(super) fn gather_file(path: &Path) -> Result<Gathered, ModelFileError> {
    let mut gathered = Gathered::default();
    let mapped = map_regular(path)?;
    for tensor in take_header(&mapped, 0)? {
        gathered.add(tensor).map_err(|error| error.in_file(path))?;
    }
    gathered.shards.push(mapped);
    Ok(gathered)
}

/// Gathers the weights of the files that the index at `path` names.
pub(super) fn gather_index(path: &Path) -> Result<Gathered, ModelFileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let index = companion(dir, &name_of(path), MAX_INDEX_BYTES)?
        .ok_or_else(|| ModelFileError::Io { path: path.to_owned(), source: missing() })?;
    let homes = read_index(index.bytes()).map_err(|error| index.wrong(error))?;
    let mut gathered = Gathered::default();
    let mut seen = BTreeSet::new();
    let files: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    for (shard, file) in files.into_iter().enumerate() {
        let path = dir.join(file);
        let mapped = map_regular(&path)?;
        for tensor in take_header(&mapped, shard)? {
            check_home(&homes, &tensor, file).map_err(|error| index.wrong(error))?;
            seen.insert(tensor.name.clone());
            gathered.add(tensor).map_err(|error| error.in_file(&path))?;
        }
        gathered.shards.push(mapped);
    }
    check_all_found(&index, &homes, &seen)?;
    gathered.companions.push(index);
    Ok(gathered)
}

/// Reads a header and lets its pages go.
fn take_header(mapped: &Mapped, shard: usize) -> Result<Vec<TensorInfo>, ModelFileError> {
    let (tensors, header_bytes) =
        read_header(mapped.bytes(), shard).map_err(|error| error.in_file(mapped.path()))?;
    mapped.give_back(0..header_bytes);
    Ok(tensors)
}

fn check_home(homes: &BTreeMap<String, String>, tensor: &TensorInfo, file: &str) -> Result<(), ImportError> {
    match homes.get(&tensor.name) {
        Some(home) if home == file => Ok(()),
        Some(home) => Err(ImportError::NotInShard { tensor: tensor.name.clone(), shard: home.clone() }),
        None if names::is_derived(&tensor.name) => Ok(()),
        None => Err(ImportError::NotInIndex(tensor.name.clone())),
    }
}

fn check_all_found(
    index: &Companion,
    homes: &BTreeMap<String, String>,
    seen: &BTreeSet<String>,
) -> Result<(), ModelFileError> {
    match homes.iter().find(|(name, _)| !seen.contains(*name) && !names::is_derived(name)) {
        None => Ok(()),
        Some((tensor, shard)) => {
            Err(index.wrong(ImportError::NotInShard { tensor: tensor.clone(), shard: shard.clone() }))
        }
    }
}
