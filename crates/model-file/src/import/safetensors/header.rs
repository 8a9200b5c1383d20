//! The header of a safetensors file: eight bytes of length, then a JSON object of tensors.
//!
//! It is read entry by entry straight into the table of tensors, so a header costs no more memory than the names
//! in it, and a name that is there twice is noticed. Types that are no floats are kept out of the table: the
//! caller hears of them when their name is one of a weight.

use crate::gguf::{check_overlap, limits};
use crate::import::{ImportError, names};
use crate::{ModelFileError, TensorInfo};
use bytes::Bytes;
use secateur_tensor::DType;
use serde::Deserialize;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Bytes of the length before the header.
const LENGTH_BYTES: usize = 8;
/// Most bytes of a header; 16384 tensors with long names take a few MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most bytes of a tensor's name.
const MAX_NAME_BYTES: usize = 1 << 10;
/// Key of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// An entry as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Dims,
    data_offsets: [u64; 2],
}

/// At most four dimensions.
struct Dims(Vec<u64>);

/// Reads and checks the header of the file whose bytes are `file`: the float tensors with their places, and how
/// many bytes come before the data.
pub(crate) fn read_header(file: &Bytes, shard: usize) -> Result<(Vec<TensorInfo>, usize), ModelFileError> {
    let left = file.len() as u64;
    let truncated = |what, at: usize, need| {
        let left = left.saturating_sub(at as u64);
        ModelFileError::Truncated { what, at: at as u64, need, left }
    };
    let length = file.first_chunk::<LENGTH_BYTES>();
    let length = length.ok_or_else(|| truncated("the length of the header", 0, LENGTH_BYTES as u64))?;
    let length = u64::from_le_bytes(*length);
    if MAX_HEADER_BYTES < length {
        return Err(ModelFileError::TooLarge {
            what: "the length of the header",
            value: length,
            limit: MAX_HEADER_BYTES,
        });
    }
    let data_start = LENGTH_BYTES + length as usize;
    let json =
        file.get(LENGTH_BYTES..data_start).ok_or_else(|| truncated("the header", LENGTH_BYTES, length))?;
    let mut place = Place { shard, data_start, file_bytes: file.len(), fault: None };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = HeaderSeed(&mut place).deserialize(&mut reader).and_then(|tensors| {
        reader.end()?;
        Ok(tensors)
    });
    match (read, place.fault) {
        (_, Some(fault)) => Err(fault),
        (Err(error), None) => Err(ImportError::Header(error.to_string()).into()),
        (Ok(tensors), None) => {
            check_overlap(&tensors)?;
            Ok((tensors, data_start))
        }
    }
}

/// Where tensors may lie, and the first that does not.
struct Place {
    shard: usize,
    data_start: usize,
    file_bytes: usize,
    /// The error behind the one that serde carries, which has no room for it.
    fault: Option<ModelFileError>,
}

impl Place {
    /// The tensor of an entry; `None` for a type that no weight may have.
    fn tensor(&self, name: String, entry: Entry) -> Result<Option<TensorInfo>, ModelFileError> {
        let Entry { dtype: type_name, shape: Dims(shape), data_offsets: [start, end] } = entry;
        let dtype = match type_name.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            _ if names::parse(&name).is_none() => return Ok(None),
            _ => {
                let dtype = type_name.chars().take(16).collect();
                let supported = "F32, F16 and BF16 are used in place";
                return Err(ImportError::DType { name, dtype, supported }.into());
            }
        };
        let dims: Vec<u64> = if shape.is_empty() { vec![1] } else { shape.into_iter().rev().collect() };
        let n_values = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let want = n_values.filter(|&n| 0 < n).and_then(|n| n.checked_mul(dtype.block_bytes() as u64));
        let Some(want) = want.filter(|&want| i64::try_from(want).is_ok()) else {
            return Err(ModelFileError::TensorSize { name, dims });
        };
        let got = (self.file_bytes - self.data_start) as u64;
        if end < start || got < end {
            return Err(ModelFileError::TensorRange { name, offset: start, want, got });
        }
        if end - start != want {
            return Err(ImportError::TensorBytes { name, want, got: end - start }.into());
        }
        // Both ends lie in a file that is mapped, so they are sizes.
        let range = self.data_start + start as usize..self.data_start + end as usize;
        let dims = dims.into_iter().map(|dim| dim as usize).collect();
        Ok(Some(TensorInfo { name, dtype, dims, shard: self.shard, range }))
    }
}

struct HeaderSeed<'p>(&'p mut Place);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Vec<TensorInfo>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Vec<TensorInfo>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let place = self.0;
        let mut tensors = Vec::new();
        let mut seen = HashSet::new();
        let mut fail = |fault: ModelFileError| {
            place.fault.get_or_insert(fault);
            serde::de::Error::custom("see the fault")
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let (bytes, count) = (name.len() as u64, seen.len() as u64 + 1);
            if MAX_NAME_BYTES < name.len() {
                let limit = MAX_NAME_BYTES as u64;
                return Err(fail(ModelFileError::TooLarge { what: "a tensor name", value: bytes, limit }));
            }
            if limits::MAX_TENSORS < count {
                let (what, limit) = ("the number of tensors", limits::MAX_TENSORS);
                return Err(fail(ModelFileError::TooLarge { what, value: count, limit }));
            }
            if !seen.insert(name.clone()) {
                return Err(fail(ModelFileError::DuplicateTensor(name)));
            }
            let entry: Entry = map
                .next_value()
                .map_err(|error| fail(ImportError::Header(format!("tensor `{name}`: {error}")).into()))?;
            let room = Place { fault: None, ..*place };
            match room.tensor(name, entry) {
                Ok(tensor) => tensors.extend(tensor),
                Err(fault) => return Err(fail(fault)),
            }
        }
        Ok(tensors)
    }
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {} dimensions", limits::MAX_DIMS)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = items.next_element()? {
                    if dims.len() == limits::MAX_DIMS as usize {
                        return Err(serde::de::Error::invalid_length(dims.len() + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        reader.deserialize_seq(Few)
    }
}
