//! Builds tiny models for tests: random Llama-style GGUF files with a working vocabulary, and the same models as
//! checkpoints with safetensors or ONNX.
//!
//! The GGUF emitter here shares no code with the `model-file` crate, so that reader and builder check each
//! other; it can also write files that are wrong on purpose. Everything is deterministic in the seed.
#![forbid(unsafe_code)]

mod checkpoint;
mod gguf;
mod onnx;
mod rng;
mod tiny;
mod vocab;

pub use checkpoint::{Checkpoint, CheckpointTensor};
pub use gguf::{Gguf, GgufTensor, Meta};
pub use onnx::{Data, Onnx, OnnxNode, OnnxTensor, Style};
pub use rng::Rng;
pub use secateur_tensor::DType;
pub use tiny::{Biases, Head, TinyFamily, TinyLayer, TinyModel};
pub use vocab::{CHAT_TEMPLATE, TinyVocab, reference_model};
