//! Model files: mapped reading with strict checks before any use, and crash-safe writing.
//!
//! - [`ModelFile::open`] maps a GGUF file (version 2 or 3) and checks it: header, metadata, tensor table,
//!   configuration, the shape of every weight. It hands out weights as views into the mapping.
//! - [`Mapped`] is the mapping; its pages are given back when they are not needed.
//! - [`Vocab`] is the vocabulary as plain data.
//! - [`write_gguf`] streams a model into a new file that is either whole or not there.
//!
//! A broken file is a [`ModelFileError`], never a panic; what is allocated for it is bounded by [`limits`].
#![deny(unsafe_code)]

mod config;
mod error;
mod gguf;
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
pub use mapped::{Access, Mapped};
pub use metadata::Metadata;
pub use model::ModelFile;
pub use tensor_info::TensorInfo;
pub use vocab::Vocab;
pub use write::{BLOCK_VALUES, RetabledSource, RoundHead, WriteOptions, Written, stored_dtype, write_gguf};
