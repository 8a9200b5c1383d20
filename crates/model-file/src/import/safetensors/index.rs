//! `model.safetensors.index.json`: which tensor is in which file.

use crate::ModelFileError;
use crate::gguf::limits;
use crate::import::ImportError;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most files of a checkpoint.
const MAX_SHARDS: usize = 1 << 10;
/// Most bytes of a file's name: what file systems take.
const MAX_NAME_BYTES: usize = 255;

#[derive(Deserialize)]
struct Index {
    weight_map: Homes,
}

struct Homes(BTreeMap<String, String>);

/// Reads an index: the file of every tensor, by the tensor's name.
pub(crate) fn read_index(json: &[u8]) -> Result<BTreeMap<String, String>, ModelFileError> {
    let Index { weight_map: Homes(homes) } =
        serde_json::from_slice(json).map_err(|error| ImportError::Json(error.to_string()))?;
    let files: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    if let Some(name) = files.iter().find(|name| !is_plain(name)) {
        return Err(ImportError::ShardName(name.chars().take(MAX_NAME_BYTES).collect()).into());
    }
    if MAX_SHARDS < files.len() {
        let (value, limit) = (files.len() as u64, MAX_SHARDS as u64);
        return Err(ModelFileError::TooLarge { what: "the number of shards", value, limit });
    }
    Ok(homes)
}

/// A name that cannot lead out of the folder.
fn is_plain(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
}

impl<'de> Deserialize<'de> for Homes {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Homes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {} file names", limits::MAX_TENSORS)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Homes, A::Error> {
                let mut homes = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if homes.len() as u64 == limits::MAX_TENSORS {
                        return Err(serde::de::Error::invalid_length(homes.len() + 1, &self));
                    }
                    if homes.insert(name.clone(), file).is_some() {
                        return Err(serde::de::Error::custom(format_args!("tensor `{name}` is there twice")));
                    }
                }
                Ok(Homes(homes))
            }
        }
        reader.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_followed() {
        let ok = ["model.safetensors", "model-00001-of-00002.safetensors"];
        let bad = [
            "../model.safetensors",
            "/model.safetensors",
            "a/b.safetensors",
            "model.bin",
            "..",
            "",
            ".safetensors",
            "a\\b.safetensors",
            "a\0.safetensors",
        ];
        assert!(ok.iter().all(|name| is_plain(name)));
        assert!(bad.iter().all(|name| !is_plain(name)));
    }
}
