//! Runs decoders of the Llama family over weights that stay where they are: in the mapped file.
//!
//! A layer is described once, by [`layer::LayerContext`] and its functions over slices. Two drivers use it:
//! tract graphs (one per sub-layer, [`graph`]) for the windows of calibration, whose outlets hand out the inputs
//! of every linear; and the [`Session`], for prompts and answers, which walks the same functions over buffers
//! that it keeps, because a graph run allocates its tensors anew.
//!
//! Memory: weights are never copied; a session owns `kv_cache_bytes`, its hidden states and logits; an engine
//! owns one set of buffers for the longest chunk so far; a graph run owns the activations of its window,
//! `O(n_tokens * intermediate_size)`.
#![forbid(unsafe_code)]

mod error;
mod graph;
mod head;
mod kv;
mod layer;
mod rope;
mod session;

pub use error::EngineError;
pub use graph::{InnerRun, LayerBuffers, LayerRunner, Sublayer, SublayerRun};
pub use head::{Embedding, Head};
pub use layer::LayerContext;
pub use secateur_tensor::kernels::{Precision, argmax, log_sum_exp};
pub use session::{Engine, EngineOptions, MAX_EACH, Session};
