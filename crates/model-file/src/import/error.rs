//! Why a checkpoint of another form than GGUF was refused.

use std::path::PathBuf;

/// A folder, a safetensors file or an ONNX graph could not be taken as a model.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder has no weights that we can read.
    #[error(
        "{}: holds no model.safetensors, model.safetensors.index.json, model.onnx or onnx/model.onnx; \
        give a GGUF file or a folder with one of these", .0.display()
    )]
    NoWeights(PathBuf),
    /// A file that belongs to the weights is not beside them.
    #[error("`{file}` is missing beside the weights; it comes with the checkpoint")]
    MissingFile {
        /// Its name.
        file: &'static str,
    },
    /// A file is longer than any honest one.
    #[error("the file has {bytes} bytes, at most {limit} are read")]
    FileTooLarge {
        /// Its length.
        bytes: u64,
        /// Most that is read.
        limit: u64,
    },
    /// A file is not the JSON it must be.
    #[error("not the JSON expected: {0}")]
    Json(String),
    /// A key of a JSON file is missing, or of another type or range than it must be.
    #[error("`{key}` must be {want}")]
    Key {
        /// Key.
        key: String,
        /// What it must be, in words.
        want: &'static str,
    },
    /// The model class is not one we can run.
    #[error("the model is a `{0}`; LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM are supported")]
    Class(String),
    /// A bias that the configuration asks for is missing, or one that it does not know is there.
    #[error("tensor `{name}` {state}, which contradicts `attention_bias` or `mlp_bias` of config.json")]
    Bias {
        /// Tensor.
        name: String,
        /// `is missing` or `is there`.
        state: &'static str,
    },
    /// The index names a file outside of its folder.
    #[error("the index names the file `{0}`; only plain names of .safetensors files beside it are followed")]
    ShardName(String),
    /// A tensor is in another file than the index says, or in none.
    #[error("tensor `{tensor}` is not in `{shard}`, where the index has it")]
    NotInShard {
        /// Tensor.
        tensor: String,
        /// File.
        shard: String,
    },
    /// A tensor is in a file, but the index does not know it.
    #[error("tensor `{0}` is not in the index")]
    NotInIndex(String),
    /// The header of a safetensors file is broken.
    #[error("not a safetensors file: {0}")]
    Header(String),
    /// A tensor has a type that is not used in place.
    #[error("tensor `{name}` is {dtype}; {supported}")]
    DType {
        /// Tensor.
        name: String,
        /// Type as the file names it.
        dtype: String,
        /// What is supported, in words.
        supported: &'static str,
    },
    /// A tensor's bytes are not as many as its shape needs.
    #[error("tensor `{name}`: its shape needs {want} bytes, the file gives it {got}")]
    TensorBytes {
        /// Tensor.
        name: String,
        /// Bytes of the shape.
        want: u64,
        /// Bytes given.
        got: u64,
    },
    /// The bytes are not the protobuf of an ONNX model.
    #[error("not an ONNX model: {what} at byte {at}")]
    Protobuf {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// The graph is not a decoder that we can take apart.
    #[error(
        "the ONNX graph {0}; plain float decoders as optimum and onnxruntime-genai export them are supported"
    )]
    Graph(String),
    /// A tensor's data lies where it must not.
    #[error("tensor `{name}` has its data in `{location}`; only files beside the model are followed")]
    ExternalLocation {
        /// Tensor.
        name: String,
        /// Place as the file names it.
        location: String,
    },
    /// A tensor's data is not to be had in place.
    #[error("tensor `{name}`: {why}")]
    Data {
        /// Tensor.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The tokenizer has a feature that GGUF vocabularies cannot say.
    #[error(
        "the tokenizer uses {0}, which is not supported; export the model to GGUF with a tool that knows it"
    )]
    Tokenizer(String),
    /// The tokenizer contradicts itself.
    #[error("the tokenizer is broken: {0}")]
    Vocabulary(String),
    /// No folder takes the temporary file.
    #[error(
        "{need_bytes} bytes are needed for weights stored anew, and none of {tried} has them; set TMPDIR"
    )]
    Scratch {
        /// Bytes needed.
        need_bytes: u64,
        /// Folders that were tried.
        tried: String,
        /// What the last of them said.
        #[source]
        source: std::io::Error,
    },
    /// The temporary file cannot be written.
    #[error("the temporary file of weights stored anew cannot be written")]
    ScratchWrite(#[source] std::io::Error),
}
