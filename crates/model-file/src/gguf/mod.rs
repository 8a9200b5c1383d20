//! The GGUF format, versions 2 and 3, little-endian.
//!
//! [`read_header`] reads and checks everything before the data. It knows nothing about models. What it
//! allocates is bounded by [`limits`], whatever the file says; arrays and strings are views into the file.

mod cursor;
mod header;
pub(crate) mod value;

pub(crate) use header::{Header, alignment, check_overlap, read_header};

/// Limits on untrusted files. Memory for the header is at most about
/// `MAX_METADATA_KEYS * 150 + MAX_TENSORS * 250` bytes, and never more than a few times the file's size.
pub mod limits {
    /// Pairs of metadata.
    pub const MAX_METADATA_KEYS: u64 = 1 << 12;
    /// Tensors: 512 layers of 16 tensors are far below.
    pub const MAX_TENSORS: u64 = 1 << 14;
    /// Bytes of a metadata key.
    pub const MAX_KEY_BYTES: u64 = 1 << 10;
    /// Bytes of a tensor name; the limit of ggml.
    pub const MAX_TENSOR_NAME_BYTES: u64 = 63;
    /// Dimensions of a tensor.
    pub const MAX_DIMS: u32 = 4;
    /// Alignment of the data.
    pub const MAX_ALIGNMENT: u64 = 1 << 16;
    /// Alignment where the file names none.
    pub const DEFAULT_ALIGNMENT: u64 = 32;
}
