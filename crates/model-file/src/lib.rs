//! Model files: mapped reading with strict checks before any use, and crash-safe writing.
//!
//! - [`ModelFile::open`] maps a model and checks it: headers, metadata, tensor tables, configuration, the shape of
//!   every weight. It hands out weights as views into the mapping. A model is a GGUF file (version 2 or 3), or a
//!   checkpoint: a folder with `config.json`, `tokenizer.json`, and weights as safetensors or in an ONNX graph.
//! - [`Mapped`] is the mapping; its pages are given back when they are not needed.
//! - [`Vocab`] is the vocabulary as plain data.
//! - [`write_gguf`] streams a model into a new file that is either whole or not there, [`write_checkpoint`] into a
//!   folder with safetensors.
//!
//! A broken file is a [`ModelFileError`], never a panic; what is allocated for it is bounded by [`limits`].
#![deny(unsafe_code)]

mod config;
mod error;
mod gguf;
mod import;
mod layout;
#[expect(unsafe_code, reason = "the mapping")]
mod mapped;
mod metadata;
mod model;
mod names;
mod tensor_info;
mod vocab;
mod write;

pub use error::{ModelFileError, WriteError};
pub use gguf::limits;
pub use gguf::value::{Number, NumberArray, NumberType, StringArray, Text, Value};
pub use import::ImportError;
pub use mapped::Mapped;
pub use metadata::Metadata;
pub use model::{ModelFile, ModelForm};
pub use tensor_info::TensorInfo;
pub use vocab::Vocab;
pub use write::{
    BLOCK_VALUES, RetabledSource, RoundHead, WriteOptions, Written, WrittenCheckpoint, stored_dtype,
    write_checkpoint, write_gguf,
};
