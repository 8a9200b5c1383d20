//! The header of a safetensors file.

use super::Planned;
use secateur_tensor::DType;
use serde_json::{Map, Value, json};

/// What the header's length is a multiple of, so that the data is aligned.
const ALIGNMENT: usize = 8;

/// Length and JSON of the header of a file with these tensors one after the other.
pub(super) fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in tensors {
        let dtype = match tensor.dtype {
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            _ => "F32",
        };
        let shape: &[usize] = if tensor.is_vector { &tensor.shape[1..] } else { &tensor.shape };
        let end = start + tensor.bytes;
        entries.insert(
            tensor.name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice()].concat()
}
