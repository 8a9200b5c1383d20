//! Why a model file was refused. Every variant names the thing that is wrong.

use crate::ImportError;
use secateur_model::{ConfigError, WeightId};
use secateur_tensor::DType;
use std::io;
use std::path::{Path, PathBuf};

/// A file could not be opened as a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    /// The file cannot be read or mapped.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file has another length than when it was opened.
    #[error("{}: the file has {got} bytes, {want} when it was opened", path.display())]
    Changed {
        /// File.
        path: PathBuf,
        /// Length at opening.
        want: u64,
        /// Length at present.
        got: u64,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it begins with {0:02x?}")]
    Magic(Vec<u8>),
    /// A version of the format without a reader.
    #[error("GGUF version {0} is not supported, 2 and 3 are")]
    Version(u32),
    /// The file is for big-endian machines.
    #[error("big-endian GGUF files are not supported")]
    BigEndian,
    /// The file ends inside something.
    #[error("the file ends inside {what} at byte {at}: {need} bytes needed, {left} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// Bytes it needs.
        need: u64,
        /// Bytes there are.
        left: u64,
    },
    /// A count or length is beyond its limit.
    #[error("{what} is {value}, at most {limit} allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Its limit.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Which string.
        what: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// A metadata key or tensor name is empty.
    #[error("{what} at byte {at} is empty")]
    EmptyName {
        /// Which string.
        what: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// A metadata key is there twice.
    #[error("metadata key `{0}` is there twice")]
    DuplicateKey(String),
    /// A metadata value has a type the format does not know.
    #[error("metadata key `{key}` has the unknown type {type_id}")]
    ValueType {
        /// Key.
        key: String,
        /// Type id found.
        type_id: u32,
    },
    /// An array holds arrays.
    #[error("metadata key `{0}` is an array of arrays, which is not supported")]
    NestedArray(String),
    /// A boolean is neither 0 nor 1.
    #[error("metadata key `{key}` holds the byte {value} as a boolean")]
    NotBool {
        /// Key.
        key: String,
        /// Byte found.
        value: u8,
    },
    /// `general.alignment` is not a power of two within its limit, or not a u32.
    #[error("`general.alignment` must be a u32, a power of two and at most {limit}")]
    Alignment {
        /// Largest alignment allowed.
        limit: u64,
    },
    /// A tensor name is there twice.
    #[error("tensor `{0}` is there twice")]
    DuplicateTensor(String),
    /// A tensor has no dimensions or too many.
    #[error("tensor `{name}` has {n_dims} dimensions, 1 to 4 allowed")]
    TensorDims {
        /// Tensor.
        name: String,
        /// Dimensions found.
        n_dims: u32,
    },
    /// A dimension is zero, or the product of the dimensions overflows.
    #[error("tensor `{name}` has the shape {dims:?}, which is empty or too large")]
    TensorSize {
        /// Tensor.
        name: String,
        /// Dimensions, the fastest first.
        dims: Vec<u64>,
    },
    /// A storage type without a reader.
    #[error("tensor `{name}` has the type {type_id} ({type_name}), which is not supported")]
    TensorType {
        /// Tensor.
        name: String,
        /// Type id found.
        type_id: u32,
        /// Name of the type where it is known.
        type_name: &'static str,
    },
    /// Rows do not divide into blocks.
    #[error("tensor `{name}`: rows of {n_cols} values do not divide into {dtype} blocks")]
    TensorRow {
        /// Tensor.
        name: String,
        /// Values in a row.
        n_cols: u64,
        /// Storage type.
        dtype: DType,
    },
    /// An offset is no multiple of the alignment.
    #[error("tensor `{name}` begins at {offset}, which is no multiple of {alignment}")]
    TensorOffset {
        /// Tensor.
        name: String,
        /// Offset in the data.
        offset: u64,
        /// Alignment of the file.
        alignment: u64,
    },
    /// A tensor reaches past the end of the file.
    #[error("tensor `{name}`: {want} bytes at {offset} expected, the data has {got}")]
    TensorRange {
        /// Tensor.
        name: String,
        /// Offset in the data.
        offset: u64,
        /// Bytes it needs.
        want: u64,
        /// Bytes of all data in the file.
        got: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    TensorOverlap {
        /// The one that begins earlier.
        first: String,
        /// The other one.
        second: String,
    },
    /// A metadata key is missing.
    #[error("metadata key `{0}` is missing")]
    MissingKey(String),
    /// A metadata key has a value of another type or range than it must.
    #[error("metadata key `{key}` must be {want}")]
    KeyType {
        /// Key.
        key: String,
        /// What it must be, in words.
        want: &'static str,
    },
    /// An array has another length than it must.
    #[error("metadata key `{key}` is an array of {got}, expected {want}")]
    KeyLen {
        /// Key.
        key: String,
        /// Length expected.
        want: usize,
        /// Length found.
        got: usize,
    },
    /// The architecture is not one we can run.
    #[error("architecture `{0}` is not supported; llama, qwen2 and deci are")]
    Architecture(String),
    /// The model has a feature that would be computed wrongly.
    #[error("the model uses {0}, which is not supported")]
    Unsupported(String),
    /// The configuration contradicts itself.
    #[error("the model's configuration is not usable")]
    Config(#[from] ConfigError),
    /// A tensor that the configuration asks for is missing.
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    /// A tensor that the configuration has no place for.
    #[error("tensor `{0}` has no place in this model")]
    UnexpectedTensor(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has the shape {got:?}, expected {want:?}")]
    TensorShape {
        /// Tensor.
        name: String,
        /// Shape expected, `[out, in]` or `[n]`.
        want: Vec<usize>,
        /// Shape found.
        got: Vec<usize>,
    },
    /// A norm, bias or rotary factor is stored in a block format.
    #[error("tensor `{name}` is a vector in {dtype}; f32, f16 and bf16 are supported")]
    VectorType {
        /// Tensor.
        name: String,
        /// Storage type.
        dtype: DType,
    },
    /// Rotary factors must be positive and finite.
    #[error("tensor `{0}` holds a factor that is not positive and finite")]
    RopeFactors(String),
    /// One file of a checkpoint is at fault.
    #[error("{}: {source}", path.display())]
    InFile {
        /// File or folder.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ModelFileError>,
    },
    /// A checkpoint of another form than GGUF cannot be taken.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The vocabulary does not fit the token table.
    #[error("the vocabulary has {tokens} tokens, the token table {rows} rows")]
    VocabSize {
        /// Tokens in the metadata.
        tokens: usize,
        /// Rows of the token table.
        rows: usize,
    },
    /// A part of the vocabulary has another length than the token list.
    #[error("`{key}` has {got} entries for {tokens} tokens")]
    VocabLen {
        /// Key.
        key: String,
        /// Entries found.
        got: usize,
        /// Tokens.
        tokens: usize,
    },
}

impl ModelFileError {
    /// Says in which file of several the fault is.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            // These name their file themselves.
            Self::InFile { .. } | Self::Io { .. } | Self::Changed { .. } => self,
            error => Self::InFile { path: path.to_owned(), source: Box::new(error) },
        }
    }
}

/// A model could not be written. The target is untouched then.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The target cannot be written.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file system is too full.
    #[error("{}: {need_bytes} bytes needed, {available_bytes} free", path.display())]
    DiskFull {
        /// Target.
        path: PathBuf,
        /// Bytes the file needs.
        need_bytes: u64,
        /// Bytes the file system has left.
        available_bytes: u64,
    },
    /// The dtype has a reader but no writer.
    #[error("{0} cannot be written; f32, f16, bf16, q8_0, q4_0 and q4_1 can")]
    Dtype(DType),
    /// The model cannot be put into a file that a stock runtime would read rightly.
    #[error("the model cannot be exported: {0}")]
    NotExportable(String),
    /// A weight could not be had.
    #[error("a weight could not be had")]
    Weight(#[from] secateur_model::WeightError),
    /// A weight has another shape than the configuration says.
    #[error("weight `{id}` has the shape {got:?}, expected {want:?}")]
    Shape {
        /// Which weight.
        id: WeightId,
        /// Shape expected, `[out, in]`.
        want: [usize; 2],
        /// Shape found.
        got: [usize; 2],
    },
    /// A weight changed its storage type between planning and writing.
    #[error("weight `{id}` was {want} when the file was planned and is {got} now")]
    Unstable {
        /// Which weight.
        id: WeightId,
        /// Storage type planned.
        want: DType,
        /// Storage type found.
        got: DType,
    },
    /// A weight holds a value the dtype cannot store.
    #[error("weight `{id}`, row {row}, cannot be stored")]
    Quantize {
        /// Which weight.
        id: WeightId,
        /// Row.
        row: usize,
        /// What is wrong with it.
        #[source]
        source: secateur_tensor::blocks::QuantizeError,
    },
    /// The finished file was read back and refused: an error of ours.
    #[error("the finished file does not read back")]
    ReadBack(#[source] Box<ModelFileError>),
}
