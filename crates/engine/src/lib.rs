//! Runs decoders of the Llama family over weights that stay where they are: in the mapped file.
//!
//! A layer is described once, by [`layer::LayerContext`] and its functions over slices. Two drivers use it:
//! tract graphs (one per sub-layer, [`graph`]) for windows of tokens, whose outlets hand out the inputs of
//! every linear; and the decode step ([`Session`]), which walks the same functions over preallocated buffers
//! because a graph run allocates its tensors anew.
//!
//! Memory: weights are never copied; a session owns `kv_cache_bytes` and one token's buffers; a graph run
//! owns the activations of its window, `O(n_tokens * intermediate_size)`.
#![forbid(unsafe_code)]

mod error;
mod graph;
mod head;
mod kv;
mod layer;
mod rope;
mod session;

pub use error::EngineError;
pub use graph::{InnerRun, LayerRunner, Sublayer, SublayerRun};
pub use head::{Embedding, Head};
pub use layer::LayerContext;
pub use session::{Engine, EngineOptions, Session};
