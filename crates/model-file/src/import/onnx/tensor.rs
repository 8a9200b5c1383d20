//! Initializers of a graph: what they are and where their data lies.

use super::Passed;
use super::wire::{Payload, fields, numbers, text};
use crate::gguf::limits;
use crate::import::ImportError;
use crate::{Mapped, ModelFileError};
use secateur_tensor::DType;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path};

/// Most initializers of a graph.
const MAX_INITIALIZERS: u64 = 1 << 16;
/// Most bytes of a name.
const MAX_NAME_BYTES: usize = 1 << 10;
/// Most dimensions that are looked at; no weight has as many.
const MAX_DIMS: usize = 16;
/// Most pairs that say where data lies.
const MAX_PAIRS: usize = 16;
/// Field of a graph with its initializers.
const INITIALIZER: u32 = 5;

/// A tensor's fields, as far as they matter.
#[derive(Default)]
struct Proto<'f> {
    name: &'f str,
    dims: Vec<i64>,
    data_type: u64,
    is_external: bool,
    /// Keys and values.
    external: Vec<(&'f str, &'f str)>,
    raw: Option<Range<usize>>,
    floats: Option<Range<usize>>,
    /// Data in any other form, or in several pieces.
    is_odd: bool,
}

impl<'f> Proto<'f> {
    fn read(file: &'f [u8], range: Range<usize>) -> Result<Self, ModelFileError> {
        let mut proto = Self::default();
        for field in fields(file, range) {
            let field = field?;
            match (field.number, &field.payload) {
                (1, _) => numbers(file, &field, MAX_DIMS, &mut proto.dims)?,
                (2, Payload::Number(kind)) => proto.data_type = *kind,
                (8, Payload::Bytes(range)) => proto.name = text(file, range.clone())?,
                (4, Payload::Bytes(range)) => proto.is_odd |= proto.floats.replace(range.clone()).is_some(),
                (9, Payload::Bytes(range)) => proto.is_odd |= proto.raw.replace(range.clone()).is_some(),
                (4 | 5 | 6 | 7 | 9 | 10 | 11, _) => proto.is_odd = true,
                (13, Payload::Bytes(range)) => {
                    if proto.external.len() == MAX_PAIRS {
                        let (what, at) = ("too many places of data", field.whole.start as u64);
                        return Err(ImportError::Protobuf { what, at }.into());
                    }
                    proto.external.push(pair(file, range.clone())?);
                }
                (14, Payload::Number(location)) => proto.is_external = *location == 1,
                _ => {}
            }
        }
        Ok(proto)
    }
}

/// A key with its value.
fn pair(file: &[u8], range: Range<usize>) -> Result<(&str, &str), ModelFileError> {
    let mut pair = ("", "");
    for field in fields(file, range) {
        let field = field?;
        match (field.number, field.payload) {
            (1, Payload::Bytes(range)) => pair.0 = text(file, range)?,
            (2, Payload::Bytes(range)) => pair.1 = text(file, range)?,
            _ => {}
        }
    }
    Ok(pair)
}

/// Where the data of an initializer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// Bytes of the model's own file.
    Inline(Range<usize>),
    /// Bytes of another file.
    External { location: String, offset: u64, length: Option<u64> },
    /// In a form that cannot be used in place.
    Elsewhere(&'static str),
}

/// An initializer of floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Initializer {
    /// `None` for floats that are not used in place; see `type_name`.
    pub(super) dtype: Option<DType>,
    pub(super) type_name: &'static str,
    /// The slowest first.
    pub(super) dims: Vec<usize>,
    pub(super) home: Home,
}

impl Initializer {
    /// Bytes its shape needs.
    pub(super) fn bytes(&self) -> u64 {
        // The product was checked when the dimensions were read.
        let n_values: usize = self.dims.iter().product();
        n_values as u64 * self.dtype.map_or(1, DType::block_bytes) as u64
    }
}

/// Reads the initializers of the graph at `graph` that hold floats, by name.
pub(super) fn read_initializers(
    mapped: &Mapped,
    graph: Range<usize>,
) -> Result<BTreeMap<String, Initializer>, ModelFileError> {
    let file = mapped.bytes();
    let mut passed = Passed::from(graph.start);
    let mut found = BTreeMap::new();
    let mut count = 0;
    for field in fields(file, graph) {
        let field = field?;
        passed.to(field.whole.end, mapped);
        let Payload::Bytes(range) = field.payload else { continue };
        if field.number != INITIALIZER {
            continue;
        }
        count += 1;
        if MAX_INITIALIZERS < count {
            let (what, limit) = ("the number of initializers", MAX_INITIALIZERS);
            return Err(ModelFileError::TooLarge { what, value: count, limit });
        }
        let (name, initializer) = read_one(file, range)?;
        let Some(initializer) = initializer else { continue };
        if found.insert(name.clone(), initializer).is_some() {
            return Err(ModelFileError::DuplicateTensor(name));
        }
    }
    Ok(found)
}

/// The name of a tensor and what it is; `None` when it holds no floats, or no values.
fn read_one(file: &[u8], range: Range<usize>) -> Result<(String, Option<Initializer>), ModelFileError> {
    let proto = Proto::read(file, range)?;
    if MAX_NAME_BYTES < proto.name.len() {
        let (value, limit) = (proto.name.len() as u64, MAX_NAME_BYTES as u64);
        return Err(ModelFileError::TooLarge { what: "a tensor name", value, limit });
    }
    let name = proto.name.to_owned();
    let (dtype, type_name) = match proto.data_type {
        1 => (Some(DType::F32), "float"),
        10 => (Some(DType::F16), "float16"),
        16 => (Some(DType::BF16), "bfloat16"),
        11 => (None, "double"),
        _ => return Ok((name, None)),
    };
    let Some(dims) = usable_dims(&proto)? else { return Ok((name, None)) };
    let home = home_of(&proto, dtype)?;
    Ok((name, Some(Initializer { dtype, type_name, dims, home })))
}

/// The dimensions as sizes; `None` for a scalar or an empty tensor, which is no weight.
fn usable_dims(proto: &Proto<'_>) -> Result<Option<Vec<usize>>, ModelFileError> {
    let wrong = || {
        let dims = proto.dims.iter().map(|&dim| dim as u64).collect();
        ModelFileError::TensorSize { name: proto.name.to_owned(), dims }
    };
    let dims: Option<Vec<usize>> = proto.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let dims = dims.ok_or_else(wrong)?;
    // Eight bytes for each value: nothing that is read takes more.
    let bytes = dims.iter().try_fold(8usize, |product, &dim| product.checked_mul(dim));
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(wrong());
    }
    let is_weight = !dims.is_empty() && !dims.contains(&0) && dims.len() <= limits::MAX_DIMS as usize;
    Ok(is_weight.then_some(dims))
}

fn home_of(proto: &Proto<'_>, dtype: Option<DType>) -> Result<Home, ModelFileError> {
    if proto.is_external {
        return external(proto);
    }
    match (&proto.raw, &proto.floats) {
        (None, None) if !proto.is_odd => Ok(Home::Elsewhere("it has no data")),
        (Some(range), None) if !proto.is_odd => Ok(Home::Inline(range.clone())),
        // Packed floats are as they are in memory.
        (None, Some(range)) if !proto.is_odd && dtype == Some(DType::F32) => Ok(Home::Inline(range.clone())),
        _ => Ok(Home::Elsewhere(
            "its data is neither raw bytes nor packed floats; save the model with raw data",
        )),
    }
}

fn external(proto: &Proto<'_>) -> Result<Home, ModelFileError> {
    let value = |key: &str| proto.external.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
    let number = |key: &str| {
        let why = "the place of its external data is no number";
        let wrong = |_| ModelFileError::from(ImportError::Data { name: proto.name.to_owned(), why });
        value(key).map(|text| text.parse::<u64>().map_err(wrong)).transpose()
    };
    let location = value("location").unwrap_or_default();
    let is_plain = Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
    if location.is_empty() || !is_plain || location.contains(['\\', '\0']) {
        let (name, location) = (proto.name.to_owned(), location.chars().take(255).collect());
        return Err(ImportError::ExternalLocation { name, location }.into());
    }
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    Ok(Home::External { location: location.to_owned(), offset, length })
}
