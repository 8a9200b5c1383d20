//! Reads and checks the header: metadata and tensor table.

use super::cursor::Cursor;
use super::limits;
use super::value::{ARRAY_ID, Number, NumberArray, NumberType, STRING_ID, StringArray, Text, Value};
use crate::{Metadata, ModelFileError, TensorInfo};
use bytes::Bytes;
use secateur_tensor::DType;
use std::collections::HashSet;

const MAGIC: &[u8; 4] = b"GGUF";
/// Key, type and one byte of value: no pair of metadata is shorter.
const MIN_PAIR_BYTES: usize = 8 + 1 + 4 + 1;
/// Name, number of dimensions, one dimension, type, offset: no entry of the tensor table is shorter.
const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Everything before the data of a GGUF file, checked.
#[derive(Debug)]
pub(crate) struct Header {
    /// Metadata in order.
    pub(crate) metadata: Metadata,
    /// Tensors in order; their ranges are ranges of the file, inside it and without overlap.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Where the data begins.
    pub(crate) data_start: usize,
}

/// Reads the header of the file whose bytes are `file`.
pub(crate) fn read_header(file: &Bytes) -> Result<Header, ModelFileError> {
    let mut cursor = Cursor::new(file);
    let (n_tensors, n_pairs) = read_counts(&mut cursor)?;
    let metadata = read_metadata(&mut cursor, n_pairs)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = read_tensors(&mut cursor, n_tensors)?;
    let data_start = (cursor.at() as u64).next_multiple_of(alignment);
    if tensors.is_empty() {
        return Ok(Header { metadata, tensors, data_start: cursor.at() });
    }
    let file_bytes = file.len() as u64;
    let data_bytes = file_bytes.checked_sub(data_start).ok_or(ModelFileError::Truncated {
        what: "padding before the data",
        at: cursor.at() as u64,
        need: data_start - cursor.at() as u64,
        left: file_bytes - cursor.at() as u64,
    })?;
    place_tensors(&mut tensors, alignment, data_start, data_bytes)?;
    Ok(Header { metadata, tensors, data_start: data_start as usize })
}

fn read_counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64), ModelFileError> {
    let magic = cursor.take(4, "the magic number")?;
    if magic != MAGIC {
        return Err(ModelFileError::Magic(magic.to_vec()));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        // A small number read in the wrong byte order has its low half empty.
        _ if version != 0 && version & 0xffff == 0 => return Err(ModelFileError::BigEndian),
        _ => return Err(ModelFileError::Version(version)),
    }
    let n_tensors = cursor.u64("the number of tensors")?;
    let n_pairs = cursor.u64("the number of metadata pairs")?;
    let check = |what, value, limit| {
        if value <= limit { Ok(()) } else { Err(ModelFileError::TooLarge { what, value, limit }) }
    };
    check("the number of tensors", n_tensors, limits::MAX_TENSORS)?;
    check("the number of metadata pairs", n_pairs, limits::MAX_METADATA_KEYS)?;
    let need = n_pairs * MIN_PAIR_BYTES as u64 + n_tensors * MIN_TENSOR_BYTES as u64;
    let left = cursor.left() as u64;
    if left < need {
        return Err(ModelFileError::Truncated { what: "the header", at: cursor.at() as u64, need, left });
    }
    Ok((n_tensors, n_pairs))
}

fn read_metadata(cursor: &mut Cursor<'_>, n_pairs: u64) -> Result<Metadata, ModelFileError> {
    let mut pairs: Vec<(String, Value)> = Vec::with_capacity(n_pairs as usize);
    let mut seen = HashSet::with_capacity(n_pairs as usize);
    for _ in 0..n_pairs {
        let what = "a metadata key";
        let at = cursor.at() as u64;
        let key = cursor.text(limits::MAX_KEY_BYTES, what)?;
        if key.is_empty() {
            return Err(ModelFileError::EmptyName { what, at });
        }
        if !seen.insert(key) {
            return Err(ModelFileError::DuplicateKey(key.to_owned()));
        }
        let value = read_value(cursor, key)?;
        pairs.push((key.to_owned(), value));
    }
    Ok(Metadata::from_unique_pairs(pairs))
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, ModelFileError> {
    let unknown = |type_id| ModelFileError::ValueType { key: key.to_owned(), type_id };
    match cursor.u32("the type of a metadata value")? {
        STRING_ID => {
            let (what, at) = ("a metadata string", cursor.at() as u64);
            let len = cursor.u64(what)?;
            let view = cursor.take_view(len, what)?;
            Text::from_utf8(view).map(Value::Text).ok_or(ModelFileError::NotUtf8 { what, at })
        }
        ARRAY_ID => {
            let item_id = cursor.u32("the type of a metadata array")?;
            let len = cursor.u64("the length of a metadata array")?;
            match item_id {
                ARRAY_ID => Err(ModelFileError::NestedArray(key.to_owned())),
                STRING_ID => read_strings(cursor, len).map(Value::Strings),
                id => {
                    let kind = NumberType::from_id(id).ok_or_else(|| unknown(id))?;
                    read_numbers(cursor, key, kind, len).map(Value::Numbers)
                }
            }
        }
        id => {
            let kind = NumberType::from_id(id).ok_or_else(|| unknown(id))?;
            let bytes = cursor.take(kind.size() as u64, "a metadata value")?;
            check_bools(key, kind, bytes)?;
            Ok(Value::Number(Number::from_le(kind, bytes)))
        }
    }
}

fn read_strings(cursor: &mut Cursor<'_>, len: u64) -> Result<StringArray, ModelFileError> {
    let what = "a metadata array of strings";
    let (start, left) = (cursor.at(), cursor.left() as u64);
    let too_long = ModelFileError::Truncated { what, at: start as u64, need: len.saturating_mul(8), left };
    if left / 8 < len {
        return Err(too_long);
    }
    let mut probe = cursor.fork();
    for _ in 0..len {
        probe.text(u64::MAX, what)?;
    }
    let data = cursor.take_view((probe.at() - start) as u64, what)?;
    Ok(StringArray::new(len as usize, data))
}

fn read_numbers(
    cursor: &mut Cursor<'_>,
    key: &str,
    kind: NumberType,
    len: u64,
) -> Result<NumberArray, ModelFileError> {
    let what = "a metadata array of numbers";
    let data = cursor.take_view(len.saturating_mul(kind.size() as u64), what)?;
    check_bools(key, kind, &data)?;
    Ok(NumberArray::new(kind, data))
}

fn check_bools(key: &str, kind: NumberType, bytes: &[u8]) -> Result<(), ModelFileError> {
    let bad = (kind == NumberType::Bool).then(|| bytes.iter().find(|&&byte| 1 < byte)).flatten();
    bad.map_or(Ok(()), |&value| Err(ModelFileError::NotBool { key: key.to_owned(), value }))
}

/// Alignment of the data, from `general.alignment`.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u64, ModelFileError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(limits::DEFAULT_ALIGNMENT) };
    let number = match value {
        Value::Number(number) if number.kind() == NumberType::U32 => number.as_int(),
        _ => None,
    };
    number
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| value.is_power_of_two() && *value <= limits::MAX_ALIGNMENT)
        .ok_or(ModelFileError::Alignment { limit: limits::MAX_ALIGNMENT })
}

fn read_tensors(cursor: &mut Cursor<'_>, n_tensors: u64) -> Result<Vec<TensorInfo>, ModelFileError> {
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(n_tensors as usize);
    let mut seen = HashSet::with_capacity(n_tensors as usize);
    for _ in 0..n_tensors {
        let what = "a tensor name";
        let at = cursor.at() as u64;
        let name = cursor.text(limits::MAX_TENSOR_NAME_BYTES, what)?;
        if name.is_empty() {
            return Err(ModelFileError::EmptyName { what, at });
        }
        if !seen.insert(name) {
            return Err(ModelFileError::DuplicateTensor(name.to_owned()));
        }
        tensors.push(read_tensor(cursor, name.to_owned())?);
    }
    Ok(tensors)
}

/// Reads an entry of the tensor table. Its range is relative to the data until it is placed.
fn read_tensor(cursor: &mut Cursor<'_>, name: String) -> Result<TensorInfo, ModelFileError> {
    let n_dims = cursor.u32("the number of dimensions")?;
    if !(1..=limits::MAX_DIMS).contains(&n_dims) {
        return Err(ModelFileError::TensorDims { name, n_dims });
    }
    let dims = (0..n_dims).map(|_| cursor.u64("a dimension")).collect::<Result<Vec<u64>, _>>()?;
    let type_id = cursor.u32("a tensor type")?;
    let offset = cursor.u64("a tensor offset")?;
    let Some(dtype) = DType::from_ggml_id(type_id) else {
        return Err(ModelFileError::TensorType { name, type_id, type_name: foreign_type_name(type_id) });
    };
    let n_cols = dims[0];
    let Some(shape) = usable_shape(&dims) else {
        return Err(ModelFileError::TensorSize { name, dims });
    };
    let Some(row_bytes) = dtype.row_bytes(shape[0]) else {
        return Err(ModelFileError::TensorRow { name, n_cols, dtype });
    };
    let n_rows: usize = shape[1..].iter().product();
    let (Some(size), Ok(start)) = (n_rows.checked_mul(row_bytes), usize::try_from(offset)) else {
        return Err(ModelFileError::TensorSize { name, dims });
    };
    let Some(end) = start.checked_add(size) else {
        let got = cursor.left() as u64;
        return Err(ModelFileError::TensorRange { name, offset, want: size as u64, got });
    };
    Ok(TensorInfo { name, dtype, dims: shape, shard: 0, range: start..end })
}

/// The dimensions as sizes, when none is zero and their product is a count that ggml can hold.
fn usable_shape(dims: &[u64]) -> Option<Vec<usize>> {
    let n_values = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    i64::try_from(n_values).ok().filter(|&values| 0 < values)?;
    dims.iter().map(|&dim| usize::try_from(dim).ok()).collect()
}

/// Checks the places of the tensors against the data and each other, and makes them ranges of the file.
fn place_tensors(
    tensors: &mut [TensorInfo],
    alignment: u64,
    data_start: u64,
    data_bytes: u64,
) -> Result<(), ModelFileError> {
    for TensorInfo { name, range, .. } in tensors.iter() {
        let offset = range.start as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(ModelFileError::TensorOffset { name: name.clone(), offset, alignment });
        }
        if data_bytes < range.end as u64 {
            let want = range.len() as u64;
            return Err(ModelFileError::TensorRange { name: name.clone(), offset, want, got: data_bytes });
        }
    }
    check_overlap(tensors)?;
    for tensor in tensors {
        // Cannot overflow: the end was checked to lie in the file.
        let start = data_start as usize;
        tensor.range = start + tensor.range.start..start + tensor.range.end;
    }
    Ok(())
}

/// Checks that no two tensors of one shard share bytes.
pub(crate) fn check_overlap(tensors: &[TensorInfo]) -> Result<(), ModelFileError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.shard, tensor.range.start, tensor.range.end));
    let clash = order
        .windows(2)
        .find(|pair| pair[0].shard == pair[1].shard && pair[1].range.start < pair[0].range.end);
    clash.map_or(Ok(()), |pair| {
        Err(ModelFileError::TensorOverlap { first: pair[0].name.clone(), second: pair[1].name.clone() })
    })
}

/// Names of ggml types without a reader, so that the message says what the file is.
fn foreign_type_name(type_id: u32) -> &'static str {
    match type_id {
        4 | 5 | 31..=33 | 36..=38 => "a type removed from ggml",
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        39 => "mxfp4",
        40 => "nvfp4",
        _ => "unknown",
    }
}
