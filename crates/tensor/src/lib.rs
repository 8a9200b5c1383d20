//! Dtypes, ggml block formats, linear algebra and kernels.
//!
//! Pure arithmetic over slices: no files, no model knowledge. `unsafe` lives in [`kernels`] only.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

pub mod blocks;
mod dtype;
pub mod kernels;
pub mod linalg;
mod matrix;

pub use dtype::DType;
pub use matrix::{MatrixError, WeightMatrix};
